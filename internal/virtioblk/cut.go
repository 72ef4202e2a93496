package virtioblk

import (
	"vacate/internal/blk"
	"vacate/internal/xts"
)

// How a request is cut into parts:
//
//	C1: parts tile the request, in order, each at most MaxTransfer long.
//	C2: each part but the last ends at a block, so no two parts share one.
//	C3: a part lies in one slice of the driver's memory, or in a bounce buffer if
//	    the slice ends within the part's first block.

// A fifo holds jobs, oldest first, at most as many as it was made for.
type fifo struct {
	ring []*job
	head int
	n    int
}

func (f *fifo) push(j *job) {
	f.ring[(f.head+f.n)%len(f.ring)] = j
	f.n++
}

func (f *fifo) peek() *job { return f.ring[f.head] }

func (f *fifo) pop() {
	f.ring[f.head] = nil
	f.head = (f.head + 1) % len(f.ring)
	f.n--
}

// furnish makes what is needed for requests in flight.
func (w *Worker) furnish() {
	depth := w.cfg.Depth
	w.jobs, w.freeJobs = make([]job, depth), make([]*job, depth)
	w.parts, w.free = make([]part, depth), make([]*part, depth)
	w.cutting = fifo{ring: make([]*job, depth)}
	w.submit = make([]*blk.Request, 0, depth)
	for i := range depth {
		w.jobs[i].w = w
		w.parts[i].blk.Done = &w.parts[i]
		w.freeJobs[depth-1-i], w.free[depth-1-i] = &w.jobs[i], &w.parts[i]
	}
}

// stage cuts j, as far as there are parts and bounce buffers, and no further than its
// share of them; and reports whether all of it is staged.
func (w *Worker) stage(j *job) bool {
	for j.left > 0 {
		if !w.mayCut(j) || !w.cut(j) {
			return false
		}
	}
	for ; j.next < j.listed; j.next++ {
		if !w.mayCut(j) {
			return false
		}
		s := &j.segments[j.next]
		p := w.part(j)
		p.blk.Flags, p.blk.Off, p.blk.Len, p.blk.Buf = s.flags, s.off, s.len, nil
		if j.next > 0 {
			p.blk.Flags |= blk.Continued
		}
	}
	return true
}

// mayCut reports whether there is a part for j, and j has not its share already.
func (w *Worker) mayCut(j *job) bool {
	return len(w.free) > 0 && j.parts < len(w.parts)-len(w.parts)/4 && j.flying < maxFlying
}

// part takes a part for j, which is submitted with the next batch. REQUIRES: one is
// free.
func (w *Worker) part(j *job) *part {
	last := len(w.free) - 1
	p := w.free[last]
	w.free = w.free[:last]
	p.job, p.bounce = j, nil
	p.blk.Op = j.op
	j.parts++
	w.submit = append(w.submit, &p.blk)
	return p
}

// cut stages the next part of a read or write. It reports false if there is no
// bounce buffer. REQUIRES: a part is free.
func (w *Worker) cut(j *job) bool {
	b := j.data.here()
	if n := wholeBlocks(j.off, j.left, int64(len(b))); n > 0 {
		p := w.part(j)
		p.blk.Flags, p.blk.Off, p.blk.Len, p.blk.Buf = j.flags|blk.Foreign|j.counted(), j.off, n, b[:n:n]
		j.flying += n
		j.data.off += int(n)
		j.off += n
		j.left -= n
		return true
	}
	bounce := w.bounces.Get()
	if bounce == nil {
		return false
	}
	n := j.gather()
	p := w.part(j)
	p.bounce = bounce[:n]
	p.blk.Flags, p.blk.Off, p.blk.Len, p.blk.Buf = j.flags|j.counted(), j.off, n, p.bounce
	p.data = j.data
	j.flying += n
	j.off += n
	j.left -= n
	if j.kind == kindWrite && !j.fillBounce(p.bounce) {
		w.spill(p)
	} else if j.kind == kindRead {
		j.data.skip(int(n))
	}
	return true
}

// counted returns the flag of the next part: one in MaxTransfer counts as a request, in
// however many pieces the driver's memory lies. So limits are the same for all exports.
func (j *job) counted() blk.Flags {
	if j.bytes-j.left < j.counts {
		return blk.Continued
	}
	j.counts += blk.MaxTransfer
	return 0
}

// wholeBlocks returns how much of the next left bytes at off goes straight to or
// from a slice of length have: all of them, or up to the end of a block; 0 if the
// slice ends before that.
func wholeBlocks(off, left, have int64) int64 {
	n := min(have, blk.MaxTransfer)
	if n >= left {
		return left
	}
	return max((off+n)&^(blk.BlockSize-1)-off, 0)
}

// gather returns how many bytes of the request to bounce: up to the end of the
// block from which on a part can go straight again, all that is left, or what fits
// a bounce buffer.
func (j *job) gather() int64 {
	c := j.data
	n := int64(0)
	for {
		step := min(blk.BlockSize-(j.off+n)&(blk.BlockSize-1), j.left-n)
		if n+step > bounceSize {
			return n
		}
		n += step
		if n == j.left {
			return n
		}
		c.skip(int(step))
		if wholeBlocks(j.off+n, j.left-n, int64(len(c.here()))) > 0 {
			return n
		}
	}
}

// fillBounce copies what is to be written, and leaves nothing of it in registers.
func (j *job) fillBounce(b []byte) (ok bool) {
	defer xts.ClearVectors()
	defer j.caught(&ok)
	return j.data.copyOut(b) == len(b)
}

// spill takes the part that was staged last out of the batch again: its memory
// faulted.
func (w *Worker) spill(p *part) {
	w.submit = w.submit[:len(w.submit)-1]
	j := p.job
	w.reclaim(p)
	j.code, j.left, j.next = statusIOErr, 0, j.listed
}

// reclaim frees a part, and clears its bounce buffer (V3).
func (w *Worker) reclaim(p *part) {
	if p.bounce != nil {
		w.bounces.Put(p.bounce)
		p.bounce = nil
	}
	p.job.flying -= int64(len(p.blk.Buf))
	p.blk.Buf = nil
	p.job.parts--
	p.job = nil
	w.free = append(w.free, p)
}
