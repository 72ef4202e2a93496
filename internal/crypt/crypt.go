// Package crypt encrypts blocks on their way down and decrypts them on their
// way up: AES-256-XTS, data unit 4096 bytes, tweak = the block's number within
// the lease (docs/ARCHITECTURE.md). What lies below a [Crypt] never sees
// plaintext (law L3).
//
// # How a request moves
//
//  1. Submit puts it at the end of the waiting requests; the oldest of them is
//     started as soon as there is scratch for it.
//  2. A write is encrypted from the parent's buffer into scratch, inside the
//     cipher gate; then a child writes the scratch below.
//  3. A read's child reads into scratch. When it is complete, the scratch is
//     decrypted into the parent's buffer, inside the cipher gate: one pass, and
//     the parent's buffer may have any alignment.
//  4. Flushes and discards pass down unchanged.
//  5. Where the device below lies in memory, steps 2 and 3 are one (window.go).
//
// # Rules
//
//	C1: the gate spans cipher calls only, at most stretch bytes each, and never
//	    I/O: [Crypt.Revoke] waits for processor time, never for a device (L5).
//	C2: once Revoke has returned, the schedule is neither read nor written.
//	C3: a read that completes after the gate was shut fails with ESHUTDOWN, and
//	    its buffer holds nothing that was decrypted for it.
//	C4: scratch holds ciphertext only.
//
// # Buffers
//
// Each queue has scratch of its own, bounded (scratchBytes), so the memory of a
// volume does not grow with what its clients ask for.
package crypt

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/plant"
	"vacate/internal/sys"
	"vacate/internal/xts"
)

const (
	// scratchBytes is the scratch of one queue, and so how much of its requests a
	// drive has at once: four of the longest kind, eight of 128 KiB, or 256 of one
	// block. Half of it halved a disk's rate of 128 KiB writes.
	scratchBytes = 4 * blk.MaxTransfer

	// stretch is the longest piece of cipher work between two looks at the
	// gate: 8 µs with AES-NI, about 0.1 ms with the generic code.
	stretch = 32 << 10
)

// A Crypt is a device whose contents are encrypted on the device below. Its
// queues may be used side by side.
type Crypt struct {
	below blk.Device
	sched *xts.Schedule
	lock  mem.Lock
	gates *blk.Gates
}

// New returns the device that keeps its blocks encrypted under s on the device
// below. The schedule is the caller's: it stays in place, expanded and
// unchanged, until Revoke has returned. The lock says what becomes of a queue
// whose scratch cannot be locked.
func New(below blk.Device, s *xts.Schedule, lock mem.Lock) *Crypt {
	return &Crypt{below: below, sched: s, lock: lock, gates: blk.NewGates()}
}

// Geometry is the geometry of the device below, in whole blocks.
func (c *Crypt) Geometry() blk.Geometry {
	return blk.Geometry{
		Size:     c.below.Geometry().Size &^ (blk.BlockSize - 1),
		Logical:  blk.BlockSize,
		Physical: blk.BlockSize,
	}
}

// Revoke shuts the cipher gates of all queues and waits for the cipher calls in
// progress: for processor time, never for a device. When it returns, the
// schedule will not be touched again (C2), and may be destroyed. Requests in
// flight end on their own, with ESHUTDOWN; new ones get it at once. It may be
// called from any goroutine, and again.
func (c *Crypt) Revoke() {
	c.gates.Shut()
	if plant.Is(plant.WipeBeforeCiphers) {
		return
	}
	// A call lasts microseconds; a wake-up through Go's scheduler takes other threads,
	// which have no turn on a busy processor, and so may take tens of milliseconds. So
	// look, and nap on this very thread: a cipher thread that it preempted gets on.
	for looks := range 10_000 { // a tenth of a second, and more
		select {
		case <-c.gates.Drained():
			return
		default:
			if looks >= 20 {
				sys.Nap(5 * time.Microsecond)
			}
		}
	}
	<-c.gates.Drained()
}

// NewQueue returns a queue with scratch of its own. After Revoke the error
// wraps ESHUTDOWN.
func (c *Crypt) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a cipher queue of depth %d: %w", depth, syscall.EINVAL)
	}
	gate, err := c.gates.New()
	if err != nil {
		return nil, fmt.Errorf("making a cipher queue: %w", err)
	}
	scratch, err := newScratch(min(scratchBytes, depth*blk.MaxTransfer), c.lock)
	if err != nil {
		c.gates.Drop(gate)
		return nil, fmt.Errorf("making a cipher queue: %w", err)
	}
	below, err := c.below.NewQueue(depth)
	if err != nil {
		c.gates.Drop(gate)
		return nil, errors.Join(err, scratch.close())
	}
	if r, ok := below.(blk.Registrar); ok {
		r.Register(scratch.buf)
	}
	q := &queue{
		c: c, gate: gate, below: below, size: c.Geometry().Size,
		feed:    blk.NewFeeder(below, depth),
		waiting: newBacklog(depth),
		scratch: scratch,
		slots:   make([]slot, depth),
		free:    make([]*slot, 0, depth),
	}
	q.windows, _ = below.(blk.Windower)
	for i := range q.slots {
		q.slots[i].q, q.slots[i].child.Done = q, &q.slots[i]
		q.free = append(q.free, &q.slots[i])
	}
	return q, nil
}
