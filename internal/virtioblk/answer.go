package virtioblk

import (
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/fail"
)

// Complete is called by the volume when a part is done.
func (p *part) Complete(r *blk.Request) {
	j := p.job
	w := j.w
	w.inflight--
	if checked && w.inflight < 0 {
		panic("virtioblk: part completed twice")
	}
	errno := r.Errno
	if errno == 0 && p.bounce != nil && r.Op == blk.OpRead && !j.writeData(&p.data, p.bounce) {
		errno = syscall.EFAULT
	}
	w.reclaim(p)
	if errno != 0 {
		j.fail(errno)
	}
	if j.parts == 0 && j.left == 0 && j.next == j.listed && !j.queued {
		w.answer(j)
	}
}

// answer writes the status of a job that is over, and stages its used element.
func (w *Worker) answer(j *job) {
	ok := j.putStatus()
	w.count(j)
	r := j.ring
	r.inflight--
	r.dirty = true
	written := uint64(0)
	switch {
	case !ok:
	case j.code == statusOK && j.kind == kindID:
		written = min(IDSize, j.chain.WriteLen-1)
		if written == j.chain.WriteLen-1 {
			written++
		}
	case j.code == statusOK && j.kind == kindRead, j.chain.WriteLen == 1:
		written = j.chain.WriteLen
	}
	// What was written from the first byte on, without a gap (2.7.8.2).
	r.q.Done(&j.chain, uint32(written))
	j.ring = nil
	w.freeJobs = append(w.freeJobs, j)
	fail.At(fail.EngineRingDone)
}

// putStatus writes the last byte that the driver lets the device write. It reports
// false if there is none, or if it faults.
func (j *job) putStatus() (ok bool) {
	defer j.caught(&ok)
	for i := len(j.chain.Writable) - 1; i >= 0; i-- {
		if b := j.chain.Writable[i]; len(b) > 0 {
			b[len(b)-1] = j.code
			return true
		}
	}
	return false
}

// count takes note of a job that is over.
func (w *Worker) count(j *job) {
	w.told = false
	t := &w.tally
	if j.kind < kinds {
		t.requests[j.kind]++
	}
	switch {
	case j.code != statusOK:
		t.errors++
	case j.kind == kindRead:
		t.readBytes += uint64(j.bytes)
	case j.kind == kindWrite:
		t.writeBytes += uint64(j.bytes)
	}
}

// publish shows a driver what is staged, and calls it if it wants that.
func (w *Worker) publish(r *ring) {
	if !r.dirty {
		return
	}
	r.dirty = false
	call, err := r.q.Publish()
	fail.At(fail.EngineRingPublished)
	if err != nil {
		w.breakRing(r, err)
		return
	}
	if call {
		w.call(r)
	}
}
