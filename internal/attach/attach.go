// Package attach gives leases block devices of the host: it has the process that
// makes them (package devices) and the engine do what package ipc says about devices.
//
// # Who asks
//
//	API         Attach, Detach, Resized; one operation a lease at a time
//	an engine   that took over, or a devices process that came back: Recovered. Each
//	            device of an open lease is made, served and started again; each of
//	            a lease that has ended is removed by force.
//	a lease     that ends: Ended. Its device is removed by force, behind the erasure,
//	            which waits for nothing here.
//
// # Invariants
//
//	A1: a device that an attach made is there when the attach succeeded, and gone,
//	    or being removed, when it did not.
//	A2: a lease that has ended has no device for longer than the devices process is
//	    away: every way to a device ends with a look at the lease.
//
// What the devices process has is the kernel's and outlives control; what is kept
// here is a copy of it to be shown.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// An Engine serves devices. Calls on one that has ended return an error that wraps
// [ipc.ErrGone]; the next goes to the one that took its place.
type Engine interface {
	Hello(ctx context.Context) (ipc.Hello, error)
	// ServesDevice reports whether the engine serves a device of the lease.
	ServesDevice(ctx context.Context, lease string) (bool, error)
	// ServeDevice has the engine serve a device. The file stays the caller's.
	ServeDevice(ctx context.Context, req ipc.DeviceServeRequest, char *os.File) error
}

// Config is what an [Attacher] needs. Zero means the default, where there is one.
type Config struct {
	Listener  *net.UnixListener                    // to which the devices process connects, of Listen; required; Close closes it
	Engine    Engine                               // required
	Lease     func(id string) (lease.Lease, error) // required; an error of kind node.NotFound: there is none
	NBDSocket func(id string) string               // where a lease's NBD export listens; required
	Linked    func(id string) bool                 // reports whether a link to a lease's device is there; nobody knows
	Log       *slog.Logger                         // discarded

	RetryMin time.Duration // back-off while engine or devices process are away; 50 ms
	RetryMax time.Duration // 1 s
	Wait     time.Duration // of one Attach or Detach at most; 30 s
	Grace    time.Duration // that a devices process may take to come, or to come back, before callers are told that there is none; 2 s
	Settle   time.Duration // after which a device that is said to be served, nobody here knows by whom, is; 8 s
	Parallel int           // operations at once when an engine took over; 16
}

func (c Config) withDefaults() (Config, error) {
	if c.Listener == nil || c.Engine == nil || c.Lease == nil || c.NBDSocket == nil {
		return c, errors.New("attach: a listener, an engine, leases and their sockets are required")
	}
	for d, v := range map[*time.Duration]time.Duration{&c.RetryMin: 50 * time.Millisecond, &c.RetryMax: time.Second,
		&c.Wait: 30 * time.Second, &c.Grace: 2 * time.Second, &c.Settle: 8 * time.Second} {
		if *d == 0 {
			*d = v
		}
	}
	if c.Parallel == 0 {
		c.Parallel = 16
	}
	if c.Linked == nil {
		c.Linked = func(string) bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// An Attacher attaches block devices to leases and takes them away. Its methods may
// be called from any goroutine. What is to be done when leases end and engines
// change is done while Run runs.
type Attacher struct {
	cfg  Config
	link *link
	free chan struct{} // as many may settle at once
	kick chan struct{} // capacity 1: all devices are to be looked at
	wg   sync.WaitGroup

	mu      sync.Mutex // not held while anybody is called
	devices map[string]ipc.Device
	touched map[string]bool // leases that have, or may have, a device
	served  map[string]int  // lease → pid of the engine that was seen to take its device
	lists   int             // that were asked for and not answered
	changed map[string]bool // leases whose device came or went meanwhile
	locks   map[string]*lock
	looks   map[string]*look
	run     context.Context // Run's; nil before and after
}

// New makes an Attacher, to which the devices process connects from now on, and which
// calls nobody before the first method is called. Its end is Close.
func New(cfg Config) (*Attacher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	a := &Attacher{cfg: cfg, free: make(chan struct{}, cfg.Parallel), kick: make(chan struct{}, 1),
		devices: map[string]ipc.Device{}, touched: map[string]bool{}, served: map[string]int{},
		changed: map[string]bool{}, locks: map[string]*lock{}, looks: map[string]*look{}}
	a.link = newLink(cfg.Listener, cfg.Grace, a.Recovered, cfg.Log)
	return a, nil
}

// Close ends the connection to the devices process, and calls with it. It may be
// called again.
func (a *Attacher) Close() { a.link.close() }

// Ready returns nil when a lease with these exports can be given a device, and
// otherwise an error of kind node.Unsupported, or node.Refused, that says what to do.
func (a *Attacher) Ready(ctx context.Context, x lease.Exports) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Wait)
	defer cancel()
	var h ipc.DevicesHello
	err := a.persist(ctx, func() (err error) {
		h, err = a.hello(ctx)
		return err
	})
	switch {
	case err != nil:
		return shown(err, "")
	case h.Kind == "":
		return &node.Error{Kind: node.Unsupported, Text: "block devices are not made on this host: " + h.Why, Next: instead}
	case h.Kind == ipc.DeviceNBD && x.NoNBD:
		return needsNBD("", h.Why)
	}
	return nil
}

// Attach makes the lease's block device and returns when it can be opened. A lease
// that has one keeps it. When it returns an error it has left no device that was not
// there before, or that is being removed.
func (a *Attacher) Attach(ctx context.Context, l lease.Lease) (ipc.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Wait)
	defer cancel()
	if !mayHave(l.State) {
		return ipc.Device{}, notOpen(l)
	}
	unlock, err := a.lock(ctx, l.ID)
	if err != nil {
		return ipc.Device{}, shown(err, l.ID)
	}
	defer unlock()
	var d ipc.Device
	fresh := false // this call has made one, or may have
	err = a.persist(ctx, func() (err error) {
		d, err = a.steps(ctx, l, &fresh)
		return err
	})
	if err == nil {
		if now, lerr := a.cfg.Lease(l.ID); lerr == nil && mayHave(now.State) {
			a.wanted(l.ID)
			return d, nil
		}
		fresh, err = true, notOpen(l) // it was closed meanwhile: nobody else may have seen the device
	}
	if fresh {
		a.undo(ctx, l.ID)
	}
	return ipc.Device{}, shown(err, l.ID)
}

// undo removes a device that shall not be. Where that cannot be now, whoever looks
// after devices goes on with it.
func (a *Attacher) undo(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.cfg.RetryMax)
	defer cancel()
	if err := a.remove(ctx, id, true); err != nil {
		a.cfg.Log.Warn("a block device could not be removed yet", "lease_id", id, "error", err)
		a.look(id, true)
	}
}

// Detach takes the lease's device away. One that is in use is refused with what uses
// it, unless force is set. Without a device there is nothing to do.
func (a *Attacher) Detach(ctx context.Context, id string, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Wait)
	defer cancel()
	unlock, err := a.lock(ctx, id)
	if err != nil {
		return shown(err, id)
	}
	defer unlock()
	err = a.persist(ctx, func() error { return a.remove(ctx, id, force) })
	if _, has := a.Device(id); !has && errors.Is(err, errAbsent) && !a.cfg.Linked(id) {
		return nil // nobody here makes devices, nor did, and so it has none
	}
	return shown(err, id)
}

// Resized tells the kernel the new size of a lease's device. Where it takes none, the
// device has its new size when it is attached again, and a line in the log says so.
func (a *Attacher) Resized(ctx context.Context, id string, bytes int64) {
	if _, has := a.Device(id); !has {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Wait)
	defer cancel()
	unlock, err := a.lock(ctx, id)
	if err == nil {
		defer unlock()
		err = a.persist(ctx, func() error {
			_, err := call[ipc.Empty](ctx, a, ipc.MethodDeviceResize, ipc.DeviceResizeRequest{Lease: id, SizeBytes: bytes})
			return err
		})
	}
	if err != nil {
		a.cfg.Log.Warn("a block device keeps its size until it is attached again", "lease_id", id, "size_bytes", bytes, "error", err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if d, has := a.devices[id]; has {
		d.SizeBytes = bytes
		a.devices[id] = d
	}
}

// Device returns the lease's device, as it was seen last.
func (a *Attacher) Device(id string) (ipc.Device, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, ok := a.devices[id]
	return d, ok
}

// statusWait is how long status waits for the devices process.
const statusWait = time.Second

// Status says what makes devices here, and how many there are. Where nobody answers,
// Kind is empty and Why says so.
func (a *Attacher) Status(ctx context.Context) (ipc.DevicesHello, int) {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	h, err := a.hello(ctx)
	if err != nil {
		h = ipc.DevicesHello{Why: statusText(err)}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return h, len(a.devices)
}

// persist makes a call again while the engine or the devices process are away, until
// ctx ends. Where no devices process runs, that is what it returns.
func (a *Attacher) persist(ctx context.Context, do func() error) error {
	b := a.backoff()
	for {
		err := do()
		if err == nil || !passes(err) {
			return err
		}
		if errors.Is(err, errAbsent) {
			if !a.link.expect(ctx) {
				return err
			}
		} else if !b.wait(ctx) {
			return err
		}
	}
}

// passes reports whether the same call may go well in a moment.
func passes(err error) bool {
	return errors.Is(err, ipc.ErrGone) || errors.Is(err, errAbsent) || errors.Is(err, errAgain)
}

// backoff is a fresh one.
func (a *Attacher) backoff() *backoff { return &backoff{least: a.cfg.RetryMin, most: a.cfg.RetryMax} }

// A backoff waits a little longer each time.
type backoff struct{ next, least, most time.Duration }

// wait returns false when ctx ends first.
func (b *backoff) wait(ctx context.Context) bool {
	b.next = min(max(2*b.next, b.least), b.most)
	select {
	case <-time.After(b.next):
		return true
	case <-ctx.Done():
		return false
	}
}

// waitOr is wait, but ends when there is something in early, which it takes and reports.
func (b *backoff) waitOr(ctx context.Context, early <-chan struct{}) bool {
	b.next = min(max(2*b.next, b.least), b.most)
	select {
	case <-early:
		return true
	case <-time.After(b.next):
	case <-ctx.Done():
	}
	return false
}

// A lock is held by the one operation that a lease may have at a time.
type lock struct {
	held  chan struct{} // capacity 1
	users int           // who hold it or wait; under Attacher.mu
}

func (a *Attacher) lock(ctx context.Context, id string) (unlock func(), err error) {
	a.mu.Lock()
	l := a.locks[id]
	if l == nil {
		l = &lock{held: make(chan struct{}, 1)}
		a.locks[id] = l
	}
	l.users++
	a.mu.Unlock()
	leave := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(a.locks, id)
		}
	}
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for what is done with the block device of lease %s: %w", id, ctx.Err())
	}
}
