package virtioblk

import (
	"errors"
	"fmt"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/poll"
)

// Config says what a worker serves. Zero values mean the defaults.
type Config struct {
	// Export is the volume. It is used until Close has returned.
	Export blk.Device
	// ReadOnly refuses all that would change the volume, with IOERR.
	ReadOnly bool
	// ID is the answer to GET_ID: at most IDSize bytes, padded with zeros.
	ID string
	// Lock says what to do when the bounce buffers cannot be locked.
	Lock mem.Lock
	// Poll is how long a thread that has just been active looks for more to do
	// before it sleeps. 0 ≤ Poll ≤ poll.Max; 0: not at all.
	Poll time.Duration
	// Depth is how many requests the worker hands to the volume at once, of all
	// its rings. 1 ≤ Depth ≤ 1024; default 128.
	Depth int
	// Counters counts what is done; several workers may share one. nil: one of the
	// worker's own, which nobody sees.
	Counters *Counters
	// Broken is told of a ring that is served no more, and why: its index, and an
	// error that wraps virtq.ErrRing, or one that says that its memory faulted. It
	// is called on the worker's thread, must not wait, and must not call the
	// worker. nil: nobody is.
	Broken func(index int, err error)
}

// Validate reports all faults at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Export == nil {
		errs = append(errs, errors.New("no volume to export"))
	} else {
		g := c.Export.Geometry()
		if g.Size <= 0 || g.Size > blk.MaxVolume {
			errs = append(errs, fmt.Errorf("volume of %d bytes: size out of range", g.Size))
		}
		if l := int64(logicalOf(g)); l > blk.BlockSize || l&(l-1) != 0 || g.Size%l != 0 {
			errs = append(errs, fmt.Errorf("volume of %d bytes with logical blocks of %d: must be a power of two up to %d that divides the size", g.Size, l, blk.BlockSize))
		}
	}
	if len(c.ID) > IDSize {
		errs = append(errs, fmt.Errorf("id of %d bytes: must be at most %d", len(c.ID), IDSize))
	}
	if c.Poll < 0 || c.Poll > poll.Max {
		errs = append(errs, fmt.Errorf("polling for %v: must be 0 to %v", c.Poll, poll.Max))
	}
	if c.Depth < 0 || c.Depth > maxDepth {
		errs = append(errs, fmt.Errorf("depth %d: must be 1 to %d", c.Depth, maxDepth))
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Depth == 0 {
		c.Depth = defaultDepth
	}
	if c.Counters == nil {
		c.Counters = new(Counters)
	}
	if c.Broken == nil {
		c.Broken = func(int, error) {}
	}
}
