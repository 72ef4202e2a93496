// Package virtq is the device's side of a virtqueue: a split ring in guest memory
// (virtio 1.2, 2.7; "2.7.13.2" below is a section of it). It does no I/O, has no
// thread, and waits for nothing.
//
// # How a request moves
//
//  1. [Ring.Pop] takes the oldest request that the driver has made available,
//     walks its chain of descriptors, and fills in a [Chain]: slices of guest
//     memory. It is now in flight, and so says the inflight table.
//  2. The owner carries it out, in any order among others, and calls [Ring.Done].
//     That stages it: the driver does not see it yet.
//  3. [Ring.Publish] shows the driver all that is staged, with one store, and
//     tells whether the driver wants to be called.
//  4. Before the owner sleeps, it calls [Ring.Enable], so that the driver kicks,
//     and looks once more when that says so; awake, it calls [Ring.Disable].
//
// # What a hostile guest gets
//
// Guest memory changes at any time. Every word of it that decides something is read
// once, then checked, then used. What is wrong with a ring breaks it for good: every error wraps
// [ErrRing], nothing more is popped, and what is in flight can still be carried
// out, staged and published. A Pop does bounded work: at most Size descriptors,
// and [MaxSize] in an indirect table.
//
// Guest memory can also go away. REQUIRES: whoever calls a Ring runs with
// debug.SetPanicOnFault. A fault on the ring, on an indirect table, on the table
// of requests in flight or on the log breaks the ring, as above, and then nothing
// more is published. Faults on the slices of a chain are the owner's to handle.
package virtq

import (
	"errors"
	"fmt"
	"unsafe"

	"vacate/internal/plant"
)

// MaxSize is the largest ring, and the longest indirect table, in descriptors.
const MaxSize = 1024

// ErrRing is wrapped by every error that breaks a ring: what is in guest memory is
// not what a driver may put there.
var ErrRing = errors.New("broken virtqueue")

// Lengths and places in the parts of a ring (2.7.5, 2.7.6, 2.7.8), in bytes.
const (
	descSize  = 16
	availIdx  = 2
	availRing = 4
	usedRing  = 4
	usedElem  = 8
)

// Config describes a ring. Addresses are the frontend's (Region.UserAddr).
type Config struct {
	Size      uint16 // descriptors: a power of two, at most MaxSize
	DescAddr  uint64 // a multiple of 16
	AvailAddr uint64 // a multiple of 2
	UsedAddr  uint64 // a multiple of 4
	LogAddr   uint64 // guest address of the used ring, for the log
	LogUsed   bool   // writes to the used ring are logged, at LogAddr

	// Base is the index in the available ring at which Pop begins. It counts only
	// without Inflight; with it the index is what was used and what is in flight
	// together, which is right also after a crash.
	Base uint16

	EventIdx bool // VIRTIO_F_EVENT_IDX was negotiated
	Indirect bool // VIRTIO_F_INDIRECT_DESC was negotiated

	Memory   *Memory   // never nil
	Inflight *Inflight // nil: none. At least Size entries; no other ring has it
	Log      *Log      // nil: nothing is logged
}

// A Ring is one split virtqueue. It belongs to one goroutine at a time.
//
// Invariants:
//
//	Q1: a head is in flight at most once: from Pop to the Publish after its Done.
//	Q2: used.idx in guest memory is read once, in New, and from then on only stored.
//	Q3: an index is taken from the available ring only after avail.idx was seen
//	    beyond it, and is at most Size ahead.
//
//	made available ──Pop──> in flight ──Done──> staged ──Publish──> used
type Ring struct {
	desc, avail, used unsafe.Pointer
	size              uint16
	eventIdx          bool
	indirect          bool

	next    uint16 // index of the next entry of the available ring to pop
	seen    uint16 // avail.idx as it was last read
	told    uint16 // used.idx as it was last stored
	staged  uint16 // requests that are done and not published
	noKicks uint16 // used.flags: NO_NOTIFY or 0
	barrier uint32 // for a swap, which orders what is around it

	flying   int      // requests that are in flight or staged
	busy     []bool   // by head: in flight or staged
	batch    []uint16 // the heads that are staged
	resubmit []uint16 // heads that a predecessor left in flight, and are not popped yet

	table []byte // an indirect table as it was read

	memory   *Memory
	inflight *Inflight
	log      *Log
	logUsed  bool
	logAddr  uint64

	broken error
	gone   bool   // ring memory has faulted: it is not touched any more
	hook   func() // tests only: called after each store that a successor sees
}

// New returns the ring that lies in guest memory, and takes over what Inflight
// says is in flight there; Pop begins with that. It reads the used index, and
// tells the driver nothing. The error names each thing that is wrong, and wraps
// ErrRing; what lies outside of guest memory wraps [ErrMemory] too.
func New(c Config) (_ *Ring, err error) {
	if c.Size == 0 || c.Size > MaxSize || c.Size&(c.Size-1) != 0 {
		return nil, fmt.Errorf("%w: a ring of %d descriptors: want a power of two, at most %d", ErrRing, c.Size, MaxSize)
	}
	r := &Ring{
		size: c.Size, eventIdx: c.EventIdx, indirect: c.Indirect,
		busy: make([]bool, c.Size), batch: make([]uint16, 0, c.Size),
		table: make([]byte, 0, MaxSize*descSize), memory: c.Memory, inflight: c.Inflight,
		log: c.Log, logUsed: c.LogUsed && c.Log != nil, logAddr: c.LogAddr,
	}
	if err := r.locate(c); err != nil {
		return nil, err
	}
	defer r.caught(&err)
	r.told = load16(unsafe.Add(r.used, 2))
	if !c.EventIdx && load16(r.used) != 0 {
		r.noKicks = noNotify // as a predecessor has left it
	}
	r.next = c.Base
	if t := c.Inflight; t != nil {
		if t.size < c.Size {
			return nil, fmt.Errorf("%w: an inflight table of %d entries for a ring of %d", ErrRing, t.size, c.Size)
		}
		if r.resubmit, err = t.restore(r.told, c.Size); err != nil {
			return nil, err
		}
		r.next = r.told + uint16(len(r.resubmit))
		if plant.Is(plant.ResubmitLeftOut) {
			r.resubmit = nil
		}
	}
	r.seen = r.next
	r.logAll()
	return r, nil
}

// locate finds the three parts of the ring.
func (r *Ring) locate(c Config) error {
	event := uint64(0) // a word after the entries, with EVENT_IDX
	if c.EventIdx {
		event = 2
	}
	var errs []error
	for _, part := range []struct {
		name           string
		addr, n, align uint64
		at             *unsafe.Pointer
	}{
		{"descriptor table", c.DescAddr, descSize * uint64(c.Size), 16, &r.desc},
		{"available ring", c.AvailAddr, availRing + 2*uint64(c.Size) + event, 2, &r.avail},
		{"used ring", c.UsedAddr, usedRing + usedElem*uint64(c.Size) + event, 4, &r.used},
	} {
		b, err := c.Memory.User(part.addr, part.n)
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: the %s: %w", ErrRing, part.name, err))
			continue
		}
		*part.at = unsafe.Pointer(unsafe.SliceData(b))
		if part.addr%part.align != 0 || uint64(uintptr(*part.at))%part.align != 0 {
			errs = append(errs, fmt.Errorf("%w: the %s is at %#x: want a multiple of %d", ErrRing, part.name, part.addr, part.align))
		}
	}
	return errors.Join(errs...)
}

// Size returns the number of descriptors.
func (r *Ring) Size() uint16 { return r.size }

// Base returns the index in the available ring of the next request to pop: what
// GET_VRING_BASE tells when nothing is in flight.
func (r *Ring) Base() uint16 { return r.next }

// InFlight returns how many requests are popped and not published.
func (r *Ring) InFlight() int { return r.flying }

// Resubmit returns how many requests that a predecessor left in flight are still
// to be popped. Pop hands them out first, in the order of their counters.
func (r *Ring) Resubmit() int { return len(r.resubmit) }

// Broken returns why the ring is broken, and nil as long as it is not.
func (r *Ring) Broken() error { return r.broken }

// stored is called after each store that a successor sees.
func (r *Ring) stored() {
	if r.hook != nil {
		r.hook()
	}
}
