package crypt

import (
	"errors"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/plant"
	"vacate/internal/sys"
	"vacate/internal/xts"
)

// A queue is one goroutine's way through a Crypt.
//
// Invariants:
//
//	Q1: a parent is either in waiting, or has a slot; never more than depth.
//	Q2: a slot in use has a child below, so waiting requests are always looked
//	    at again: only slots hold scratch.
type queue struct {
	c       *Crypt
	size    int64 // bytes
	gate    *blk.Gate
	below   blk.Queue
	windows blk.Windower // below, or nil
	feed    blk.Feeder
	waiting backlog // parents that have not been started
	scratch *scratch
	slots   []slot
	free    []*slot
	busy    bool // a cipher call is under way

	delivered int // completions since the queue was made
}

// A slot is a parent on its way, and its child.
type slot struct {
	q         *queue
	parent    *blk.Request
	at, count int // scratch, in blocks; count is 0 if it has none
	child     blk.Request
}

// Submit starts requests, or lets them wait for scratch.
func (q *queue) Submit(batch []*blk.Request) {
	first := q.waiting.n
	for _, r := range batch {
		q.waiting.push(r, q.window(r))
	}
	q.fetchAll(first)
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

// Close gives the scratch back. It has what a signal within a cipher call left of
// this thread's registers overwritten. REQUIRES: nothing in flight.
func (q *queue) Close() error {
	if q.waiting.n > 0 || len(q.free) < len(q.slots) {
		panic("crypt: queue closed with requests in flight")
	}
	xts.Scrub() // or the frame would keep what copies have left in registers
	sys.OverwriteSignalFrame()
	q.c.gates.Drop(q.gate)
	return errors.Join(q.below.Close(), q.scratch.close())
}

// Fill carries out what it can in place, and starts what waits, oldest first,
// until scratch runs out. A request that
// does not fit holds back those behind it, or it might wait for ever.
func (q *queue) Fill() {
	for q.waiting.n > 0 {
		r, w := q.waiting.at(0).r, q.waiting.at(0).window
		at, count := 0, 0
		switch r.Op {
		case blk.OpRead, blk.OpWrite:
			if errno := q.check(r); errno != 0 {
				q.refuse(r, errno)
				continue
			}
			if w != nil {
				q.waiting.pop()
				q.fetchNext()
				n, errno := q.inPlace(r, w)
				if errno == syscall.EIO || errno == syscall.EFAULT {
					xts.Scrub() // the stack of the call, which has only now unwound
				}
				q.delivered++
				r.Finish(n, errno)
				continue
			}
			count = int(r.Len / blk.BlockSize)
			if at = q.scratch.take(count); at < 0 {
				return
			}
		case blk.OpFlush, blk.OpDiscard:
		default: // zeros are ciphertext here: above, the block map makes them
			q.refuse(r, syscall.EOPNOTSUPP)
			continue
		}
		q.waiting.pop()
		q.start(r, at, count)
	}
}

// check returns why a read or write is refused, or 0.
func (q *queue) check(r *blk.Request) syscall.Errno {
	switch {
	case !r.InRange(q.size) || (r.Off|r.Len)%blk.BlockSize != 0:
		return syscall.EINVAL
	case q.gate.IsShut() && !plant.Is(plant.LateDecrypt):
		return syscall.ESHUTDOWN
	}
	return 0
}

func (q *queue) refuse(r *blk.Request, errno syscall.Errno) {
	q.waiting.pop()
	q.delivered++
	r.Finish(0, errno)
}

// start makes the child of r, with the scratch that was taken for it.
func (q *queue) start(r *blk.Request, at, count int) {
	last := len(q.free) - 1 // Q1: there is one
	s := q.free[last]
	q.free = q.free[:last]
	s.parent, s.at, s.count = r, at, count
	c := &s.child // Done stays; Errno and N are the layer's below
	c.Op, c.Flags, c.Off, c.Len = r.Op, r.Flags&^blk.Foreign, r.Off, r.Len
	if count > 0 {
		c.Buf = q.scratch.bytes(at, count)
	}
	if r.Op == blk.OpWrite {
		if errno := q.work(r, c.Buf); errno != 0 {
			s.finish(0, errno)
			return
		}
	}
	q.feed.Add(&s.child)
}

func block(r *blk.Request) uint64 { return uint64(r.Off) / blk.BlockSize }

// Complete is called when the child is.
func (s *slot) Complete(child *blk.Request) {
	s.q.feed.Finished()
	n, errno := child.N, child.Errno
	if child.Op == blk.OpRead {
		if errno == 0 {
			errno = s.q.work(s.parent, child.Buf)
		}
		if errno != 0 {
			n = 0 // nobody above asks for half a read
		}
	}
	s.finish(n, errno)
}

// finish frees the slot, and then completes the parent: its owner may submit
// again from there.
func (s *slot) finish(n int64, errno syscall.Errno) {
	q, r := s.q, s.parent
	if s.count > 0 {
		q.scratch.give(s.at, s.count)
	}
	s.parent, s.child.Buf = nil, nil
	q.free = append(q.free, s)
	q.delivered++
	r.Finish(n, errno)
}
