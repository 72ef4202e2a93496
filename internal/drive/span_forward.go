package drive

import "vacate/internal/blk"

// What a span does for others than requests: it hands on what the drives below
// can do beyond them.

// within returns the part that holds all of n bytes at off, or nil.
func (s *spanDevice) within(off, n int64) *part {
	if off < 0 || n <= 0 || off > s.geo.Size-n {
		return nil
	}
	p := &s.parts[0]
	if len(s.parts) > 1 {
		p = &s.parts[s.at(off)]
	}
	if off+n > p.start+p.len {
		return nil
	}
	return p
}

// Window implements [blk.Windower], for what lies in one part on a drive that
// gives windows.
func (q *spanQueue) Window(op blk.Op, off, n int64) []byte {
	p := q.s.within(off, n)
	if p == nil || q.windows[p.drive] == nil {
		return nil
	}
	return q.windows[p.drive].Window(op, p.off+off-p.start, n)
}

// Faulted implements [blk.Windower].
func (q *spanQueue) Faulted(op blk.Op, off, n int64) {
	p := q.s.within(off, n)
	q.windows[p.drive].Faulted(op, p.off+off-p.start, n)
}

// Pending implements [blk.Waiter]: each drive with something in flight may be
// waited for, all at once.
func (q *spanQueue) Pending(w *blk.Wait) {
	for i, b := range q.below {
		if q.feeders[i].InFlight() > 0 {
			blk.Pending(b, w)
		}
	}
}

// Register implements [blk.Registrar]: every drive may be given any buffer.
func (q *spanQueue) Register(memory []byte) {
	for _, b := range q.below {
		if r, ok := b.(blk.Registrar); ok {
			r.Register(memory)
		}
	}
}
