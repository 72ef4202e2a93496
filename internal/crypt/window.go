package crypt

import (
	"runtime/debug"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// Where the device lies in memory, a read or write is carried out at once, and
// in place: there is no scratch, no child and no copy.
//
//  1. Submit asks the queue below for a window of the device (backlog.go). If there
//     is none, the request takes the ordinary way.
//  2. One byte of each page of the window is touched, outside of the gate. A page
//     that must be fetched from swap is fetched here, and one that is gone
//     faults here: while no key is in a register, and with nobody waiting.
//  3. The cipher works between the window and the parent's buffer, inside the
//     gate, a stretch at a time (C1). A page that goes away after step 2 still
//     faults here; leave then clears what the cipher left.
//  4. A fault on the window, in either step, is an EIO of this request, and its
//     buffer holds nothing that was decrypted for it. A fault on a foreign buffer
//     is an EFAULT of this request (cipher.go), and no failure of the device.

// inPlace carries out r, which check has let pass, in the window w.
func (q *queue) inPlace(r *blk.Request, w []byte) (n int64, errno syscall.Errno) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer q.caught(r, w, &n, &errno)
	if r.Op == blk.OpWrite {
		touchStore(w)
	} else {
		touchLoad(w)
	}
	if r.Flags&blk.Foreign != 0 {
		touchForeign(r)
	}
	if !q.run(r, w) {
		return 0, syscall.ESHUTDOWN
	}
	return r.Len, 0
}

// caught makes a fault on w, or on a foreign buffer, the result of r. It is
// deferred. What else panics goes on.
func (q *queue) caught(r *blk.Request, w []byte, n *int64, errno *syscall.Errno) {
	p := recover()
	if p == nil {
		return
	}
	foreign := r.Flags&blk.Foreign != 0
	switch {
	case mem.FaultIn(p, w):
		q.windows.Faulted(r.Op, r.Off, r.Len)
		if r.Op == blk.OpRead {
			wipe(r.Buf, foreign)
		}
		*n, *errno = 0, syscall.EIO
	case foreign && mem.FaultIn(p, r.Buf):
		*n, *errno = 0, syscall.EFAULT
	default:
		panic(p)
	}
}

// touchLoad reads a byte of each page of w.
//
//go:noinline
func touchLoad(w []byte) (all byte) { //nolint:unparam // see below
	for i := 0; i < len(w); i += blk.BlockSize {
		all |= w[i]
	}
	return all // so that the loads are made
}
