package volume

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// exclusion keeps requests that must be alone on their blocks apart from all
// others, on all queues, at no cost for those that overlap nothing.
//
// A request in whole blocks is shared: it publishes its blocks in its queue's
// flights, which only that queue writes, and then looks at the tickets. A
// request that must be alone is exclusive: it takes a ticket for its blocks, and
// then looks at the flights of every queue. Whoever comes second sees the other
// (each stores first and loads then, in the one order that sync/atomic gives),
// so they never both go on. Who yields is always the shared one: it withdraws,
// and takes a ticket itself.
//
// Invariants:
//
//	X1: a request runs only while it is published or holds a ticket.
//	X2: a ticket's request runs only when no older ticket and no flight overlaps
//	    it. Tickets are numbered in one order, and a flight never waits; so
//	    nobody waits in a circle, and nobody is overtaken for ever.
//	X3: whoever withdraws a flight or a ticket rings the bell after that; whoever
//	    sleeps was counted in sleepers before it last looked. So no wake-up is
//	    lost.
//
//	shared:     ─publish─> clash? ─no──> run ─withdraw─>
//	                         └─yes: withdraw, then as exclusive
//	exclusive:  ─take─> ticket ─(X2)─> run ─drop─>
type exclusion struct {
	// What requests read, and only slow paths write.
	active   atomic.Uint64 // bit i: tickets[i] is taken
	sleepers atomic.Int32  // queues that sleep or are about to
	_        [52]byte

	tickets [64]ticket

	mu      sync.Mutex
	number  uint64
	flights map[*flights]struct{} // one a queue
	turns   uint64                // of the bell
	bell    sync.Cond
}

// A ticket is the blocks lo … hi-1 that a request wants for itself.
type ticket struct {
	lo, hi atomic.Uint64
	number uint64 // under exclusion.mu
}

// flights are the blocks that one queue's running requests cover.
type flights struct {
	used  atomic.Int32 // slots beyond it were never used
	slots []flight
}

// A flight is the blocks lo … hi-1, or nothing if hi is 0. lo is stored before
// hi and loaded after it. A reader that meets two publications half and half has
// missed the second; its publisher then sees the reader's ticket.
type flight struct{ lo, hi atomic.Uint64 }

func (x *exclusion) init() {
	x.bell.L = &x.mu
	x.flights = make(map[*flights]struct{})
}

func (x *exclusion) join(depth int) *flights {
	f := &flights{slots: make([]flight, depth)}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.flights[f] = struct{}{}
	return f
}

func (x *exclusion) part(f *flights) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.flights, f)
}

// publish announces that blocks lo … hi-1 are in use, and reports whether no
// ticket overlaps them. If one does, the caller must withdraw.
func (x *exclusion) publish(f *flights, slot int, lo, hi uint64) bool {
	if int(f.used.Load()) <= slot {
		f.used.Store(int32(slot + 1))
	}
	f.slots[slot].lo.Store(lo)
	f.slots[slot].hi.Store(hi)
	for set := x.active.Load(); set != 0; set &= set - 1 {
		t := &x.tickets[bits.TrailingZeros64(set)]
		if end := t.hi.Load(); t.lo.Load() < hi && lo < end {
			return false
		}
	}
	return true
}

// withdraw takes back what was published.
func (x *exclusion) withdraw(f *flights, slot int) {
	f.slots[slot].hi.Store(0)
	if x.sleepers.Load() != 0 {
		x.ring()
	}
}

// take takes a ticket for blocks lo … hi-1. It reports false when all are taken.
func (x *exclusion) take(lo, hi uint64) (int, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	i := bits.TrailingZeros64(^x.active.Load())
	if i == len(x.tickets) {
		return 0, false
	}
	t := &x.tickets[i]
	t.number = x.number
	x.number++
	t.lo.Store(lo)
	t.hi.Store(hi)
	x.active.Or(1 << i)
	return i, true
}

// turn reports whether the holder of ticket i may run (X2).
func (x *exclusion) turn(i int) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	t := &x.tickets[i]
	lo, hi := t.lo.Load(), t.hi.Load()
	for set := x.active.Load() &^ (1 << i); set != 0; set &= set - 1 {
		o := &x.tickets[bits.TrailingZeros64(set)]
		if o.number < t.number && o.lo.Load() < hi && lo < o.hi.Load() {
			return false
		}
	}
	for f := range x.flights {
		for s := range f.slots[:f.used.Load()] {
			fl := &f.slots[s]
			if end := fl.hi.Load(); end != 0 && fl.lo.Load() < hi && lo < end {
				return false
			}
		}
	}
	return true
}

// drop gives ticket i back.
func (x *exclusion) drop(i int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.active.And(^uint64(1 << i))
	x.ringLocked()
}

// ring wakes every queue that sleeps.
func (x *exclusion) ring() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ringLocked()
}

func (x *exclusion) ringLocked() {
	x.turns++
	x.bell.Broadcast()
}

// drowse announces that the caller is about to sleep, and returns what sleep
// wants. The caller then looks once more whether it can go on (X3); wake must
// follow in any case.
func (x *exclusion) drowse() uint64 {
	x.sleepers.Add(1)
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.turns
}

// sleep waits until the bell has rung since drowse.
func (x *exclusion) sleep(since uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for x.turns == since {
		x.bell.Wait()
	}
}

func (x *exclusion) wake() { x.sleepers.Add(-1) }
