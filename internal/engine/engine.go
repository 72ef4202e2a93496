// Package engine is the data plane's process: it opens drives, holds leases'
// layers, and serves their exports. It has no network and no state folder; it
// does what control asks over a socket (package ipc), and dies with its keeper.
// The leases outlive it: the next engine of the same keeper takes them over (law
// L8).
//
// What is where:
//
//	run.go       the process: descriptors from the keeper, in and out
//	takeover.go  what an engine finds in the volatile memory, slot by slot
//	serve.go     leases that were taken over come back, when their drives are open
//	leave.go     the planned end: connections are passed on
//	handler.go   control's calls
//	drives.go    drives: inspect, enrol, open behind their fence, close
//	table.go     the drive table, and the search for the drives in it
//	losses.go    drives that may have lost completed writes
//	lease.go     leases: open
//	hold.go      leases: served in a second step, when their record is durable
//	key.go       leases: their keys, and what is told of them
//	prepare.go   keys for tenants' shares of them
//	release.go   leases: their keys for an audit
//	raw.go       leases: what is on their drives, for an audit
//	resize.go    leases: their volumes get larger
//	close.go     leases: close, in the order of law L5
//	exports.go   the servers of one lease
//	device.go    its block device
//	stack.go     the layers of one lease, in one function
package engine

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"vacate/internal/drive"
	"vacate/internal/export/ublk"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/mem"
	"vacate/internal/sandbox"
	"vacate/internal/secret"
	"vacate/internal/volatile"
)

// A Keeper holds the volatile memory: the process above, by [volatile.Link], or
// a test's.
type Keeper interface {
	Map(slot int, blocks uint64, extents int, lease volatile.LeaseID) (*os.File, error)
	Unmap(slot int) error
	Wipe(slot int) (volatile.Wiped, error)
	Hold(slot int, listener *os.File) error
	Keep(slot, place int, f *os.File) error
	Remap(slot int, f *os.File) error
	FetchMap(slot int) (*os.File, error)
	FetchListener(slot int) (*os.File, error)
	FetchConn(slot, n int) (*os.File, uint64, error)
	FetchPlace(slot, place int) (*os.File, error)
	Pass(slot int, conn *os.File, terms uint64) error
	Up() error
	Knows(layout uint64) error
}

// Config is what an engine is made of.
type Config struct {
	Keeper     Keeper
	Keys       *volatile.Keys
	Table      *volatile.Table
	Hello      ipc.Hello     // what it says of itself; the engine fills in what it knows
	Generation uint64        // of this engine, from the table's header
	MaxConns   int           // connections at once, over all leases
	Lock       mem.Lock      // what becomes of buffers that cannot be locked
	Drives     string        // the engine of drives, one of package drive; "": the best for each
	Poll       time.Duration // how long a connection polls before its thread sleeps; 0: not at all
	FenceWait  time.Duration // how long a call of control waits for a drive's fence; 0: as drive does
	Log        *slog.Logger

	Sandbox sandbox.EngineOptions // that the process is confined by, for explanations

	seed      func(*keyshare.Seed) // fills recipient keys, in tests; nil: as it does itself
	unguarded bool                 // tenants' shares are taken though package secret is not Enabled; for tests

	serveBlock func(*os.File, ublk.Config) (blockDevice, error) // in tests; nil: ublk.Serve

	at func(fail.Point) // called at each point of package fail, by tests; nil: nothing
}

// An Engine holds drives and leases. Its methods may be called from any
// goroutine.
type Engine struct {
	cfg     Config
	keeper  Keeper
	keys    *volatile.Keys
	table   *volatile.Table
	conns   *budget
	started time.Time

	prepared prepared
	erasing  atomic.Int32  // closes between gate and destroyed key
	litter   chan struct{} // has a value when a lease has gone

	toldFull atomic.Int64 // when the log was told that the keeper is full: Unix time in seconds

	up        chan struct{}   // closed when everything is taken over: nothing is served before
	ctx       context.Context // ended by leave; then nothing is begun any more
	cancel    context.CancelFunc
	searching sync.WaitGroup // for drives: each may last as long as opening a file does
	returning sync.WaitGroup // leases that were taken over: processor time only
	watching  sync.WaitGroup // over drives; ends with ctx

	mu      sync.Mutex
	drives  map[string]*openDrive // by UUID
	places  [volatile.DriveSlots]bool
	leases  map[string]*tenancy // by id: everything that holds a slot and extents
	ready   map[string]*tenancy // those of leases whose opening has succeeded
	losses  losses
	opened  uint64  // the number of the last opening of a drive; no engine before this one has reached it
	ended   endings // leases that are gone, while they are remembered
	leaving bool    // no lease comes back any more
}

// New returns an engine without drives and leases. What is in the volatile memory
// already comes with [Engine.TakeOver], before any call of control's.
func New(cfg Config) *Engine {
	cfg.Hello.Slots = volatile.Slots
	cfg.Hello.MaxConns = cfg.MaxConns
	cfg.Hello.KeyStore = cfg.Keys.Kind()
	cfg.Hello.Shares = secret.Why()
	e := &Engine{
		cfg: cfg, keeper: cfg.Keeper, keys: cfg.Keys, table: cfg.Table, started: time.Now(),
		conns:  &budget{max: int64(cfg.MaxConns)},
		up:     make(chan struct{}),
		litter: make(chan struct{}, 1),
		drives: map[string]*openDrive{},
		leases: map[string]*tenancy{},
		ready:  map[string]*tenancy{},
		losses: losses{seen: cfg.Generation<<32 + 1, news: make(chan struct{})},
		opened: cfg.Generation << 32,
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

// at marks a point at which a hunt ends the process, or a test abandons the
// engine.
func (e *Engine) at(p fail.Point) {
	fail.At(p)
	if e.cfg.at != nil {
		e.cfg.at(p)
	}
}

// openDrive is a drive that this engine has open, or wants to have: as long as
// it has a record in the table, it is open or looked for.
type openDrive struct {
	drive   *drive.Drive // nil while it is not open
	opening uint64       // its number
	busy    bool         // one call, or a search, is opening, renewing or closing it, and may change drive and rec
	closing bool         // that call is closing it

	place   int                  // in the drive table; -1 without a record
	rec     volatile.DriveRecord // what stands there
	search  *search              // not nil: it is busy because the engine looks for it on its own
	waiting int                  // calls that the search shall give way to
}

// allow admits root, the daemon's own uid, and the lease's.
func (e *Engine) allow(uid uint32) func(uint32) bool {
	self := uint32(os.Geteuid())
	return func(peer uint32) bool { return peer == 0 || peer == self || peer == uid }
}

// A budget bounds the connections of the host. Its last quarter is kept for
// leases that have none: whoever takes all that it can get does not lock its
// neighbours out.
type budget struct {
	max     int64
	mu      sync.Mutex
	used    int64
	refused uint64
}

// lease returns what admits the connections of one lease: new ones, and again
// those that the engine before this one has passed on. The latter had their
// places, whatever the order in which leases come back: nothing is kept from them.
func (b *budget) lease() (admit, readmit func() (release func(), err error)) {
	var held int64 // by this lease; under b.mu
	take := func(again bool) (func(), error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		limit, kept := b.max, ""
		if held > 0 && b.max >= 4 && !again {
			limit -= b.max / 4
			kept = fmt.Sprintf(", and keeps the last %d for leases that have none", b.max/4)
		}
		if b.used >= limit {
			b.refused++
			return nil, fmt.Errorf("this host serves at most %d connections at once%s: close one, or raise max_connections", b.max, kept)
		}
		b.used, held = b.used+1, held+1
		return sync.OnceFunc(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.used, held = b.used-1, held-1
		}), nil
	}
	return func() (func(), error) { return take(false) }, func() (func(), error) { return take(true) }
}

func (b *budget) counts() (used int64, refused uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.refused
}

// endings remembers how the last leases ended, for a control that restarts
// between a close and its record. Those whose slot is not in use again stand in
// the lease table too, for an engine that restarts.
type endings struct {
	byID  map[string]ipc.Erasure
	order []string
}

const maxEndings = 1024

func (n *endings) add(id string, er ipc.Erasure) {
	if n.byID == nil {
		n.byID = map[string]ipc.Erasure{}
	}
	if len(n.order) == maxEndings {
		delete(n.byID, n.order[0])
		n.order = n.order[1:]
	}
	er.Drained = true
	n.byID[id] = er
	n.order = append(n.order, id)
}
