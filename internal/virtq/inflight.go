package virtq

import (
	"cmp"
	"fmt"
	"slices"
	"unsafe"
)

// An Inflight is a queue's table of requests that were popped and are not used
// yet, in the format of the vhost-user specification (Inflight I/O tracking,
// QueueRegionSplit and DescStateSplit). A successor finds in it what to do again,
// after a crash between any two stores:
//
//	I1: a request is in the table from before the first byte of it is carried
//	    out until the driver can see that it is used.
//	I2: whatever the table holds, New fails or hands out each head at most once.
//
// In order, all little-endian:
//
//	 0  features         8 bytes, 0
//	 8  version          2, is 1; 0: nothing was ever here
//	10  desc_num         2, entries
//	12  last_batch_head  2, the entry that was staged last
//	14  used_idx         2, the ring's used index, as of the last batch that is cleared
//	16  entries of 16: inflight (1), padding (5), next (2), counter (8)
//
// It belongs to one ring at a time. The memory may be the frontend's: it may hold
// anything, change, and fault.
type Inflight struct {
	base    unsafe.Pointer
	mem     []byte
	size    uint16 // entries
	counter uint64 // of the next request; the order is that of the counters
	last    uint16 // last_batch_head, as this process has stored it
}

// Offsets in the table.
const (
	inflightVersion   = 8
	inflightCount     = 10
	inflightLastBatch = 12
	inflightUsed      = 14
	inflightEntries   = 16
	entrySize         = 16
	entryNext         = 6
	entryCounter      = 8

	// inflightAlign is what the table of each queue is rounded up to, so that no
	// two share a cache line.
	inflightAlign = 64
)

// InflightSize returns how many bytes the tables of so many queues take, of so
// many entries each; queue i's begins at InflightSize(i, size).
func InflightSize(queues, size int) uint64 {
	one := uint64(inflightEntries+entrySize*size+inflightAlign-1) &^ (inflightAlign - 1)
	return uint64(queues) * one
}

// NewInflight returns the table of size entries in mem, one queue's region. If
// nothing was ever there, it is set up, empty; else it is taken as it is, and the
// ring that is made with it begins with the requests in it.
//
// It is refused if mem is too short or not at a multiple of 8, if what is there
// is of a version that this does not know or has another number of entries, and
// if it faults (the caller runs with debug.SetPanicOnFault).
func NewInflight(mem []byte, size uint16) (t *Inflight, err error) {
	if size == 0 || size > MaxSize || len(mem) < inflightEntries+entrySize*int(size) {
		return nil, fmt.Errorf("an inflight table of %d entries in %d bytes: out of range", size, len(mem))
	}
	t = &Inflight{base: unsafe.Pointer(unsafe.SliceData(mem)), mem: mem, size: size}
	if uintptr(t.base)%8 != 0 {
		return nil, fmt.Errorf("an inflight table at an odd address: it must begin at a multiple of 8")
	}
	defer func() {
		if fault := recovered(recover(), func(addr uintptr) bool { return within(addr, mem) }); fault != nil {
			t, err = nil, fmt.Errorf("reading the inflight table: %w", fault)
		}
	}()
	version, count := load16(t.at(inflightVersion)), load16(t.at(inflightCount))
	switch {
	case version == 0:
		t.Reset()
	case version != 1:
		return nil, fmt.Errorf("an inflight table of version %d: only 1 is known", version)
	case count != size:
		return nil, fmt.Errorf("an inflight table of %d entries: want %d", count, size)
	}
	return t, nil
}

func (t *Inflight) at(off uintptr) unsafe.Pointer { return unsafe.Add(t.base, off) }

func (t *Inflight) entry(head uint16) unsafe.Pointer {
	return t.at(inflightEntries + entrySize*uintptr(head))
}

// Reset empties the table. It is for a driver that begins anew, with nothing in
// flight. REQUIRES: no ring uses the table.
func (t *Inflight) Reset() {
	put16(t.at(inflightVersion), 0) // a crash within leaves a table to set up
	for head := range t.size {
		put64(t.entry(head), 0)
		put64(unsafe.Add(t.entry(head), entryCounter), 0)
	}
	put64(t.at(0), 0)
	put16(t.at(inflightCount), t.size)
	put16(t.at(inflightLastBatch), 0)
	put16(t.at(inflightUsed), 0)
	put16(t.at(inflightVersion), 1)
	t.counter, t.last = 0, 0
}

// Count returns how many requests the table holds. It looks at all entries.
func (t *Inflight) Count() (n int) {
	for head := range t.size {
		if load64(t.entry(head))&0xff != 0 {
			n++
		}
	}
	return n
}

// restore makes the table fit a ring whose used index is used, and returns the
// requests in it, oldest first.
//
// If the ring's index has moved on from the table's, the predecessor ended
// between publishing a batch and clearing it (steps 5 to 7 of the specification):
// it is cleared now.
func (t *Inflight) restore(used, ringSize uint16) ([]uint16, error) {
	if batch := used - load16(t.at(inflightUsed)); batch != 0 && t.Count() > 0 {
		if batch > t.size {
			return nil, fmt.Errorf("%w: the used index is %d beyond that of the inflight table", ErrRing, batch)
		}
		head := load16(t.at(inflightLastBatch))
		for range batch {
			if head >= t.size {
				return nil, fmt.Errorf("%w: the inflight table's last batch has descriptor %d of %d", ErrRing, head, t.size)
			}
			next := uint16(load64(t.entry(head)) >> (8 * entryNext))
			t.clear(head)
			head = next
		}
	}
	put16(t.at(inflightUsed), used)
	t.last = load16(t.at(inflightLastBatch))

	type request struct {
		head    uint16
		counter uint64
	}
	var found []request
	for head := range t.size {
		if load64(t.entry(head))&0xff == 0 {
			continue
		}
		if head >= ringSize {
			return nil, fmt.Errorf("%w: the inflight table has descriptor %d of a ring of %d", ErrRing, head, ringSize)
		}
		found = append(found, request{head, load64(unsafe.Add(t.entry(head), entryCounter))})
	}
	slices.SortStableFunc(found, func(a, b request) int { return cmp.Compare(a.counter, b.counter) })
	heads := make([]uint16, len(found))
	for i, r := range found {
		heads[i] = r.head
		t.counter = r.counter + 1
	}
	return heads, nil
}

// The rest is a store each. Between any two of them the process may be killed.

// number gives a request its place in the order.
func (t *Inflight) number(head uint16) {
	put64(unsafe.Add(t.entry(head), entryCounter), t.counter)
	t.counter++
}

// begin takes note of a request that has its number (I1).
func (t *Inflight) begin(head uint16) { *(*byte)(t.entry(head)) = 1 }

// link has a request name the one that was staged before it.
func (t *Inflight) link(head uint16) {
	put16(unsafe.Add(t.entry(head), entryNext), t.last)
}

// stage takes note that a request is part of the batch to come.
func (t *Inflight) stage(head uint16) {
	put16(t.at(inflightLastBatch), head)
	t.last = head
}

// clear takes note that a request is used.
func (t *Inflight) clear(head uint16) { *(*byte)(t.entry(head)) = 0 }

// done takes note that the batch up to used is cleared.
func (t *Inflight) done(used uint16) { put16(t.at(inflightUsed), used) }
