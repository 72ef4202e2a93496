package drive

import (
	"errors"
	"fmt"
	"sort"
	"syscall"

	"vacate/internal/blk"
)

// A SpanPiece is a range of a device.
type SpanPiece struct {
	Drive    blk.Device // compared with ==: pass the same value for the same drive
	Off, Len int64      // bytes, multiples of the device's logical block
}

// NewSpan makes one device of pieces, in order: a volume of its extents. Every
// piece but the last is at least [blk.MaxTransfer] long, so a request touches at
// most two. Pieces that continue one another on the same drive become one. No
// two may overlap.
//
// A flush goes once to each drive. Discards and write-zeroes are not for drives,
// and are answered with EOPNOTSUPP. Of a request in two parts that fails, N says
// how much was carried out from its start without a gap, and the errno is that
// of the first part that failed.
//
// A blocking Reap waits for one drive at a time; while that hangs, requests to
// other drives wait too. Who waits for what Pending says waits for all of them.
func NewSpan(pieces []SpanPiece) (blk.Device, error) {
	s := &spanDevice{geo: blk.Geometry{Logical: 1, Physical: 1}}
	for i, p := range pieces {
		if err := s.add(p); err != nil {
			return nil, fmt.Errorf("piece %d of a volume, %d bytes at %d: %w", i, p.Len, p.Off, err)
		}
	}
	if len(s.parts) == 0 {
		return nil, errors.New("a volume of no pieces")
	}
	for i, a := range s.parts {
		if a.len < blk.MaxTransfer && i < len(s.parts)-1 {
			return nil, fmt.Errorf("a piece of %d bytes in the middle of a volume: at least %d are needed", a.len, blk.MaxTransfer)
		}
		for _, b := range s.parts[:i] {
			if a.drive == b.drive && a.off < b.off+b.len && b.off < a.off+a.len {
				return nil, fmt.Errorf("two pieces of a volume overlap, at %d and at %d of the same drive", a.off, b.off)
			}
		}
	}
	return s, nil
}

// A part is a piece after merging.
type part struct {
	start    int64 // bytes from the start of the volume
	drive    int   // index into drives
	off, len int64 // bytes on the drive
}

// A spanDevice is the pieces as one device.
type spanDevice struct {
	parts  []part
	drives []blk.Device // each once
	geo    blk.Geometry
}

func (s *spanDevice) add(p SpanPiece) error {
	g := p.Drive.Geometry()
	unit := int64(max(g.Logical, 1))
	if p.Off < 0 || p.Len <= 0 || p.Off > g.Size || p.Len > g.Size-p.Off || p.Off%unit != 0 || p.Len%unit != 0 {
		return fmt.Errorf("not within a drive of %d bytes with blocks of %d", g.Size, unit)
	}
	if p.Len > blk.MaxVolume-s.geo.Size {
		return fmt.Errorf("the volume would be larger than %d bytes", int64(blk.MaxVolume))
	}
	drive := -1
	for i, d := range s.drives {
		if d == p.Drive {
			drive = i
		}
	}
	if drive < 0 {
		drive = len(s.drives)
		s.drives = append(s.drives, p.Drive)
		s.geo.Logical = max(s.geo.Logical, g.Logical)
		s.geo.Physical = max(s.geo.Physical, g.Physical)
	}
	if n := len(s.parts); n > 0 && s.parts[n-1].drive == drive && s.parts[n-1].off+s.parts[n-1].len == p.Off {
		s.parts[n-1].len += p.Len
	} else {
		s.parts = append(s.parts, part{start: s.geo.Size, drive: drive, off: p.Off, len: p.Len})
	}
	s.geo.Size += p.Len
	return nil
}

// at returns the index of the part that holds byte off of the volume.
func (s *spanDevice) at(off int64) int {
	return sort.Search(len(s.parts), func(i int) bool { return s.parts[i].start > off }) - 1
}

// Geometry implements [blk.Device].
func (s *spanDevice) Geometry() blk.Geometry { return s.geo }

// NewQueue implements [blk.Device]. Each drive may get two children of every
// request.
func (s *spanDevice) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a queue of depth %d: %w", depth, syscall.EINVAL)
	}
	q := &spanQueue{s: s, slots: make([]spanSlot, depth), free: make([]*spanSlot, 0, depth), refused: blk.NewFIFO(depth)}
	children := max(2, len(s.drives))
	for i := range q.slots {
		slot := &q.slots[i]
		slot.q = q
		slot.children = make([]spanChild, children)
		for j := range slot.children {
			c := &slot.children[j]
			c.slot, c.Done = slot, c
		}
		q.free = append(q.free, slot)
	}
	for _, d := range s.drives {
		below, err := d.NewQueue(2 * depth)
		if err != nil {
			return nil, errors.Join(err, q.Close())
		}
		q.below = append(q.below, below)
		w, _ := below.(blk.Windower)
		q.windows = append(q.windows, w)
		q.feeders = append(q.feeders, blk.NewFeeder(below, 2*depth))
	}
	return q, nil
}

type spanQueue struct {
	s         *spanDevice
	slots     []spanSlot
	free      []*spanSlot
	below     []blk.Queue    // by drive
	windows   []blk.Windower // by drive; nil where there are none
	feeders   []blk.Feeder   // by drive
	refused   blk.FIFO       // to be completed with an error
	refusing  bool           // that is under way further down the stack
	completed int            // requests, since the queue was made
	next      int            // drive that a blocking Reap waits for first
}

// A spanSlot is a request in flight, in parts.
type spanSlot struct {
	q        *spanQueue
	parent   *blk.Request
	children []spanChild
	used     int // children of this request, in the order of their offsets
	left     int // children that have not completed
}

type spanChild struct {
	blk.Request
	slot  *spanSlot
	drive int
}

// Submit implements [blk.Queue].
func (q *spanQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		q.start(r)
	}
	q.kick()
}

// kick hands down what was started, and completes what was refused.
func (q *spanQueue) kick() {
	for i := range q.feeders {
		q.feeders[i].Run(q)
	}
	if q.refusing {
		return
	}
	q.refusing = true
	for r := q.refused.Peek(); r != nil; r = q.refused.Peek() {
		q.refused.Pop()
		q.completed++
		r.Finish(0, q.s.refuse(r))
	}
	q.refusing = false
}

// Fill implements [blk.Source]: children are added when they are made.
func (q *spanQueue) Fill() {}

// start makes the children of r, or refuses it.
func (q *spanQueue) start(r *blk.Request) {
	if q.s.refuse(r) != 0 {
		q.refused.Push(r)
		return
	}
	if len(q.free) == 0 {
		panic("drive: more requests submitted to a span than the queue's depth")
	}
	slot := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	slot.parent, slot.used = r, 0
	if r.Op == blk.OpFlush {
		for i := range q.s.drives {
			slot.child(i, 0, nil)
		}
	} else {
		off, buf := r.Off, r.Buf
		for i := q.s.at(off); len(buf) > 0; i++ {
			p := &q.s.parts[i]
			n := min(int64(len(buf)), p.start+p.len-off)
			slot.child(p.drive, p.off+off-p.start, buf[:n])
			off, buf = off+n, buf[n:]
		}
	}
	slot.left = slot.used
	for i := range slot.children[:slot.used] {
		c := &slot.children[i]
		q.feeders[c.drive].Add(&c.Request)
	}
}

// refuse returns why r cannot be carried out.
func (s *spanDevice) refuse(r *blk.Request) syscall.Errno {
	switch r.Op {
	case blk.OpFlush:
		return 0
	case blk.OpRead, blk.OpWrite:
		if !r.InRange(s.geo.Size) || (r.Off|r.Len)&int64(s.geo.Logical-1) != 0 {
			return syscall.EINVAL
		}
		return 0
	}
	return syscall.EOPNOTSUPP
}

// child makes the next child.
func (s *spanSlot) child(drive int, off int64, buf []byte) {
	c := &s.children[s.used]
	s.used++
	c.drive = drive
	c.Op, c.Flags = s.parent.Op, s.parent.Flags
	c.Off, c.Len, c.Buf = off, int64(len(buf)), buf
	c.Errno, c.N = 0, 0
}

// Complete takes note of a child, and completes the parent with the last.
func (c *spanChild) Complete(*blk.Request) {
	s := c.slot
	q := s.q
	q.feeders[c.drive].Finished()
	s.left--
	if s.left > 0 {
		return
	}
	var n int64
	var errno syscall.Errno
	for i := range s.children[:s.used] {
		child := &s.children[i]
		child.Buf = nil
		if errno == 0 {
			n += child.N
			errno = child.Errno
		}
	}
	r := s.parent
	s.parent = nil
	q.free = append(q.free, s)
	q.completed++
	r.Finish(n, errno)
}

// Reap implements [blk.Queue].
func (q *spanQueue) Reap(wait bool) int {
	before := q.completed
	if len(q.below) > 1 || !wait {
		for _, b := range q.below {
			b.Reap(false)
		}
		q.kick()
	}
	for wait && q.completed == before {
		i := q.busy()
		if i < 0 {
			break
		}
		q.below[i].Reap(true)
		q.kick()
	}
	return q.completed - before
}

// busy returns a drive that has children in flight and can be waited for, each
// in turn, or -1. While a drive's queue is being submitted to, further down the
// stack, waiting for it would wait for ourselves.
func (q *spanQueue) busy() int {
	for range q.feeders {
		q.next = (q.next + 1) % len(q.feeders)
		if f := &q.feeders[q.next]; f.InFlight() > 0 && !f.Running() {
			return q.next
		}
	}
	return -1
}

// Close implements [blk.Queue].
func (q *spanQueue) Close() error {
	if len(q.free) != len(q.slots) {
		panic("drive: span queue closed with requests in flight")
	}
	var errs []error
	for _, b := range q.below {
		errs = append(errs, b.Close())
	}
	return errors.Join(errs...)
}
