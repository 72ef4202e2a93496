package drive

import (
	"fmt"
	"runtime"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/uring"
)

// The engine "io_uring": a queue has a ring, in which all its requests are in
// flight at once (docs/adr/0010-io-uring.md).
//
//  1. Submit puts requests into the queue's FIFO, and from there into slots, as
//     many as there are, each with a submission in the ring. It makes no system
//     call; what is refused completes at once.
//  2. Reap enters the kernel once, to submit what is in the ring and, if it may
//     wait, to wait for a completion: at depth 1 that is one call a request, as
//     with pread.
//  3. Each completion is settled: what fell short goes back into the ring for
//     its rest; all else frees its slot, and is completed.
//  4. While a slot is in use the goroutine is locked to its thread, which the
//     kernel tells of completions.
//  5. What the kernel does not take, for want of memory, or cancels, for want of a
//     thread, is carried out on the spot, as pread does it.

// ringRoom is the most requests of one queue that the kernel has at once; others
// wait. A ring of this size takes 16 KiB of the kernel's memory.
const ringRoom = 128

// Of what the kernel has completed a Reap delivers so much at once, at least one.
const (
	portion      = 16
	portionBytes = 256 << 10
)

// A ringQueue is a [blk.Queue] of the engine "io_uring".
//
// Invariants:
//
//	Q1: a request is in waiting or has a slot; never more than depth of both.
//	Q2: a slot in use has one submission, in the ring or in the kernel; so the
//	    ring, with room for as many as there are slots, is never full.
//	Q3: the goroutine is locked to its thread while a slot is in use.
type ringQueue struct {
	lane
	depth   int
	ring    *uring.Ring
	waiting blk.FIFO
	slots   []ringSlot
	free    []uint32
	filling bool // a fill is under way further down the stack
	seen    int  // completions, of those to be taken out next, that came before the last look at the drive
}

// A ringSlot is a request in flight. It keeps its buffer alive.
type ringSlot struct {
	r    *blk.Request
	off  int64 // on the drive
	done int64 // bytes; the submission is for the rest
}

func newRingQueue(d *Drive, depth int) (*ringQueue, error) {
	room := min(depth, ringRoom)
	ring, err := uring.New(room)
	if err != nil {
		return nil, err
	}
	q := &ringQueue{
		lane: lane{d: d, fd: d.t.fd}, depth: depth, ring: ring,
		waiting: blk.NewFIFO(depth), slots: make([]ringSlot, room), free: make([]uint32, room),
	}
	for i := range q.free {
		q.free[i] = uint32(room - 1 - i)
	}
	return q, nil
}

// Submit implements [blk.Queue].
func (q *ringQueue) Submit(batch []*blk.Request) {
	if len(batch) > q.depth-q.waiting.Len()-q.busy() {
		panic("drive: more requests submitted than the queue's depth")
	}
	for _, r := range batch {
		q.waiting.Push(r)
	}
	if !q.filling {
		q.fill()
	}
}

// busy is the number of slots in use.
func (q *ringQueue) busy() int { return len(q.slots) - len(q.free) }

// fill gives slots to requests that wait, and completes those that need none. It
// returns how many it has completed.
func (q *ringQueue) fill() (n int) {
	if q.waiting.Len() == 0 || len(q.free) == 0 {
		return 0
	}
	outer := q.filling
	q.filling = true
	q.fresh = false
	for r := q.waiting.Peek(); r != nil && len(q.free) > 0; r = q.waiting.Peek() {
		q.waiting.Pop()
		off, errno := q.admit(r)
		switch {
		case errno != 0:
			q.finish(r, 0, errno)
			n++
		case r.Op == blk.OpFlush && !q.d.flush:
			q.finish(r, r.Len, 0)
			n++
		default:
			q.start(r, off)
		}
	}
	q.filling = outer
	return n
}

// start gives r a slot and a submission. REQUIRES: a slot is free.
func (q *ringQueue) start(r *blk.Request, off int64) {
	if q.busy() == 0 {
		runtime.LockOSThread()
	}
	id := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	q.slots[id] = ringSlot{r: r, off: off}
	q.push(id)
}

// push makes the submission for what is left of a slot's request.
func (q *ringQueue) push(id uint32) {
	s := &q.slots[id]
	r := s.r
	var ok bool
	switch r.Op {
	case blk.OpRead:
		ok = q.ring.Read(uint64(id), q.fd, r.Buf[s.done:], s.off+s.done)
	case blk.OpWrite:
		ok = q.ring.Write(uint64(id), q.fd, r.Buf[s.done:], s.off+s.done, q.fua(r))
	default:
		ok = q.ring.Sync(uint64(id), q.fd)
	}
	if !ok {
		panic("drive: a ring is full (Q2)")
	}
}

// release frees a slot and returns its request.
func (q *ringQueue) release(id uint32) *blk.Request {
	r := q.slots[id].r
	q.slots[id] = ringSlot{}
	q.free = append(q.free, id)
	if q.busy() == 0 {
		runtime.UnlockOSThread()
	}
	return r
}

// Reap implements [blk.Queue].
func (q *ringQueue) Reap(wait bool) (n int) {
	for {
		n += q.fill()
		if q.busy() == 0 {
			return n
		}
		if errno := q.ring.Enter(wait && n == 0); errno != 0 {
			n += q.retreat(errno)
		} else {
			n += q.deliver()
		}
		if n > 0 || !wait {
			return n
		}
	}
}

// deliver settles what the kernel has completed, and returns how many requests
// that completed.
//
// One look at the drive serves for all that had been completed before it (W1);
// what comes meanwhile is looked at by itself.
//
// It stops at portion requests, or their worth in bytes: the drive completes in
// bursts, and the owner is to answer some, and submit what comes for them, before
// it goes on with the rest.
func (q *ringQueue) deliver() (n int) {
	q.seen = 0
	if ready := q.ring.Ready(); ready > 1 && q.d.guarded && q.d.intact() {
		q.seen = ready
	}
	for bytes := 0; n < portion && bytes < portionBytes; {
		c, ok := q.ring.Next()
		if !ok {
			break
		}
		// A completion may reap, too: then less is left of what was looked after.
		q.vouched = q.seen > 0
		q.seen = max(q.seen-1, 0)
		bytes += c.N
		if q.settle(uint32(c.ID), int64(c.N), c.Errno) {
			n++
		}
	}
	q.vouched = false
	return n
}

// settle takes note of a completion, and reports whether it completed its
// request.
func (q *ringQueue) settle(id uint32, n int64, errno syscall.Errno) bool {
	s := &q.slots[id]
	r := s.r
	switch {
	case errno == syscall.EINTR:
		q.push(id)
		return false
	case errno == syscall.EAGAIN, errno == syscall.ECANCELED:
		// It cannot be done without waiting; or a thread of the kernel should have
		// done it, as all flushes, and there may be no more of them (RLIMIT_NPROC,
		// pids.max).
		q.carryOut(q.release(id))
		return true
	case r.Op == blk.OpFlush:
		if n = 0; errno == 0 {
			n = r.Len
		}
	default:
		s.done += n
		if errno == 0 && n > 0 && s.done < r.Len {
			q.push(id)
			return false
		}
		if errno == syscall.EINVAL && s.done > 0 { // the rest of a transfer is not aligned any more
			errno = syscall.EIO
		}
		n = s.done
	}
	q.finish(q.release(id), n, errno)
	return true
}

// retreat carries out on the spot what the kernel has not taken. It returns how
// many requests that completed.
func (q *ringQueue) retreat(errno syscall.Errno) (n int) {
	if q.ring.Unsubmitted() == 0 {
		// Of what is in flight nothing is known any more.
		panic(fmt.Sprintf("drive: waiting for the completions of %s: %v", q.d.info.Path, errno))
	}
	for q.ring.Unsubmitted() > 0 {
		q.carryOut(q.release(uint32(q.ring.TakeBack())))
		n++
	}
	return n
}

// Register implements [blk.Registrar]. Memory that is refused (RLIMIT_MEMLOCK, for
// one) is looked up for each request, as any other.
func (q *ringQueue) Register(memory []byte) {
	_ = q.ring.Register(memory)
}

// Pending implements [blk.Waiter]: the ring is readable when it holds a completion.
// What was submitted from within the last Reap, or for the rest of a transfer, is
// still to be handed to the kernel.
func (q *ringQueue) Pending(w *blk.Wait) {
	if q.ring.Unsubmitted() > 0 {
		w.Now()
	}
	if q.busy() > 0 {
		w.FDs = append(w.FDs, q.ring.FD())
	}
}

// Close implements [blk.Queue].
func (q *ringQueue) Close() error {
	if q.waiting.Len() > 0 || q.busy() > 0 {
		panic("drive: queue closed with requests in flight")
	}
	if err := q.leave(); err != nil {
		return err
	}
	return q.ring.Close()
}
