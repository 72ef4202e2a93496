// Package engine is the data plane's process: it opens drives, holds leases'
// layers, and serves their exports. It has no network and no state folder; it
// does what control asks over a socket (package ipc), and dies with its keeper.
//
// What is where:
//
//	run.go      the process: descriptors from the keeper, in and out
//	handler.go  control's calls
//	drives.go   drives: inspect, enrol, open behind their fence
//	lease.go    leases: open, and close in the order of law L5
//	stack.go    the layers of one lease, in one function
package engine

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"vacate/internal/drive"
	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/volatile"
)

// A Keeper holds the volatile memory: the process above, or a test's.
type Keeper interface {
	// Map makes the block map of a lease of so many blocks and extents, in a memfd
	// of the layout of docs/spec/volatile.md.
	Map(slot int, blocks uint64, extents int, lease volatile.LeaseID) (*os.File, error)
	// Unmap drops the keeper's hold on it.
	Unmap(slot int) error
	// Wipe overwrites the key slot and reads it back.
	Wipe(slot int) (volatile.Wiped, error)
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
	FenceWait  time.Duration // how long a drive's fence is waited for; 0: as drive does
	Log        *slog.Logger
}

// An Engine holds drives and leases. Its methods may be called from any
// goroutine.
type Engine struct {
	cfg    Config
	keeper Keeper
	keys   *volatile.Keys
	table  *volatile.Table
	conns  *budget

	mu     sync.Mutex
	drives map[string]*openDrive // by UUID
	leases map[string]*tenancy   // by id: everything that holds a slot and extents
	ready  map[string]*tenancy   // those of leases whose opening has succeeded
	ended  endings               // leases that are gone, while they are remembered
}

// openDrive is a drive of this engine.
type openDrive struct {
	drive   *drive.Drive // nil while it is being opened for the first time
	busy    bool         // one call is opening, renewing or closing it, and may change drive
	closing bool         // that call is closing it
}

// New returns an engine without drives and leases.
func New(cfg Config) *Engine {
	cfg.Hello.Slots = volatile.Slots
	cfg.Hello.MaxConns = cfg.MaxConns
	cfg.Hello.KeyStore = cfg.Keys.Kind()
	return &Engine{
		cfg: cfg, keeper: cfg.Keeper, keys: cfg.Keys, table: cfg.Table,
		conns:  &budget{max: int64(cfg.MaxConns)},
		drives: map[string]*openDrive{},
		leases: map[string]*tenancy{},
		ready:  map[string]*tenancy{},
	}
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

// lease returns what admits the connections of one lease.
func (b *budget) lease() (admit func() (release func(), err error)) {
	var held int64 // by this lease; under b.mu
	return func() (func(), error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		limit, kept := b.max, ""
		if held > 0 && b.max >= 4 {
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
}

func (b *budget) counts() (used int64, refused uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.refused
}

// endings remembers how the last leases ended, for a control that restarts
// between a close and its record.
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
