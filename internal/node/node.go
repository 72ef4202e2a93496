// Package node owns a node's leases, drives and space: control's side of every
// transition. It decides, writes the journal, and has the engine act.
//
// # Order
//
//	open    sockets → engine: key → journal: lease, extents, OPEN record → engine:
//	        export
//	resize  journal: size, more extents, RESIZE record → engine: larger volume
//	close   engine: key destroyed → drained, or its deadline passed →
//	        journal: CLOSE record → sockets → extents free
//
// Whatever is cut off in the middle is closed at the next start by the same
// functions (close.go). Errors of journal and engine leave open whether a thing
// was done, so each step can be asked again.
//
// # Invariants
//
//	N1: nothing is served of a lease, and so no block of it written, before the
//	    journal holds it. A key without a lease in the journal is a stranger's: the
//	    opening that made it destroys it, or the next recovery.
//	N2: an extent is free only when the CLOSE record of the lease that had it is
//	    durable, and no I/O of it can be in flight: this engine says so, and holds
//	    the fence of the drive, which rules out earlier ones.
//	N3: a slot of the volatile memory is free only when the lease's extents are.
//	N4: erasure waits for neither journal nor device.
//	N5: what hangs (a drive, an fsync, the engine) holds up the leases that wait
//	    for it, and no others: no lock is held while it is called.
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/sys"
	"vacate/proof"
)

// Config is what a node is made of. Zero means the default, where there is one.
type Config struct {
	Store   journal.Store // required; the caller closes it after Shutdown
	Engine  Engine        // required
	Sockets Sockets       // required

	Clock    func() time.Time // wall clock; time.Now
	Boottime func() int64     // the engine's clock: CLOCK_BOOTTIME, nanoseconds
	Rand     io.Reader        // lease ids, drive UUIDs; safe for several goroutines; crypto/rand
	Log      *slog.Logger     // discarded

	DrainDeadline time.Duration // of a close, until it leaves the drive to hang; 2 s
	CloseWait     time.Duration // of a caller of Close, for the key's destruction; 30 s
	DriveWait     time.Duration // for one drive to open; 10 s
	RetryMin      time.Duration // back-off of what failed in the background; 20 ms
	RetryMax      time.Duration // 5 s
	MaxWatches    int           // 128
	Queues        int           // of a vhost-user export that asks for no number; one a processor, at most 8

	// EraseMargin is how long before the time by which a lease must be erased it is
	// closed; half of what is left when it is opened, if that is less. 1 minute.
	EraseMargin time.Duration

	// Beacon returns the newest checkpoint of the log that is proven, or nil: records
	// name it. It must not wait. May be nil.
	Beacon func() *proof.Beacon

	// Annex returns what belongs to the CLOSE record of a lease and not into the log.
	// Where it fails the record says so by not having one: erasure and record wait for
	// nothing. May be nil.
	Annex func(l lease.Lease, drives []DriveFacts) ([]byte, error)

	// ForceForward is danger_zone's: paths of drives that get the flush class
	// "forward", whatever was probed.
	ForceForward []string

	// PredecessorGone returns nil when no engine or keeper of an earlier keeper can
	// be alive, and otherwise says what still is. Without it nobody knows: the
	// leases of a keeper that has ended stay unrecorded.
	PredecessorGone func() error

	// Unwritable returns nil, or why the journal cannot be written now: then leases
	// are listed and closed, and nothing is opened or enrolled. It is called under
	// the node's lock, so it must not wait. May be nil.
	Unwritable func() error
}

func (c Config) withDefaults() (Config, error) {
	if c.Store == nil || c.Engine == nil || c.Sockets == nil {
		return c, errors.New("node: a store, an engine and sockets are required")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.DrainDeadline, 2*time.Second)
	def(&c.CloseWait, 30*time.Second)
	def(&c.DriveWait, 10*time.Second)
	def(&c.RetryMin, 20*time.Millisecond)
	def(&c.EraseMargin, time.Minute)
	def(&c.RetryMax, 5*time.Second)
	if c.MaxWatches == 0 {
		c.MaxWatches = 128
	}
	if c.Queues == 0 {
		c.Queues = min(runtime.NumCPU(), 8)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Boottime == nil {
		c.Boottime = sys.BoottimeNs
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// A Node owns leases, drives and space. Its methods may be called from any
// goroutine, after Start has returned.
//
// Lock order: enrolMu, recoverMu, mu, a Watch's mu. Only recoverMu and enrolMu
// are held while journal or engine are called.
type Node struct {
	cfg    Config
	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup // all goroutines; added to under mu, while not ended
	fatal  chan error     // capacity 1

	enrolMu   sync.Mutex // one enrolment at a time
	recoverMu sync.Mutex // drives are opened by one goroutine at a time

	mu        sync.Mutex
	started   time.Time
	ended     bool   // Shutdown was called: no goroutine is started any more
	ready     bool   // recovery with the present engine is done
	stopping  bool   // Stop was called: no lease is opened any more
	warning   string // what went wrong in the last recovery without stopping it
	hello     ipc.Hello
	drives    map[string]*drive // by UUID
	leases    map[string]*entry // whose space is not free
	slots     []bool            // in use
	lastSlot  int               // that was found free; -1 at first
	strangers map[string]bool   // leases of the engine that the journal does not know
	keys      map[string]string // tenant, NUL, idempotency key → lease
	past      past              // ended leases
	watches   map[*Watch]struct{}
	kick      chan struct{} // closed and replaced when drives or the engine changed
}

// errEnded is what callers get who wait while the node ends.
var errEnded = &Error{Kind: Unavailable, Text: "the daemon is ending", Next: "try again when it is back"}

// errRecovering is what callers get between two engines.
var errRecovering = &Error{Kind: Recovering, Text: "the daemon is recovering from a restart", Next: "try again in a moment"}

// New reads the journal. Nothing is asked of the engine before Start.
func New(cfg Config) (*Node, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	state, err := cfg.Store.Load()
	if err != nil {
		return nil, err
	}
	n := &Node{
		cfg:       cfg,
		fatal:     make(chan error, 1),
		started:   cfg.Clock(),
		drives:    map[string]*drive{},
		leases:    map[string]*entry{},
		strangers: map[string]bool{},
		lastSlot:  -1,
		keys:      map[string]string{},
		past:      past{byID: map[string]lease.Lease{}},
		watches:   map[*Watch]struct{}{},
		kick:      make(chan struct{}),
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	for _, d := range state.Drives {
		n.drives[d.UUID] = newDrive(d)
	}
	for _, l := range state.Live {
		if err := n.adopt(l); err != nil {
			return nil, fmt.Errorf("reading lease %s from the journal: %w", l.ID, err)
		}
	}
	for _, l := range state.Ended {
		n.past.add(l)
		n.bindKey(l)
	}
	return n, nil
}

// adopt takes over a lease of the journal, with its space.
func (n *Node) adopt(l lease.Lease) error {
	for _, p := range l.Pieces {
		d := n.drives[p.Drive]
		if d == nil {
			return fmt.Errorf("drive %s: %w", p.Drive, journal.ErrNotFound)
		}
		if err := d.space.Reserve(p.Range); err != nil {
			return err
		}
	}
	if !n.takeSlot(l.Slot) {
		return fmt.Errorf("slot %d: %w", l.Slot, extent.ErrOverlap)
	}
	e := newEntry(l)
	e.unsure = true
	e.finishOpening(nil)
	n.leases[l.ID] = e
	n.bindKey(l)
	return nil
}

// maxSlots bounds what a journal may make the node allocate.
const maxSlots = 1 << 20

func (n *Node) takeSlot(i int) bool {
	if i >= maxSlots || i < len(n.slots) && n.slots[i] {
		return false
	}
	for len(n.slots) <= i {
		n.slots = append(n.slots, false)
	}
	n.slots[i] = true
	return true
}

// bindKey remembers whose idempotency key it is. An opening that failed gives
// its key back.
func (n *Node) bindKey(l lease.Lease) {
	if l.Key != "" && !(l.Result == lease.Failed && l.CloseSeq != 0) {
		n.keys[l.Tenant+"\x00"+l.Key] = l.ID
	}
}

func (n *Node) unbindKey(l lease.Lease) {
	if k := l.Tenant + "\x00" + l.Key; n.keys[k] == l.ID {
		delete(n.keys, k)
	}
}

// Start opens the drives, brings journal and engine together, and begins to take
// calls. After an error it may be called again; after nil it is not.
func (n *Node) Start(ctx context.Context) error {
	if err := n.recover(ctx, true); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.goLocked(n.watchDrives)
	n.goLocked(n.watchLosses)
	return nil
}

// Recover does what Start does with an engine that has just taken the place of
// another. Until it returns, no lease is opened.
//
// Leases that the new engine took over are open, as they were. What is closing
// meets the new engine by itself.
func (n *Node) Recover(ctx context.Context) error { return n.recover(ctx, false) }

// EngineGone notes that the engine has ended: no lease is opened before Recover
// has returned. Closing goes on, and waits for the next engine.
func (n *Node) EngineGone() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = false
}

// Shutdown ends the node's own work and waits for it. Leases stay as they are,
// for the next node to recover.
func (n *Node) Shutdown() {
	n.mu.Lock()
	n.ended = true
	for _, e := range n.leases {
		e.disarm()
	}
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
}

// Fatal delivers an error once when the journal can no longer be written: the
// process must end, and recover in the next.
func (n *Node) Fatal() <-chan error { return n.fatal }

// goLocked starts a goroutine that Shutdown waits for. REQUIRES: n.mu is held.
func (n *Node) goLocked(f func()) {
	if !n.ended {
		n.wg.Go(f)
	}
}

// storeFailed passes the journal's error on, and reports it where only a restart
// helps.
func (n *Node) storeFailed(err error) error {
	if errors.Is(err, journal.ErrBroken) {
		select {
		case n.fatal <- err:
		default: // it was reported before
		}
	}
	return err
}

// kicked returns a channel that is closed when drives or the engine change.
func (n *Node) kicked() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.kick
}

// kickLocked wakes whoever waits for a drive or the engine. REQUIRES: n.mu is held.
func (n *Node) kickLocked() {
	close(n.kick)
	n.kick = make(chan struct{})
}

// A backoff waits a little longer each time.
type backoff struct{ next time.Duration }

// wait waits, or until n ends (then it returns false), or until drives or the
// engine changed since changed was taken.
func (b *backoff) wait(n *Node, changed <-chan struct{}) bool {
	b.next = min(max(2*b.next, n.cfg.RetryMin), n.cfg.RetryMax)
	t := time.NewTimer(b.next)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-n.ctx.Done():
		return false
	}
	return true
}

// past is the ended leases that are remembered.
type past struct {
	byID  map[string]lease.Lease
	order []string // oldest first
}

// maxPast is how many; the journal keeps as many.
const maxPast = 1000

// add remembers l, and returns a lease that is forgotten instead.
func (p *past) add(l lease.Lease) (forgotten *lease.Lease) {
	if len(p.order) >= maxPast {
		old := p.byID[p.order[0]]
		delete(p.byID, p.order[0])
		p.order = p.order[1:]
		forgotten = &old
	}
	p.byID[l.ID] = l
	p.order = append(p.order, l.ID)
	return forgotten
}
