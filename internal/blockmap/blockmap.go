// Package blockmap remembers which blocks of a volume its lease has written,
// and answers for all others: they read as zeros, without any I/O. So a lease
// never sees what its drive holds from before (law L4).
//
// # How a request moves
//
//  1. A read is cut into runs of written and unwritten blocks. Unwritten runs
//     are zeroed in the parent's buffer; for each written run a child reads
//     into its part of the buffer.
//  2. A write is one child. When the drive has completed it, its blocks become
//     written, and only then the parent completes.
//  3. A discard or write-zeroes makes its blocks unwritten, and does no I/O.
//  4. A flush passes down.
//
// # Rules
//
//	R1: a block becomes written only after the drive completed a write of the
//	    whole block, and before the writer is told.
//	R2: a failed write changes no block's state: what was unwritten goes on
//	    reading as zeros, however much of it reached the drive.
//	R3: a write and a discard of a block that run side by side leave it
//	    unwritten, or written with the new data.
//
// All requests are in whole blocks. Sub-block requests, and the order of those
// that overlap, are the volume's business.
package blockmap

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
	"syscall"

	"vacate/internal/blk"
)

// A Map is a device whose unwritten blocks read as zeros. Its queues may be
// used side by side.
type Map struct {
	below blk.Device
	bits  Bits

	// written counts the blocks whose bit is set, of those that are counted. It is
	// touched only when a bit changes: rewriting a block, the common case, shares
	// nothing.
	written atomic.Int64
	counted atomic.Bool // all of them are

	counting sync.Mutex // held while bits change until all are counted
	next     uint64     // blocks before it are counted, the start of a region; under counting
}

// New returns the device that the bits describe, on a device below that has
// room for all blocks. The bits stay the caller's, mapped until the last queue
// is closed; their present state is the map's, and what of it is written is
// counted by Count. Bits or a device that do not fit together are the caller's
// broken invariant, and panic.
func New(below blk.Device, b Bits) *Map {
	if err := b.check(); err != nil {
		panic("blockmap: " + err.Error())
	}
	if have := below.Geometry().Size; have < int64(b.Blocks*blk.BlockSize) {
		panic(fmt.Sprintf("blockmap: %d blocks on a device of %d bytes", b.Blocks, have))
	}
	m := &Map{below: below, bits: b}
	// A map without a summary bit, as all are at first, has nothing to count.
	m.counted.Store(!b.touched(0) && b.nextTouched(0) >= ceil(b.Blocks, 64))
	return m
}

// Count counts the blocks that were written when the map was made, for Written.
// It may run beside everything else, and ends early with ctx. It looks at one
// word of 64 blocks after the other, where there are any.
func (m *Map) Count(ctx context.Context) {
	for !m.counted.Load() && ctx.Err() == nil {
		m.countRegion()
	}
}

// countRegion counts one region more.
func (m *Map) countRegion() {
	m.counting.Lock()
	defer m.counting.Unlock()
	w := m.next / 64
	if w < ceil(m.bits.Blocks, 64) && !m.bits.touched(w) {
		w = m.bits.nextTouched(w)
	}
	end := min((w/regionWords+1)*regionWords, ceil(m.bits.Blocks, 64))
	for ; w < end; w++ {
		m.written.Add(int64(bits.OnesCount64(m.bits.Words[w].Load())))
	}
	m.next = end * 64
	if end == ceil(m.bits.Blocks, 64) {
		m.counted.Store(true)
	}
}

// Geometry is the map's: whole blocks.
func (m *Map) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(m.bits.Blocks * blk.BlockSize), Logical: blk.BlockSize, Physical: blk.BlockSize}
}

// Written returns how many bytes are in written blocks, of those that are counted
// so far. It may be called from any goroutine, at any time, and costs nothing.
func (m *Map) Written() int64 { return m.written.Load() * blk.BlockSize }

// set and clear change blocks and count.
func (m *Map) set(lo, hi uint64) {
	if m.bits.have(lo, hi) {
		return
	}
	if n := m.change(true, lo, hi); n != 0 {
		m.written.Add(int64(n))
	}
}

func (m *Map) clear(lo, hi uint64) {
	if n := m.change(false, lo, hi); n != 0 {
		m.written.Add(-int64(n))
	}
}

// change makes blocks lo … hi-1 written or unwritten, and returns how many of
// those that are counted were not. Count finds the others as they are then.
func (m *Map) change(written bool, lo, hi uint64) (changed int) {
	f := m.bits.clear
	if written {
		f = m.bits.set
	}
	if m.counted.Load() {
		return f(lo, hi)
	}
	m.counting.Lock()
	defer m.counting.Unlock()
	counted := min(max(lo, m.next), hi)
	if lo < counted {
		changed = f(lo, counted)
	}
	if counted < hi {
		f(counted, hi)
	}
	return changed
}

// Extents calls yield for the extents of the range of length bytes from off on,
// in order, alternately written and unwritten, until it returns false. Together
// they tile the part of the range that lies in the volume; the first and the
// last are cut to it. It may be called from any goroutine; a block that changes
// meanwhile is reported in either state.
//
// An extent costs one load for each 256 KiB of it, and one for each 8 GiB in
// regions that were never written.
func (m *Map) Extents(off, length int64, yield func(off, length int64, written bool) bool) {
	size := m.Geometry().Size
	if off < 0 || length <= 0 || off >= size {
		return
	}
	end := off + min(length, size-off)
	last := ceil(uint64(end), blk.BlockSize)
	for off < end {
		until, written := m.bits.run(uint64(off)/blk.BlockSize, last)
		next := min(end, int64(until*blk.BlockSize))
		if !yield(off, next-off, written) {
			return
		}
		off = next
	}
}

// extraChildren bounds how many children a queue has in flight beyond its
// depth, for reads that are cut into many runs.
const extraChildren = 64

// NewQueue returns a queue. The queue below it is deeper: a read may have
// several children.
func (m *Map) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a map queue of depth %d: %w", depth, syscall.EINVAL)
	}
	children := depth + min(depth, extraChildren)
	below, err := m.below.NewQueue(children)
	if err != nil {
		return nil, err
	}
	q := &queue{
		m: m, below: below, size: m.Geometry().Size,
		feed:    blk.NewFeeder(below, children),
		waiting: blk.NewFIFO(depth),
		reads:   make([]read, depth),
		kids:    make([]child, children),
	}
	for i := range q.reads {
		q.freeReads = append(q.freeReads, &q.reads[i])
	}
	for i := range q.kids {
		q.kids[i].q, q.kids[i].req.Done = q, &q.kids[i]
		q.freeKids = append(q.freeKids, &q.kids[i])
	}
	return q, nil
}
