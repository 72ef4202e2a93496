package ublk

import (
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
)

// A tag is a place for one request of the driver. It is with the driver, waits in
// asked, or is in the volume:
//
//	driver ──take──> asked ──begin──> volume ──Complete──> driver
//
// What is in the volume when the lease is closed is answered, and an orphan: the
// driver may use the tag again before the volume has completed it.
type tag struct {
	queue  *queue
	index  uint16
	flying bool // in the volume, or staged for it: blk is the volume's
	orphan bool
	desc   ublkcmd.Desc
	blk    blk.Request
}

// take fetches what the driver has completed. It reports whether there was something.
func (q *queue) take() (moved bool) {
	for {
		c, ok := q.ring.Next()
		if !ok {
			return moved
		}
		moved = true
		q.commands--
		t := &q.tags[c.ID]
		if c.Errno != 0 || c.N != ublkcmd.ResOK { // the device is stopped: this tag has no request any more
			if c.Errno != syscall.ENODEV {
				q.s.cfg.Log.Error("the driver refuses a command; the tag is served by the device's next server", "queue", q.index, "tag", t.index, "result", c.N, "error", c.Errno)
			}
			continue
		}
		t.desc = q.descs[t.index] // read once
		q.asked = append(q.asked, t)
	}
}

// launch begins what waits and finds room, submits it, and reaps. It reports whether
// that moved anything.
func (q *queue) launch() bool {
	begun := q.beginAll()
	q.inflight += len(q.submit)
	before, reaped := q.inflight, 0
	if len(q.submit) > 0 {
		q.volume.Submit(q.submit)
		q.submit = q.submit[:0]
	}
	if q.inflight > 0 {
		reaped = q.volume.Reap(false)
	}
	return begun || reaped > 0 || q.inflight < before
}

// beginAll begins the requests that wait, oldest first, until one finds no room. A
// queue that pauses begins none; one that is shut fails them.
func (q *queue) beginAll() bool {
	if !q.dying && (q.volume == nil || len(q.pausing) > 0) {
		return false
	}
	n := 0
	for n < len(q.asked) && q.begin(q.asked[n]) {
		n++
	}
	q.asked = append(q.asked[:0], q.asked[n:]...)
	return n > 0
}

// begin stages t, or answers it. It reports false if there is no room.
func (q *queue) begin(t *tag) bool {
	if q.dying { // and t.blk may be the volume's still
		t.answer(-int32(syscall.EIO))
		return true
	}
	r := &t.blk
	r.Off, r.Len = int64(t.desc.Start)*blk.SectorSize, int64(t.desc.Sectors)*blk.SectorSize
	r.Flags, r.Buf = 0, nil
	switch t.desc.Op() {
	case ublkcmd.OpRead:
		r.Op = blk.OpRead
	case ublkcmd.OpWrite:
		r.Op = blk.OpWrite
		if t.desc.Flags()&ublkcmd.ReqFUA != 0 {
			r.Flags = blk.FUA
		}
	case ublkcmd.OpFlush:
		r.Op, r.Off, r.Len = blk.OpFlush, 0, 0
	case ublkcmd.OpDiscard:
		r.Op = blk.OpDiscard
	case ublkcmd.OpWriteZeroes:
		r.Op = blk.OpWriteZeroes
		if t.desc.Flags()&ublkcmd.ReqNoUnmap != 0 {
			r.Flags = blk.NoHole
		}
	default:
		t.answer(-int32(syscall.EOPNOTSUPP))
		return true
	}
	if !q.admits(t) {
		t.answer(-int32(syscall.EIO))
		return true
	}
	if r.Op == blk.OpRead || r.Op == blk.OpWrite {
		return q.beginTransfer(t)
	}
	q.stage(t)
	return true
}

// admits reports whether the volume has what t asks for. (Its own layers look again.)
func (q *queue) admits(t *tag) bool {
	r := &t.blk
	switch {
	case r.Op == blk.OpFlush:
		return true
	case (r.Op == blk.OpRead || r.Op == blk.OpWrite) && r.Len > int64(q.s.cfg.MaxIO):
		return false
	case t.desc.Start > blk.MaxVolume/blk.SectorSize:
		return false
	}
	return r.Len > 0 && r.Off <= q.size && r.Len <= q.size-r.Off
}

// beginTransfer is begin for what has data.
func (q *queue) beginTransfer(t *tag) bool {
	r := &t.blk
	if r.Buf = q.arena.get(int(r.Len)); r.Buf == nil {
		return false
	}
	if r.Op == blk.OpWrite && !t.copied(sys.Pread) {
		t.clear()
		t.answer(-int32(syscall.EIO))
		return true
	}
	q.stage(t)
	return true
}

// stage puts t into the next batch.
func (q *queue) stage(t *tag) {
	t.flying = true
	q.submit = append(q.submit, &t.blk)
}

// clear gives back the memory of t.
func (t *tag) clear() {
	if t.blk.Buf != nil {
		t.queue.arena.put(t.blk.Buf)
		t.blk.Buf = nil
	}
}

// copied moves t's data from or to the driver, and reports whether all of it was.
func (t *tag) copied(move func(fd int, p []byte, off int64) (int, syscall.Errno)) bool {
	q := t.queue
	off := ublkcmd.BufOffset(q.index, t.index)
	for b := t.blk.Buf; len(b) > 0; {
		n, errno := move(q.s.fd, b, off)
		if errno != 0 || n <= 0 {
			return false
		}
		b, off = b[n:], off+int64(n)
	}
	return true
}

// Complete is called by the volume when the request is done.
func (t *tag) Complete(r *blk.Request) {
	q := t.queue
	q.inflight--
	if checked && (q.inflight < 0 || !t.flying) {
		panic("ublk: a request completed twice")
	}
	t.flying = false
	if t.orphan {
		t.orphan = false
		t.clear()
		return
	}
	result := int32(0)
	switch {
	case r.Errno != 0:
		result = -int32(errnoOf(r.Errno))
	case r.Op == blk.OpRead && !t.copied(sys.Pwrite):
		result = -int32(syscall.EIO)
	case r.Op == blk.OpRead, r.Op == blk.OpWrite:
		result = int32(r.Len) // at most MaxTransfer
	}
	t.clear()
	t.answer(result)
}

// answer gives the driver the result of t, and with it the command for the next
// request. It goes to the kernel with the next Enter.
func (t *tag) answer(result int32) { t.queue.command(t, ublkcmd.CommitAndFetchReq, result) }

// errnoOf is what the driver is told of a request that failed.
func errnoOf(errno syscall.Errno) syscall.Errno {
	switch errno {
	case syscall.EOPNOTSUPP, syscall.ENOSPC, syscall.ENOMEM:
		return errno
	}
	return syscall.EIO
}
