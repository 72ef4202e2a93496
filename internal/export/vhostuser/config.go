package vhostuser

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/poll"
)

// A Keeper holds descriptors over the end of this process, in the places of one
// lease. Keep is called from one goroutine at a time, Fetch from many.
type Keeper interface {
	// Keep puts a second descriptor of f into a place, instead of what is there. nil
	// empties the place; an empty one stays so. f stays the caller's.
	Keep(place int, f *os.File) error
	// Fetch returns a descriptor of what is in a place, which becomes the
	// caller's; nil, nil: nothing is.
	Fetch(place int) (*os.File, error)
}

// The places of a lease, 0 ≤ place < Places. All but the first two are the
// session's, whose record says what lies where (docs/spec/vhostuser.md).
const (
	PlaceListener = 0 // the listening socket: the engine puts it there, and takes it back
	PlaceSession  = 1 // the session file
	Places        = 256

	placeFirst = 2 // of those that a record names
)

// Bounds of Config.
const (
	MaxQueues = 64
	MaxPoll   = poll.Max
	MaxID     = 20 // bytes (virtio 1.2, 5.2.6: VIRTIO_BLK_T_GET_ID)
)

// Config says what is served, and to whom. Zero values mean the defaults.
type Config struct {
	// Export is the volume. It is used until Wait has returned.
	Export blk.Device
	// Queues is how many virtqueues the frontend may use. 1 ≤ Queues ≤ MaxQueues;
	// default 1. The same for every Serve of a lease.
	Queues int
	// ReadOnly refuses what would change the volume (VIRTIO_BLK_F_RO).
	ReadOnly bool
	// ID is what the guest reads as the disk's serial number, at most MaxID bytes.
	ID string
	// Keeper holds what a successor needs to go on with the session. nil: nobody
	// does, and the session ends with this server.
	Keeper Keeper
	// Admit takes a place in the host's budget of connections, when a frontend has
	// connected. nil admits all. release may be nil.
	Admit func() (release func(), err error)
	// Readmit is Admit for a session that is taken over. nil: Admit.
	Readmit func() (release func(), err error)
	// Allow decides by the peer's user id (SO_PEERCRED). nil allows all.
	Allow func(uid uint32) bool
	// Lock says what to do when a worker's buffers cannot be locked.
	Lock mem.Lock
	// Log gets sessions that fail, at level debug: what a frontend sends never
	// fills a log. nil discards.
	Log *slog.Logger
	// Poll is how long a ring that has just been active is looked at again before
	// its thread sleeps. 0 ≤ Poll ≤ MaxPoll; 0: not at all.
	Poll time.Duration
	// Depth is how many requests a worker carries out at once. 1 ≤ Depth ≤ 1024;
	// default 128. More wait in their rings.
	Depth int
	// Cores is how many workers there are at most: rings share their threads when
	// there are more rings. Default: the processors of this process.
	Cores int
}

const (
	maxDepth     = 1024
	defaultDepth = 128
)

// Validate reports all faults at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Export == nil {
		errs = append(errs, errors.New("no volume to export"))
	} else {
		g := c.Export.Geometry()
		if g.Size <= 0 || g.Size > blk.MaxVolume || g.Size%blk.SectorSize != 0 {
			errs = append(errs, fmt.Errorf("volume of %d bytes: must be a multiple of %d, at most %d", g.Size, blk.SectorSize, int64(blk.MaxVolume)))
		}
		if l := g.Logical; l < 1 || l > blk.BlockSize || l&(l-1) != 0 {
			errs = append(errs, fmt.Errorf("volume with logical blocks of %d bytes: must be a power of two up to %d", l, blk.BlockSize))
		}
	}
	if c.Queues < 0 || c.Queues > MaxQueues {
		errs = append(errs, fmt.Errorf("%d queues: must be 1 to %d", c.Queues, MaxQueues))
	}
	if len(c.ID) > MaxID {
		errs = append(errs, fmt.Errorf("serial number of %d bytes: must be at most %d", len(c.ID), MaxID))
	}
	if c.Poll < 0 || c.Poll > MaxPoll {
		errs = append(errs, fmt.Errorf("polling for %v: must be 0 to %v", c.Poll, MaxPoll))
	}
	if c.Depth < 0 || c.Depth > maxDepth {
		errs = append(errs, fmt.Errorf("depth %d: must be 1 to %d", c.Depth, maxDepth))
	}
	if c.Cores < 0 {
		errs = append(errs, fmt.Errorf("%d workers: must not be negative", c.Cores))
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Admit == nil {
		c.Admit = func() (func(), error) { return nil, nil }
	}
	if c.Readmit == nil {
		c.Readmit = c.Admit
	}
	if c.Allow == nil {
		c.Allow = func(uint32) bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Depth == 0 {
		c.Depth = defaultDepth
	}
	if c.Cores == 0 {
		c.Cores = runtime.GOMAXPROCS(0)
	}
	if c.Keeper == nil {
		c.Keeper = nobody{}
	}
}

// nobody is the keeper of a server without one.
type nobody struct{}

func (nobody) Keep(int, *os.File) error    { return nil }
func (nobody) Fetch(int) (*os.File, error) { return nil, nil }
