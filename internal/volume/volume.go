// Package volume is one lease's disk, as its exports see it: bounds, the device
// gate, and requests of every alignment on a device of whole blocks.
//
// # How a request moves
//
//  1. Submit puts it at the end of the queue's backlog. The oldest is started
//     when it can be: bounds, the limits, then the gate.
//  2. A request in whole blocks becomes one child. It publishes the blocks that
//     it covers, sees that nothing excludes it, and goes down: no lock, no
//     allocation.
//  3. A read that is not in whole blocks reads the blocks at its edges into
//     bounce pages, and copies from there.
//  4. A write, discard or write-zeroes that is not in whole blocks takes a ticket
//     for all blocks it covers and waits for its turn. Then it reads the blocks
//     at its edges, changes them, and writes them back, with the blocks between
//     them. What was discarded reads as zeros at once, to the byte.
//  5. The completion withdraws what was published or the ticket, wakes who waits
//     for that, tells the owner, and leaves the gate.
//
// # Rules
//
//	V1: after Shut nothing is admitted, and nothing that still waits for its
//	    turn is started (L1).
//	V2: a request with a ticket runs beside no other request that shares a block
//	    with it, on any queue; see exclusion.
//	V3: of a request that is cut into several parts and fails, N is 0: an
//	    unknown part of it was carried out.
//	V4: a bounce page is cleared when its request ends (L3).
//	V5: a request that is over the limits waits at the head of its queue's backlog,
//	    outside of the gate: closing waits for no limit.
//	V6: once the owner of a queue has quit, nothing that waits there is started.
package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// Config describes a volume.
type Config struct {
	Size    int64    // bytes, a multiple of 4096; 0: all of the device below
	Logical int      // bytes: the logical block that guests are told, 512 or 4096; 0: 512
	Lock    mem.Lock // what becomes of a queue whose bounce pages cannot be locked
	Limits  Limits   // at first; see SetLimits
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	if c.Size < 0 || c.Size > blk.MaxVolume || c.Size%blk.BlockSize != 0 {
		errs = append(errs, fmt.Errorf("volume of %d bytes: want a multiple of %d, at most 2^62", c.Size, blk.BlockSize))
	}
	if c.Logical != 0 && c.Logical != blk.SectorSize && c.Logical != blk.BlockSize {
		errs = append(errs, fmt.Errorf("logical blocks of %d bytes: want 512 or 4096", c.Logical))
	}
	return errors.Join(append(errs, c.Limits.Validate())...)
}

// A Volume is a device that takes requests of any alignment. Its queues may be
// used side by side.
type Volume struct {
	below blk.Device
	geo   blk.Geometry
	lock  mem.Lock
	gates *blk.Gates
	excl  exclusion

	limiter atomic.Pointer[limiter] // nil: nothing is limited; stored under mu

	mu     sync.Mutex
	queues map[*queue]struct{}
	past   Stats // of queues that are closed
}

// New returns the volume that lies on the device below, which works in whole
// blocks. A Config that is not valid, or does not fit the device, is the
// caller's broken invariant, and panics.
func New(below blk.Device, cfg Config) *Volume {
	if err := cfg.Validate(); err != nil {
		panic("volume: " + err.Error())
	}
	have := below.Geometry().Size &^ (blk.BlockSize - 1)
	if cfg.Size == 0 {
		cfg.Size = have
	}
	if cfg.Size == 0 || cfg.Size > have {
		panic(fmt.Sprintf("volume: %d bytes on a device of %d", cfg.Size, have))
	}
	if cfg.Logical == 0 {
		cfg.Logical = blk.SectorSize
	}
	v := &Volume{
		below:  below,
		geo:    blk.Geometry{Size: cfg.Size, Logical: cfg.Logical, Physical: blk.BlockSize},
		lock:   cfg.Lock,
		gates:  blk.NewGates(),
		queues: make(map[*queue]struct{}),
	}
	v.excl.init()
	v.SetLimits(cfg.Limits)
	return v
}

// Geometry tells what guests are told. Requests of any other alignment are
// served too: NBD clients may not have negotiated a block size.
func (v *Volume) Geometry() blk.Geometry { return v.geo }

// Shut shuts the device gate: from now on every request that is submitted, and
// every request that waits for its turn, fails with ESHUTDOWN, and new queues
// are refused. It waits for nothing. It may be called from any goroutine, and
// again.
func (v *Volume) Shut() {
	v.gates.Shut()
	v.excl.ring() // who waits for its turn, or until it is due, has to look
}

// Gate is for requests to the volume's drives that do not go through a queue: each
// enters it before it is submitted and leaves it when it has completed. Once Shut was
// called it is refused with ESHUTDOWN. drop gives it back, when nothing is in flight.
func (v *Volume) Gate() (gate *blk.Gate, drop func(), err error) {
	gate, err = v.gates.New()
	return gate, func() { v.gates.Drop(gate) }, err
}

// Idle reports whether no request that was admitted is in flight now.
func (v *Volume) Idle() bool { return v.gates.Idle() }

// Drained is closed when Shut has been called and every admitted request has
// completed. That may take as long as the drive does, and the goroutines of the
// queues must go on reaping.
func (v *Volume) Drained() <-chan struct{} { return v.gates.Drained() }

// Drain shuts the gate and waits until the volume is drained or ctx ends, whose
// error it returns.
func (v *Volume) Drain(ctx context.Context) error {
	v.Shut()
	return v.gates.Revoke(ctx)
}

// Stats counts requests that have completed.
type Stats struct {
	Reads      uint64
	Writes     uint64
	Discards   uint64 // write-zeroes included
	Flushes    uint64
	ReadBytes  uint64
	WriteBytes uint64
	Errors     uint64 // requests that failed or were refused, of any kind
	SubBlock   uint64 // requests that were not in whole blocks
}

// Stats sums the counters of all queues, those that are closed included. A queue
// tells of its requests at the end of Submit and Reap. It may be called from any
// goroutine.
func (v *Volume) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	sum := v.past
	for q := range v.queues {
		q.count.addTo(&sum)
	}
	return sum
}

// counters are one queue's, on cache lines of their own.
type counters struct {
	_                     [64]byte
	done                  [5]atomic.Uint64 // by blk.Op
	readBytes, writeBytes atomic.Uint64
	errors, subBlock      atomic.Uint64
	_                     [64]byte
}

func (c *counters) addTo(s *Stats) {
	s.Reads += c.done[blk.OpRead].Load()
	s.Writes += c.done[blk.OpWrite].Load()
	s.Flushes += c.done[blk.OpFlush].Load()
	s.Discards += c.done[blk.OpDiscard].Load() + c.done[blk.OpWriteZeroes].Load()
	s.ReadBytes += c.readBytes.Load()
	s.WriteBytes += c.writeBytes.Load()
	s.Errors += c.errors.Load()
	s.SubBlock += c.subBlock.Load()
}

// A tally is what a queue has counted and not yet told: atomic additions cost more
// than what they count, so there is one for a batch.
type tally struct {
	done                  [5]uint64 // by blk.Op
	readBytes, writeBytes uint64
	errors, subBlock      uint64
}

// add counts a request that ends with errno.
func (t *tally) add(r *blk.Request, errno syscall.Errno) {
	if errno != 0 {
		t.errors++
		return
	}
	if r.Flags&blk.Continued == 0 {
		t.done[r.Op]++
	}
	switch r.Op {
	case blk.OpRead:
		t.readBytes += uint64(r.Len)
	case blk.OpWrite:
		t.writeBytes += uint64(r.Len)
	}
}

// tell adds the tally to c, and begins a new one.
func (t *tally) tell(c *counters) {
	for op, n := range t.done {
		tell(&c.done[op], n)
	}
	tell(&c.readBytes, t.readBytes)
	tell(&c.writeBytes, t.writeBytes)
	tell(&c.errors, t.errors)
	tell(&c.subBlock, t.subBlock)
	*t = tally{}
}

func tell(c *atomic.Uint64, n uint64) {
	if n != 0 {
		c.Add(n)
	}
}
