package nbd

import (
	"fmt"
	"syscall"

	"vacate/internal/blk"
)

// A slot holds one request from when it is taken until it is done, or, if its
// reply has data, until that was sent. A read that is cut at holes has a slot for
// each part that is read.
type slot struct {
	blk     blk.Request
	conn    *conn
	request request
	place   place // in rx of a write's payload; in tx of a whole reply with data
	whole   *slot // the slot of the request that this is a part of; mostly itself

	// Of a whole request.
	left  int           // parts in flight
	errno syscall.Errno // of the first part that failed
}

// makeSlots makes the slots of c, none in use.
func (c *conn) makeSlots(depth int) {
	c.slots = make([]slot, depth)
	c.free = make([]*slot, depth)
	c.submit = make([]*blk.Request, 0, depth)
	for i := range c.slots {
		s := &c.slots[i]
		s.conn, s.blk.Done = c, s
		c.free[depth-1-i] = s
	}
}

// slot takes a free slot for the request r. REQUIRES: there is one.
func (c *conn) slot(r *request) *slot {
	last := len(c.free) - 1
	s := c.free[last]
	c.free = c.free[:last]
	s.request, s.whole, s.left, s.errno = *r, s, 0, 0
	return s
}

// part takes a free slot for a part of what s holds. REQUIRES: there is one.
func (c *conn) part(s *slot) *slot {
	last := len(c.free) - 1
	p := c.free[last]
	c.free = c.free[:last]
	p.whole = s
	return p
}

// vacate frees s.
func (c *conn) vacate(s *slot) { c.free = append(c.free, s) }

// stage has s, a part of s.whole, submitted with the next batch. REQUIRES: blk is
// filled in.
func (c *conn) stage(s *slot) {
	s.whole.left++
	c.submit = append(c.submit, &s.blk)
}

// read fills in the volume's request of a read of place from off on. It goes
// straight to where it is sent from: the cipher writes wherever that lies, and
// what the kernel copies has aligned buffers of its own.
func (s *slot) read(off uint64, place []byte) {
	q := &s.blk
	q.Op, q.Flags, q.Off, q.Len, q.Buf = blk.OpRead, 0, int64(off), int64(len(place)), place
}

// prepare fills in the volume's request of r, which is no read.
func (s *slot) prepare(r *request, payload []byte) {
	q := &s.blk
	q.Off, q.Len, q.Buf, q.Flags = int64(r.off), int64(r.length), nil, 0
	if r.flags&cmdFlagFUA != 0 {
		q.Flags = blk.FUA
	}
	switch r.typ {
	case cmdWrite:
		q.Op, q.Buf = blk.OpWrite, payload
	case cmdFlush:
		q.Op, q.Flags = blk.OpFlush, 0
	case cmdTrim:
		q.Op = blk.OpDiscard
	case cmdWriteZeroes:
		q.Op = blk.OpWriteZeroes
		if r.flags&cmdFlagNoHole != 0 {
			q.Flags |= blk.NoHole
		}
	default:
		panic(fmt.Sprintf("nbd: command %d has no request", r.typ))
	}
}

// Complete is called by the volume when a slot's request is done.
func (s *slot) Complete(r *blk.Request) {
	c, w := s.conn, s.whole
	c.inflight--
	if checked && c.inflight < 0 {
		panic("nbd: request completed twice")
	}
	if r.Errno != 0 && w.errno == 0 {
		w.errno = r.Errno
	}
	if r.Op == blk.OpWrite {
		wipe(r.Buf) // N2
	}
	r.Buf = nil
	w.left--
	if c.alone { // large.go looks at the slots itself
		return
	}
	if s != w {
		c.vacate(s)
	}
	if w.left == 0 {
		c.done(w)
	}
}

// done answers the request of s, all parts of which are complete.
func (c *conn) done(s *slot) {
	switch s.request.typ {
	case cmdRead:
		if s.errno == 0 {
			c.tally.count(&s.request, false)
			c.out.slot(s)
			return
		}
		wipe(c.tx[s.place.at:s.place.end]) // N3
		c.txUse.drop(&s.place)
	case cmdWrite:
		c.rxUse.drop(&s.place)
	}
	c.answer(&s.request, s.errno)
	c.vacate(s)
}
