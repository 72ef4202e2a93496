package volume

import (
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/plant"
)

// What an op has towards exclusion.
type hold uint8

const (
	holdNone   hold = iota
	holdFlight      // its blocks are published
	holdTicket      // it has a ticket
)

// The kids of an op: one for each edge, one for the whole blocks. A request in
// whole blocks has only the last.
const (
	kidMiddle = 2
	maxKids   = 3
)

// An op is a request on its way.
//
//	         ┌─clash, or exclusive─> in line ─turn─┐
//	start ───┴──────────────────────────────────> run ──> kids ──> finish
//	                                                read-modify-write: ─> kids again ─┘
type op struct {
	q      *queue
	slot   int // in q.ops and q.flights
	parent *blk.Request

	lo, hi uint64 // the blocks it covers are lo … hi-1
	hold   hold
	ticket int // with holdTicket

	parts parts     // of a request that is cut; no edges otherwise
	pages [2][]byte // the blocks at the edges

	writing bool // the second step of a read-modify-write
	left    int  // kids in flight
	errno   syscall.Errno
	kids    [maxKids]kid
}

// A kid is a request to the queue below.
type kid struct {
	op  *op
	req blk.Request
}

func (o *op) init(q *queue, slot int) {
	o.q, o.slot = q, slot
	for i := range o.kids {
		k := &o.kids[i]
		k.op, k.req.Done = o, k
	}
}

// cover says which blocks the op covers: all that have a byte in off … end-1.
func (o *op) cover(off, end int64) {
	o.lo, o.hi = uint64(off)/blk.BlockSize, uint64(up(end))/blk.BlockSize
}

// startWhole starts a request in whole blocks, or a flush, which covers nothing
// and excludes nothing.
func (o *op) startWhole() {
	r := o.parent
	o.parts.mid, o.parts.end = r.Off, r.Off+r.Len
	if r.Op == blk.OpFlush {
		o.run()
		return
	}
	o.cover(r.Off, r.Off+r.Len)
	o.startShared()
}

// startCut starts a request with edges, for which there are pages.
func (o *op) startCut(p parts) {
	r := o.parent
	o.q.tally.subBlock++
	o.parts = p
	for i := range p.count {
		o.pages[i] = o.q.pages.Get()
	}
	o.cover(r.Off, r.Off+r.Len)
	switch {
	case r.Op == blk.OpRead:
		o.startShared()
	case plant.Is(plant.ExclusionOff) || o.turn():
		o.run()
	default:
		o.q.line = append(o.q.line, o)
	}
}

// startShared starts an op that may run beside others, unless a ticket is in
// its way.
func (o *op) startShared() {
	x, f := &o.q.v.excl, o.q.flights
	if plant.Is(plant.ExclusionOff) {
		o.run()
		return
	}
	o.hold = holdFlight
	if x.publish(f, o.slot, o.lo, o.hi) {
		o.run()
		return
	}
	o.release()
	if o.turn() {
		o.run()
		return
	}
	o.q.line = append(o.q.line, o)
}

// turn takes a ticket if the op has none, and reports whether it may run.
func (o *op) turn() bool {
	x := &o.q.v.excl
	if o.hold == holdNone {
		i, ok := x.take(o.lo, o.hi)
		if !ok {
			return false // 64 tickets are out: again when the bell rings
		}
		o.hold, o.ticket = holdTicket, i
	}
	return x.turn(o.ticket)
}

// release gives up the flight or the ticket.
func (o *op) release() {
	switch o.hold {
	case holdFlight:
		o.q.v.excl.withdraw(o.q.flights, o.slot)
	case holdTicket:
		o.q.v.excl.drop(o.ticket)
	}
	o.hold = holdNone
}

// run sends the first kids: all of them, or for a read-modify-write the reads of
// the edges.
func (o *op) run() {
	r := o.parent
	if o.parts.count == 0 {
		o.send(kidMiddle, r.Op, o.parts.mid, o.parts.end-o.parts.mid, r.Buf)
		return
	}
	for i := range o.parts.count {
		o.send(i, blk.OpRead, o.parts.edges[i].off, blk.BlockSize, o.pages[i])
	}
	if r.Op == blk.OpRead {
		o.sendMiddle()
	}
}

// sendMiddle sends the whole blocks of a request that is cut, if it has any.
func (o *op) sendMiddle() {
	r, p := o.parent, &o.parts
	if p.mid == p.end {
		return
	}
	buf := r.Buf // none if the request carries none
	if buf != nil {
		buf = buf[p.mid-r.Off : p.end-r.Off]
	}
	o.send(kidMiddle, r.Op, p.mid, p.end-p.mid, buf)
}

func (o *op) send(i int, what blk.Op, off, length int64, buf []byte) {
	k := &o.kids[i]
	flags := o.parent.Flags &^ blk.Continued // it is counted here
	if what == blk.OpRead {
		flags &= blk.Foreign // FUA is about writes, also where they begin with a read
	}
	if i != kidMiddle {
		flags &^= blk.Foreign // the page is the volume's own
	}
	c := &k.req // Done stays; Errno and N are the layer's below
	c.Op, c.Flags, c.Off, c.Len, c.Buf = what, flags, off, length, buf
	o.left++
	o.q.feed.Add(&k.req)
}

// Complete is called when a kid is complete.
func (k *kid) Complete(r *blk.Request) {
	o := k.op
	o.q.feed.Finished()
	if r.Errno != 0 && o.errno == 0 {
		o.errno = r.Errno
	}
	if o.left--; o.left > 0 {
		return
	}
	switch {
	case o.parts.count == 0:
		o.finish(r.N, o.errno)
	case o.errno != 0:
		o.finish(0, o.errno) // V3
	case o.parent.Op == blk.OpRead:
		if !o.copyEdges() {
			o.finish(0, syscall.EFAULT)
			return
		}
		o.finish(o.parent.Len, 0)
	case !o.writing:
		o.writeBack()
	default:
		o.finish(o.parent.Len, 0)
	}
}

// writeBack is the second step of a read-modify-write: the edges are read, are
// changed, and go back with the whole blocks between them. An edge that is all
// zeros after a write-zeroes or a discard needs no space: an unwritten block
// stays one.
func (o *op) writeBack() {
	o.writing = true
	if !o.copyEdges() {
		o.finish(0, syscall.EFAULT) // before anything is written
		return
	}
	for i := range o.parts.count {
		e, page := &o.parts.edges[i], o.pages[i]
		if o.parent.Op != blk.OpWrite && mem.IsZero(page) {
			o.send(i, blk.OpWriteZeroes, e.off, blk.BlockSize, nil)
			continue
		}
		o.send(i, blk.OpWrite, e.off, blk.BlockSize, page)
	}
	o.sendMiddle()
}

// copyEdges moves the covered parts of the edges between their pages and the
// parent's buffer, or has them be zeros. It reports false where the buffer faults,
// as the memory of a guest may.
func (o *op) copyEdges() bool {
	r := o.parent
	for i := range o.parts.count {
		e := &o.parts.edges[i]
		own := o.pages[i][e.from:e.to]
		if r.Op != blk.OpRead && r.Op != blk.OpWrite {
			clear(own)
			continue
		}
		theirs := r.Buf[e.at : e.at+int64(len(own))]
		dst, src := theirs, own
		if r.Op == blk.OpWrite {
			dst, src = own, theirs
		}
		if r.Flags&blk.Foreign == 0 {
			mem.Copy(dst, src)
		} else if !mem.CopyForeign(dst, src, theirs) {
			return false
		}
	}
	return true
}

// finish frees the op, and then completes the parent: its owner may submit
// again from there. That it runs no more is noted last (Q4).
func (o *op) finish(n int64, errno syscall.Errno) {
	q, r := o.q, o.parent
	for i := range o.parts.count {
		q.pages.Put(o.pages[i]) // V4
		o.pages[i] = nil
	}
	o.release()
	o.kids[kidMiddle].req.Buf = nil
	o.parent, o.parts.count, o.writing, o.errno = nil, 0, false, 0
	q.free = append(q.free, o)
	q.delivered++
	q.tally.add(r, errno)
	r.Finish(n, errno)
	q.running--
}
