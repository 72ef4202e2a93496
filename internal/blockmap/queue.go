package blockmap

import (
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/fail"
	"vacate/internal/mem"
	"vacate/internal/plant"
)

// A queue is one goroutine's way through a Map.
//
// Invariants:
//
//	Q1: a parent is in waiting, or is a read in progress, or has exactly one
//	    child that carries it; never more than depth.
//	Q2: only children below hold slots, so what waits for one is always looked
//	    at again.
type queue struct {
	m       *Map
	size    int64 // bytes
	below   blk.Queue
	feed    blk.Feeder
	waiting blk.FIFO // parents that have not been started

	reads     []read
	freeReads []*read
	cutting   *read // the one read that is being cut and lacks children, or nil
	kids      []child
	freeKids  []*child

	delivered int // completions since the queue was made
}

// A read is a parent that is cut into runs.
type read struct {
	parent *blk.Request
	next   int64 // bytes from the start of the volume: what lies before is cut
	left   int   // children in flight
	failed int64 // bytes from the start of the parent that are good: its Len, or less after errno
	errno  syscall.Errno
}

// A child is what the queue below gets.
type child struct {
	q      *queue
	parent *blk.Request // of a request that is not cut
	read   *read        // or the read that it is a part of
	req    blk.Request
}

// Submit carries out what needs no I/O, and hands down the rest.
func (q *queue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		q.waiting.Push(r)
	}
	q.feed.Run(q)
}

// Reap delivers completions of the queue below, which is also where it waits.
func (q *queue) Reap(wait bool) int {
	before := q.delivered
	for {
		q.below.Reap(wait && q.delivered == before && q.feed.InFlight() > 0)
		q.feed.Run(q)
		if !wait || q.delivered != before || q.feed.InFlight() == 0 || q.feed.Running() {
			return q.delivered - before
		}
	}
}

// Pending implements [blk.Waiter]. What waits here waits for what is in flight
// below (Q2).
func (q *queue) Pending(w *blk.Wait) {
	if q.feed.InFlight() > 0 {
		blk.Pending(q.below, w)
	}
}

// Close closes the queue below. REQUIRES: nothing in flight.
func (q *queue) Close() error {
	if q.waiting.Len() > 0 || q.cutting != nil || len(q.freeKids) < len(q.kids) {
		panic("blockmap: queue closed with requests in flight")
	}
	return q.below.Close()
}

// Fill goes on with the read that lacked children, and then starts what waits,
// oldest first, until children run out.
func (q *queue) Fill() {
	if q.cutting != nil && !q.cut(q.cutting) {
		return
	}
	for len(q.freeKids) > 0 {
		r := q.waiting.Peek()
		if r == nil {
			return
		}
		q.waiting.Pop()
		if !q.start(r) {
			return
		}
	}
}

// start begins r. It reports false when r is a read that still lacks children.
func (q *queue) start(r *blk.Request) bool {
	if r.Op == blk.OpFlush {
		q.pass(r)
		return true
	}
	if !r.InRange(q.size) || (r.Off|r.Len)%blk.BlockSize != 0 {
		q.finish(r, 0, syscall.EINVAL)
		return true
	}
	lo, hi := blocks(r)
	switch r.Op {
	case blk.OpRead:
		return q.read(r)
	case blk.OpWrite:
		if plant.Is(plant.BitEarly) {
			q.m.set(lo, hi)
		}
		fail.At(fail.WriteBegun)
		q.pass(r)
	case blk.OpDiscard, blk.OpWriteZeroes:
		q.m.clear(lo, hi)
		q.finish(r, r.Len, 0)
	default:
		q.finish(r, 0, syscall.EOPNOTSUPP)
	}
	return true
}

func blocks(r *blk.Request) (lo, hi uint64) {
	return uint64(r.Off) / blk.BlockSize, uint64(r.Off+r.Len) / blk.BlockSize
}

// read begins a read. One that lies in one run, as most do, is not cut.
func (q *queue) read(r *blk.Request) bool {
	lo, hi := blocks(r)
	end, written := q.m.bits.run(lo, hi)
	if end == hi {
		if written {
			q.pass(r)
		} else if zero(r.Buf, r.Flags) {
			q.finish(r, r.Len, 0)
		} else {
			q.finish(r, 0, syscall.EFAULT)
		}
		return true
	}
	last := len(q.freeReads) - 1
	p := q.freeReads[last]
	q.freeReads = q.freeReads[:last]
	*p = read{parent: r, next: r.Off, failed: r.Len}
	return q.cut(p)
}

// cut makes children for the runs of p that are not cut yet. It reports false
// when there were too few; Fill then goes on with it.
func (q *queue) cut(p *read) bool {
	r := p.parent
	_, hi := blocks(r)
	for p.next < r.Off+r.Len {
		end, written := q.m.bits.run(uint64(p.next)/blk.BlockSize, hi)
		until := int64(end * blk.BlockSize)
		buf := r.Buf[p.next-r.Off : until-r.Off]
		if written {
			c := q.child()
			if c == nil {
				q.cutting = p
				return false
			}
			c.read = p
			c.ask(blk.OpRead, r.Flags, p.next, until-p.next, buf)
			p.left++
			q.feed.Add(&c.req)
		} else if !zero(buf, r.Flags) {
			p.fail(p.next-r.Off, syscall.EFAULT)
			until = r.Off + r.Len // nothing more is cut
		}
		p.next = until
	}
	q.cutting = nil
	if p.left == 0 {
		q.endRead(p)
	}
	return true
}

// child returns a free child, or nil.
func (q *queue) child() *child {
	last := len(q.freeKids) - 1
	if last < 0 {
		return nil
	}
	c := q.freeKids[last]
	q.freeKids = q.freeKids[:last]
	return c
}

// ask fills in the request of a child. Done stays what it is; Errno and N are the
// layer's below.
func (c *child) ask(op blk.Op, flags blk.Flags, off, length int64, buf []byte) {
	r := &c.req
	r.Op, r.Flags, r.Off, r.Len, r.Buf = op, flags, off, length, buf
}

// pass hands r down whole. REQUIRES: there is a free child.
func (q *queue) pass(r *blk.Request) {
	c := q.child()
	c.parent = r
	c.ask(r.Op, r.Flags, r.Off, r.Len, r.Buf)
	q.feed.Add(&c.req)
}

// Complete is called when the drive has completed a child.
func (c *child) Complete(r *blk.Request) {
	q, p, parent := c.q, c.read, c.parent
	q.feed.Finished()
	c.read, c.parent, r.Buf = nil, nil, nil
	q.freeKids = append(q.freeKids, c)
	if p != nil {
		q.partDone(p, r.Off-p.parent.Off+r.N, r.Errno)
		return
	}
	if r.Op == blk.OpWrite && r.Errno == 0 && !plant.Is(plant.BitEarly) {
		fail.At(fail.WriteDone)
		q.m.set(blocks(r)) // R1
		fail.At(fail.WriteMarked)
	}
	q.finish(parent, r.N, r.Errno)
}

// zero has a part of the parent's buffer read as zeros. It reports false where that
// faults, as the memory of a guest may.
func zero(buf []byte, flags blk.Flags) bool {
	if flags&blk.Foreign != 0 {
		return mem.ClearForeign(buf)
	}
	clear(buf)
	return true
}

// fail takes note that p is good only up to there.
func (p *read) fail(good int64, errno syscall.Errno) {
	if good < p.failed {
		p.failed, p.errno = good, errno
	}
}

// partDone takes note of a child of p; good says up to where p is good if it
// failed. After a failure nothing more is cut.
func (q *queue) partDone(p *read, good int64, errno syscall.Errno) {
	p.left--
	if errno != 0 {
		p.fail(good, errno)
		p.next = p.parent.Off + p.parent.Len
	}
	if p.left == 0 && p.next == p.parent.Off+p.parent.Len && q.cutting != p {
		q.endRead(p)
	}
}

// endRead completes a read that was cut.
func (q *queue) endRead(p *read) {
	r, n, errno := p.parent, p.failed, p.errno
	p.parent = nil
	q.freeReads = append(q.freeReads, p)
	q.finish(r, n, errno)
}

func (q *queue) finish(r *blk.Request, n int64, errno syscall.Errno) {
	q.delivered++
	r.Finish(n, errno)
}
