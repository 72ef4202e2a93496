package devices

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/nbdctl"
	"vacate/internal/sys"
)

// The fallback: the kernel's nbd driver over a lease's NBD socket.
//
//  1. make connects to the socket, and enters transmission.
//  2. start gives the connection to the kernel. The device's mark is its backend
//     identifier, vacate:RUN:LEASE.
//  3. When the engine ends, the kernel tells that the connection is dead, and the
//     device's goroutine (nbdlink.go) makes another: the keeper holds the listening
//     socket, so that it waits there for the next engine.
//  4. The kernel sends what waited, and what was in flight, over that one.
//
// A device of ours that lives has our patience (nbdctl.SetPatience), which is set last
// by start. One that has our mark without it is on its way out: it was not started to
// the end, or was disconnected, and someone still has it open.
//
// The kernel carries out two things only when nothing is in flight: a change of size,
// while it holds the lock that all commands need, and a change of patience. So a size
// is changed only while nobody uses the device, and patience only while what is in
// flight can end: connected, kept so, or disconnected.

// nbdConns is how many connections a device has. With several, the driver sends a
// request that takes its time a second time while the engine still works on the first
// (package nbdctl): on a drive that hangs and comes back, an old write could land after
// a newer one. With one, it does so only when the first is known to be dead.
const nbdConns = 1

const (
	// nbdPatience is what a request that was in flight when its engine ended waits at
	// the most, beyond the next engine's start. Each time that it passes over a request
	// that takes so long, the kernel's log has a line.
	nbdPatience = 2 * time.Second
	// nbdDeadTime is how long requests wait for an engine, before they fail: one may
	// have to wait for a drive that is away.
	nbdDeadTime = 24 * time.Hour
	// nbdAnswer is how long the socket of an open lease may take to answer.
	nbdAnswer = 20 * time.Second
	// nbdGone is how long a device may take to go that nobody uses.
	nbdGone = 10 * time.Second
)

// nbdKernel is [nbdctl.Control]; tests have another.
type nbdKernel interface {
	Connect(nbdctl.Config) (int, error)
	Reconfigure(int, nbdctl.Change) error
	Disconnect(int) error
	List() (map[int]string, error)
	Size(int) (int64, error)
	SetPatience(int, time.Duration) error
	Patience(int) (time.Duration, error)
	Close() error
}

// nbdConfig is what the driver needs.
type nbdConfig struct {
	RunDir string // its name is in the devices' marks, and leases' sockets are below
	Log    *slog.Logger

	kernel nbdKernel
	watch  func(context.Context) (func(func(int)) error, error)
	dev    string // /dev
	// usage is an error that says who uses the device of that name; asleep: nothing
	// answers its reads, and it must not be opened.
	usage    func(name string, asleep bool) error
	handOver func(node string, uid uint32) error
}

// nbdDriver makes devices of the kernel's nbd driver.
type nbdDriver struct {
	nbdConfig
	prefix string // of the marks of this run folder's devices

	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu    sync.Mutex
	made  map[string]*nbdMade // by lease: from make to start
	links map[int]*nbdLink    // by number: what keeps a device connected
}

// nbdMade is what make leaves to start.
type nbdMade struct {
	conns  []*os.File // none: the device is there already
	export nbdclient.Export
	req    ipc.DeviceMakeRequest
}

// openNBD opens the driver of nbd devices.
func openNBD(c *Config, load bool) (driver, error) {
	// Asking for the driver loads it, where the kernel finds modprobe.
	if _, err := os.Stat("/sys/module/nbd"); errors.Is(err, fs.ErrNotExist) {
		if !load {
			return nil, nbdctl.ErrNoDriver
		}
		loadModule("nbd")
	}
	kernel, err := nbdctl.Open()
	if err != nil {
		return nil, err
	}
	return newNBD(nbdConfig{
		RunDir: c.RunDir, Log: c.Log, kernel: nbdGuarded{kernel, c.fatal, nbdCommand}, watch: nbdctl.Watch,
		dev: realHost.dev, usage: realHost.usage, handOver: sys.HandOver,
	})
}

// newNBD takes the kernel over, and goes on with the devices of the run folder that
// are there.
func newNBD(cfg nbdConfig) (*nbdDriver, error) {
	d := &nbdDriver{nbdConfig: cfg, made: map[string]*nbdMade{}, links: map[int]*nbdLink{}}
	d.prefix = nbdPrefix(cfg.RunDir)
	d.ctx, d.cancel = context.WithCancel(context.Background())
	if err := d.begin(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// nbdPrefix is what the marks of a run folder's devices begin with.
func nbdPrefix(runDir string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(runDir)))
	return "vacate:" + hex.EncodeToString(sum[:8]) + ":"
}

// begin listens for connections that die, and then takes over what is there.
func (d *nbdDriver) begin() error {
	listen, err := d.watch(d.ctx)
	if err != nil {
		return err
	}
	d.running.Go(func() { d.listen(listen) })
	ours, err := d.ours()
	if err != nil {
		return err
	}
	for _, o := range ours {
		if o.live {
			d.link(o.lease, o.index, filepath.Join(d.RunDir, "leases", o.lease, "nbd.sock"))
		}
	}
	return nil
}

func (d *nbdDriver) kind() string { return ipc.DeviceNBD }

func (d *nbdDriver) node(index int) string {
	return filepath.Join(d.dev, "nbd"+strconv.Itoa(index))
}

// nbdOurs is a device that has our mark.
type nbdOurs struct {
	lease string
	index int
	live  bool // and our patience
}

// ours returns the devices that have the mark of this run folder.
func (d *nbdDriver) ours() ([]nbdOurs, error) {
	marks, err := d.kernel.List()
	if err != nil {
		return nil, err
	}
	var all []nbdOurs
	for index, mark := range marks {
		lease, ok := strings.CutPrefix(mark, d.prefix)
		if !ok {
			continue
		}
		p, err := d.kernel.Patience(index)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, nbdOurs{lease: lease, index: index, live: p == nbdPatience})
	}
	return all, nil
}

// find returns a lease's live device, and all that have its mark.
func (d *nbdDriver) find(lease string) (index int, all []int, err error) {
	ours, err := d.ours()
	index = -1
	for _, o := range ours {
		if o.lease != lease {
			continue
		}
		all = append(all, o.index)
		if o.live {
			index = o.index
		}
	}
	return index, all, err
}

func (d *nbdDriver) make(ctx context.Context, r *ipc.DeviceMakeRequest) (ipc.DeviceMade, *os.File, error) {
	if r.Socket == "" {
		return ipc.DeviceMade{}, nil, refuse(ipc.CodeUnsupported,
			"lease %s has no NBD export, over which this host's kernel would reach it: open the lease with --export nbd too, or load the kernel's ublk driver (`modprobe ublk_drv`)", r.Lease)
	}
	index, _, err := d.find(r.Lease)
	if err != nil {
		return ipc.DeviceMade{}, nil, err
	}
	m := &nbdMade{req: *r}
	if index >= 0 {
		d.link(r.Lease, index, r.Socket).mend(r.Socket)
	} else if m.conns, m.export, err = d.reach(ctx, r); err != nil {
		return ipc.DeviceMade{}, nil, err
	} else if err := m.check(); err != nil {
		return ipc.DeviceMade{}, nil, errors.Join(err, closeAll(m.conns))
	}
	if err := d.put(r.Lease, m); err != nil {
		return ipc.DeviceMade{}, nil, err
	}
	return ipc.DeviceMade{Kind: ipc.DeviceNBD, Queues: nbdConns}, nil, nil
}

// put has start find m, and ends what an earlier make has left. nil: there is nothing.
func (d *nbdDriver) put(lease string, m *nbdMade) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.made[lease]
	if delete(d.made, lease); m != nil {
		d.made[lease] = m
	}
	if old == nil {
		return nil
	}
	return closeAll(old.conns)
}

// reach is connect, for a lease that is open.
func (d *nbdDriver) reach(ctx context.Context, r *ipc.DeviceMakeRequest) ([]*os.File, nbdclient.Export, error) {
	ctx, cancel := context.WithTimeout(ctx, nbdAnswer)
	defer cancel()
	conns, e, err := d.connect(ctx, r.Socket)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		err = refuse(ipc.CodeNotFound, "lease %s has no NBD export at %s: open the lease with --export nbd too (%v)", r.Lease, r.Socket, err)
	case err != nil:
		err = fmt.Errorf("lease %s: %w", r.Lease, err)
	}
	return conns, e, err
}

// connect enters transmission on a socket as often as a device has connections.
func (d *nbdDriver) connect(ctx context.Context, socket string) (conns []*os.File, e nbdclient.Export, err error) {
	for range nbdConns {
		var f *os.File
		if f, e, err = nbdclient.Socket(ctx, socket); err != nil {
			return nil, e, errors.Join(err, closeAll(conns))
		}
		conns = append(conns, f)
	}
	return conns, e, nil
}

// check compares what the server tells with what was asked for.
func (m *nbdMade) check() error {
	switch {
	case m.export.Size != m.req.SizeBytes:
		return fmt.Errorf("lease %s has %d bytes, and its NBD export %d", m.req.Lease, m.req.SizeBytes, m.export.Size)
	case int64(m.export.BlockSizes[0]) > int64(m.req.LogicalBlock):
		return refuse(ipc.CodeInvalid, "lease %s cannot have blocks of %d bytes: its NBD export takes no less than %d", m.req.Lease, m.req.LogicalBlock, m.export.BlockSizes[0])
	case len(m.conns) > 1 && m.export.Flags&nbdclient.CanMultiConn == 0:
		return fmt.Errorf("lease %s: its NBD export does not allow several connections", m.req.Lease)
	}
	return nil
}

func closeAll(files []*os.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// served is described at [driver]. This process has the sockets itself: there is nothing
// to take up of what another one made.
func (d *nbdDriver) served(context.Context, string, uint32) error { return nil }

func (d *nbdDriver) start(ctx context.Context, lease string, _ int) (string, error) {
	d.mu.Lock()
	m := d.made[lease]
	delete(d.made, lease)
	d.mu.Unlock()
	index, _, err := d.find(lease)
	switch {
	case err != nil:
	case index >= 0:
		err = d.settle(ctx, index, m)
	case m == nil || len(m.conns) == 0:
		err = fmt.Errorf("lease %s: %w", lease, errNoDevice)
	default:
		index, err = d.bring(m)
	}
	if m != nil {
		err = errors.Join(err, closeAll(m.conns))
	}
	if err != nil {
		return "", err
	}
	return d.node(index), nil
}

// bring makes a device of what make has readied.
func (d *nbdDriver) bring(m *nbdMade) (index int, err error) {
	lease := m.req.Lease
	index, err = d.kernel.Connect(nbdctl.Config{
		Conns: m.conns, SizeBytes: m.req.SizeBytes, BlockBytes: m.req.LogicalBlock, ServerFlags: m.export.Flags,
		DeadConnTimeout: nbdDeadTime, Backend: d.prefix + lease,
	})
	switch {
	case errors.Is(err, nbdctl.ErrFull):
		return -1, refuse(ipc.CodeBusy, "lease %s: %v", lease, err)
	case errors.Is(err, nbdctl.ErrNoPermission), errors.Is(err, nbdctl.ErrTooOld):
		return -1, refuse(ipc.CodeUnsupported, "lease %s: %v", lease, err)
	case err != nil:
		return -1, fmt.Errorf("lease %s: %w", lease, err)
	}
	d.link(lease, index, m.req.Socket)
	if err = d.give(index, m.req.UID); err == nil {
		err = d.kernel.SetPatience(index, nbdPatience)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("lease %s: %w", lease, err), d.retire(index))
	}
	return index, nil
}

// give gives a node to a user, and to nobody else.
func (d *nbdDriver) give(index int, uid uint32) error {
	node := d.node(index)
	err := d.handOver(node, uid)
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(ipc.CodeUnsupported, "the kernel made device %s, and no node is here: where /dev is not the kernel's own (devtmpfs), as in a container, mount the host's /dev", node)
	}
	if err != nil {
		return fmt.Errorf("giving %s to uid %d: %w", node, uid, err)
	}
	return nil
}

// settle waits until a device that lost its connections has them again. m is nil if
// make was not asked before.
func (d *nbdDriver) settle(ctx context.Context, index int, m *nbdMade) error {
	if err := d.connected(ctx, index); err != nil || m == nil {
		return err
	}
	return d.give(index, m.req.UID)
}

// connected waits until a device has its connections.
func (d *nbdDriver) connected(ctx context.Context, index int) error {
	d.mu.Lock()
	l := d.links[index]
	d.mu.Unlock()
	if l == nil {
		return fmt.Errorf("nobody keeps %s connected: %w", d.node(index), errNoDevice)
	}
	if err := l.wait(ctx); err != nil {
		return fmt.Errorf("waiting for the NBD export behind %s: %w", d.node(index), err)
	}
	return nil
}

func (d *nbdDriver) close() error {
	d.cancel()
	d.running.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	errs := []error{d.kernel.Close()}
	for _, m := range d.made {
		errs = append(errs, closeAll(m.conns))
	}
	clear(d.made)
	return errors.Join(errs...)
}
