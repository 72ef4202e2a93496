package volume

import (
	"math/bits"
	"sync"
	"sync/atomic"

	"vacate/internal/blk"
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

// A flight is a range of blocks in one word, so that publishing it is one store:
// the first block in the upper bits, and in the lower flightBits their number, or
// many for all blocks from the first on. 0 is nothing.
type flight struct{ atomic.Uint64 }

const (
	flightBits = 14
	many       = 1<<flightBits - 1 // 64 MiB: only discards and write-zeroes are longer
)

// A volume's last block fits what is left of the word.
const _ = -(uint64(blk.MaxVolume/blk.BlockSize-1) >> (64 - flightBits))

func flightOf(lo, hi uint64) uint64 { return lo<<flightBits | min(hi-lo, many) }

// overlaps reports whether f shares a block with lo … hi-1.
func (f *flight) overlaps(lo, hi uint64) bool {
	word := f.Load()
	first, n := word>>flightBits, word&many
	return n != 0 && first < hi && (n == many || lo < first+n)
}

func (x *exclusion) init() {
	x.bell.L = &x.mu
	x.flights = make(map[*flights]struct{})
}

func (x *exclusion) join(depth int) *flights {
	const line = 8 // slots of a cache line, which no other queue shares
	f := &flights{slots: make([]flight, depth+2*line)[line : line+depth]}
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
	f.slots[slot].Store(flightOf(lo, hi))
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
	f.slots[slot].Store(0)
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
			if f.slots[s].overlaps(lo, hi) {
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
