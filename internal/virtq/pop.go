package virtq

import (
	"encoding/binary"
	"fmt"
	"math"
	"unsafe"

	"vacate/internal/plant"
)

// Flags of a descriptor (2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
)

const (
	// keepSlices is how many slices a chain keeps memory for when it is used again.
	keepSlices = MaxSize
	// maxSlices is how many a chain may have: each descriptor one, and some go across
	// regions. If each went across many, the chains in flight would take the memory
	// of this process.
	maxSlices = 4 * MaxSize

	// fetchAhead is how many requests fetch looks at.
	fetchAhead = 16
)

// A Chain is one request: the parts of guest memory that its descriptors name, in
// order. The zero value is ready for Pop, which uses its memory again.
//
// The slices are guest memory: they change at any time, may overlap each other
// and those of other requests, and may fault.
type Chain struct {
	Head     uint16   // names the request on its ring
	Again    bool     // a predecessor may have carried it out, in part or whole
	Readable [][]byte // what the driver has written for the device
	Writable [][]byte // what the device is to write

	ReadLen  uint64 // bytes of Readable
	WriteLen uint64 // bytes of Writable

	dirty []span // guest addresses of Writable, where there is a log
}

// A span is a range of guest memory.
type span struct{ addr, n uint64 }

func (c *Chain) reset() {
	if cap(c.Readable)+cap(c.Writable) > keepSlices {
		c.Readable, c.Writable, c.dirty = nil, nil, nil
	}
	c.Readable, c.Writable, c.dirty = c.Readable[:0], c.Writable[:0], c.dirty[:0]
	c.ReadLen, c.WriteLen = 0, 0
}

// A desc is a descriptor as it was read.
type desc struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

// Pop takes the next request into c, and reports whether there was one: those
// that a predecessor left in flight, then what the driver has made available. An
// error is for good; c is then nothing.
func (r *Ring) Pop(c *Chain) (ok bool, err error) {
	if r.broken != nil {
		return false, r.broken
	}
	defer r.caught(&err)
	again := len(r.resubmit) > 0
	var head uint16
	if again {
		head = r.resubmit[0]
	} else {
		if r.next == r.seen {
			if r.seen = load16(unsafe.Add(r.avail, availIdx)); r.seen == r.next {
				return false, nil
			}
			if ahead := r.seen - r.next; ahead > r.size { // Q3
				return false, r.fail(fmt.Errorf("%w: the available index is %d ahead in a ring of %d", ErrRing, ahead, r.size))
			}
			r.fetch()
		}
		head = load16(unsafe.Add(r.avail, availRing+2*uintptr(r.next&(r.size-1))))
	}
	if head >= r.size {
		return false, r.fail(fmt.Errorf("%w: descriptor %d of %d was made available", ErrRing, head, r.size))
	}
	if r.busy[head] { // Q1
		return false, r.fail(fmt.Errorf("%w: descriptor %d was made available while it is in flight", ErrRing, head))
	}
	c.reset()
	c.Head, c.Again = head, again
	if err := r.walk(c); err != nil {
		return false, r.fail(err)
	}
	if again {
		r.resubmit = r.resubmit[1:]
	} else {
		if r.inflight != nil {
			r.begin(head)
		}
		r.next++
	}
	r.busy[head] = true
	r.flying++
	return true, nil
}

// fetch has the descriptors of what was made available fetched, and the indirect
// tables that they name: they are in the cache of the driver's processor. What it
// reads decides only that, and is read again by Pop, which checks it.
func (r *Ring) fetch() {
	n := min(r.seen-r.next, fetchAhead)
	for i := range n {
		if head := load16(unsafe.Add(r.avail, availRing+2*uintptr((r.next+i)&(r.size-1)))); head < r.size {
			prefetch(unsafe.Add(r.desc, descSize*uintptr(head)))
		}
	}
	if !r.indirect {
		return
	}
	for i := range n {
		head := load16(unsafe.Add(r.avail, availRing+2*uintptr((r.next+i)&(r.size-1))))
		if head >= r.size {
			return
		}
		p := unsafe.Add(r.desc, descSize*uintptr(head))
		d := descOf(load64(p), load64(unsafe.Add(p, 8)))
		if d.flags&descIndirect == 0 {
			continue
		}
		if g := r.memory.find(d.addr); g != nil {
			prefetch(unsafe.Pointer(&g.Host[d.addr-g.GuestAddr]))
		}
	}
}

// begin takes note of a request in the inflight table.
func (r *Ring) begin(head uint16) {
	r.inflight.number(head)
	r.stored()
	if plant.Is(plant.InflightUnwritten) {
		return
	}
	r.inflight.begin(head)
	r.stored()
}

// walk follows a chain in the descriptor table. A chain that is longer than the
// table has a loop.
func (r *Ring) walk(c *Chain) error {
	for i, n := c.Head, uint16(0); n < r.size; n++ {
		p := unsafe.Add(r.desc, descSize*uintptr(i))
		d := descOf(load64(p), load64(unsafe.Add(p, 8)))
		if d.flags&descIndirect != 0 {
			return r.walkIndirect(c, d)
		}
		if err := r.add(c, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if i = d.next; i >= r.size {
			return fmt.Errorf("%w: a chain goes on at descriptor %d of %d", ErrRing, i, r.size)
		}
	}
	return fmt.Errorf("%w: the chain of descriptor %d has a loop", ErrRing, c.Head)
}

func descOf(addr, rest uint64) desc {
	return desc{addr: addr, len: uint32(rest), flags: uint16(rest >> 32), next: uint16(rest >> 48)}
}

// walkIndirect follows a chain in a table of its own (2.7.5.3), which it copies
// first. It is the end of the chain that names it.
func (r *Ring) walkIndirect(c *Chain, d desc) error {
	switch {
	case !r.indirect:
		return fmt.Errorf("%w: an indirect table, which was not negotiated", ErrRing)
	case d.flags&descNext != 0:
		return fmt.Errorf("%w: a chain goes on after an indirect table", ErrRing)
	case d.len == 0 || d.len%descSize != 0 || d.len > MaxSize*descSize:
		return fmt.Errorf("%w: an indirect table of %d bytes: want a multiple of %d, at most %d", ErrRing, d.len, descSize, MaxSize*descSize)
	}
	if err := r.copyTable(d); err != nil {
		return err
	}
	count := uint16(len(r.table) / descSize)
	for i, n := uint16(0), uint16(0); n < count; n++ {
		b := r.table[descSize*int(i):][:descSize]
		d := descOf(binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]))
		if d.flags&descIndirect != 0 {
			return fmt.Errorf("%w: an indirect table names another", ErrRing)
		}
		if err := r.add(c, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		if i = d.next; i >= count {
			return fmt.Errorf("%w: a chain goes on at descriptor %d of %d of an indirect table", ErrRing, i, count)
		}
	}
	return fmt.Errorf("%w: an indirect table of %d has a loop", ErrRing, count)
}

// copyTable reads an indirect table, once. It may go across regions.
func (r *Ring) copyTable(d desc) error {
	r.table = r.table[:0]
	for at, left := d.addr, uint64(d.len); left > 0; {
		g := r.memory.find(at)
		if g == nil {
			return fmt.Errorf("%w: an indirect table of %d bytes at %#x: %w", ErrRing, d.len, d.addr, ErrMemory)
		}
		from := at - g.GuestAddr
		n := min(left, g.Size-from)
		r.table = append(r.table, g.Host[from:from+n]...)
		at, left = at+n, left-n
	}
	return nil
}

// add adds the memory of one descriptor to the chain. One of no bytes adds none.
func (r *Ring) add(c *Chain, d desc) (err error) {
	n := uint64(d.len)
	if c.ReadLen+c.WriteLen+n > math.MaxUint32+1 {
		return fmt.Errorf("%w: the chain of descriptor %d has more than 2^32 bytes", ErrRing, c.Head)
	}
	if d.flags&descWrite != 0 {
		c.Writable, err = r.memory.Guest(c.Writable, d.addr, n)
		c.WriteLen += n
		if r.log != nil {
			c.dirty = append(c.dirty, span{d.addr, n})
		}
	} else {
		if len(c.Writable) > 0 {
			return fmt.Errorf("%w: the chain of descriptor %d has a part to read after one to write", ErrRing, c.Head)
		}
		c.Readable, err = r.memory.Guest(c.Readable, d.addr, n)
		c.ReadLen += n
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: the chain of descriptor %d: %w", ErrRing, c.Head, err)
	case len(c.Readable)+len(c.Writable) > maxSlices:
		return fmt.Errorf("%w: the chain of descriptor %d lies in more than %d pieces", ErrRing, c.Head, maxSlices)
	}
	return nil
}
