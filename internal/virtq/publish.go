package virtq

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

const (
	noInterrupt = 1 // avail.flags (2.7.6)
	noNotify    = 1 // used.flags (2.7.8)
)

// Done stages the answer to a request: written bytes of its writable part, from
// the start on, hold the answer. The driver sees it with the next Publish. The
// chain may be used for another request, its slices may not be touched any more.
//
// REQUIRES: the request was popped from this ring, and is not done yet.
func (r *Ring) Done(c *Chain, written uint32) {
	if !r.busy[c.Head] {
		panic(fmt.Sprintf("virtq: descriptor %d is done, and was not in flight", c.Head))
	}
	if len(r.batch) == int(r.size) {
		panic("virtq: more requests done than were in flight")
	}
	var err error
	defer r.caught(&err) // Publish tells
	r.batch = append(r.batch, c.Head)
	if r.gone {
		return
	}
	at := unsafe.Add(r.used, usedRing+usedElem*uintptr((r.told+r.staged)&(r.size-1)))
	put32(at, uint32(c.Head))
	put32(unsafe.Add(at, 4), written)
	r.staged++
	if r.log != nil {
		for _, s := range c.dirty {
			r.log.Mark(s.addr, s.n)
		}
	}
	if r.inflight != nil {
		r.stage(c.Head)
	}
}

// stage takes note in the inflight table that a request is part of the batch to
// come.
func (r *Ring) stage(head uint16) {
	r.inflight.link(head)
	r.stored()
	r.inflight.stage(head)
	r.stored()
}

// Publish shows the driver all requests that are staged, and reports whether it
// wants to be called for them. The error says that the ring's memory is gone:
// nobody will see these, nor any after them. A ring that is broken otherwise
// publishes what was in flight.
func (r *Ring) Publish() (call bool, err error) {
	if len(r.batch) == 0 {
		return false, nil
	}
	defer r.caught(&err)
	defer r.drop()
	if r.gone {
		return false, r.broken
	}
	before := r.told
	r.told += r.staged
	r.tell() // 2.7.13.3: the elements before the index, and the index before what follows
	r.stored()
	if r.inflight != nil {
		r.settle()
	}
	r.logElements(before)
	return r.wanted(before), nil
}

// tell stores used.flags and used.idx, which are one word.
func (r *Ring) tell() {
	store32(r.used, uint32(r.noKicks)|uint32(r.told)<<16)
}

// settle takes the batch out of the inflight table, after the driver sees it.
func (r *Ring) settle() {
	for _, head := range r.batch {
		r.inflight.clear(head)
		r.stored()
	}
	r.inflight.done(r.told)
	r.stored()
}

// drop forgets the batch (Q1).
func (r *Ring) drop() {
	for _, head := range r.batch {
		r.busy[head] = false
	}
	r.flying -= len(r.batch)
	r.batch, r.staged = r.batch[:0], 0
}

// wanted reports whether the driver wants to be called for what was published
// since used.idx was before (2.7.7.2, 2.7.10).
func (r *Ring) wanted(before uint16) bool {
	if !r.eventIdx {
		return load16(r.avail)&noInterrupt == 0
	}
	event := load16(unsafe.Add(r.avail, availRing+2*uintptr(r.size)))
	return r.told-event-1 < r.told-before
}

// logAll marks all of the used ring: a predecessor may have ended between its stores
// and their marks, and the machine that the guest moves to would not see them.
func (r *Ring) logAll() {
	if r.logUsed {
		r.log.Mark(r.logAddr, usedRing+usedElem*uint64(r.size)+2)
	}
}

// logElements marks what Publish has written to the used ring.
func (r *Ring) logElements(before uint16) {
	if !r.logUsed {
		return
	}
	r.log.Mark(r.logAddr, usedRing)
	for i := before; i != r.told; i++ {
		r.log.Mark(r.logAddr+usedRing+usedElem*uint64(i&(r.size-1)), usedElem)
	}
}

// Enable asks the driver to kick for the next request that it makes available,
// and reports whether Pop has something to do already, for which it may not kick:
// a request, or the error of a ring that breaks here. One that is broken has none.
func (r *Ring) Enable() (more bool) {
	if r.broken != nil {
		return false
	}
	more = true //nolint:wastedassign // what is returned after a fault: Pop tells
	var err error
	defer r.caught(&err)
	if r.eventIdx {
		event := uintptr(usedRing) + usedElem*uintptr(r.size)
		put16(unsafe.Add(r.used, event), r.next) // avail_event (2.7.10)
		atomic.SwapUint32(&r.barrier, 0)         // before avail.idx is read
		if r.logUsed {
			r.log.Mark(r.logAddr+uint64(event), 2)
		}
	} else if r.noKicks != 0 {
		r.noKicks = 0
		r.flags()
	}
	return r.Pending()
}

// Disable asks the driver not to kick: the owner looks by itself. The driver may
// kick all the same.
func (r *Ring) Disable() {
	if r.broken != nil || r.eventIdx || r.noKicks != 0 {
		return // with EVENT_IDX, the index that Enable named is soon past
	}
	var err error
	defer r.caught(&err)
	r.noKicks = noNotify
	r.flags()
}

// flags stores used.flags.
func (r *Ring) flags() {
	r.tell()
	if r.logUsed {
		r.log.Mark(r.logAddr, usedRing)
	}
}

// Pending reports whether Pop has something to do: a request, or an error to tell.
func (r *Ring) Pending() (more bool) {
	if r.broken != nil {
		return false
	}
	if len(r.resubmit) > 0 || r.next != r.seen {
		return true
	}
	more = true //nolint:wastedassign // what is returned after a fault: Pop tells
	var err error
	defer r.caught(&err)
	return load16(unsafe.Add(r.avail, availIdx)) != r.next
}
