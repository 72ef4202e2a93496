package crypt

import (
	"syscall"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/plant"
	"vacate/internal/sys"
	"vacate/internal/xts"
)

// Where the parent's buffer is foreign (a guest's memory, [blk.Foreign]), a cipher
// call may fault on it at any time:
//
//  1. One byte of each of its pages is touched first, outside of the gate: what
//     must be fetched from swap is fetched there, and what is gone faults there,
//     while no key is in a register.
//  2. What goes away after that faults within the call. leave clears what it left
//     in registers, and leaves the gate; the request ends with EFAULT.
//  3. Whoever called the cipher then clears the stack below itself, which has only
//     now unwound.
//
// A read that faults may leave its plaintext in the part of the buffer that is
// there: it is the tenant's, in the tenant's memory. A write that faults may leave
// part of its ciphertext in the drive's memory, as any write that fails.

// work encrypts the buffer of r, a write, into scratch, or decrypts scratch into
// that of a read.
func (q *queue) work(r *blk.Request, scratch []byte) (errno syscall.Errno) {
	if r.Flags&blk.Foreign != 0 {
		if errno = q.workForeign(r, scratch); errno == syscall.EFAULT {
			xts.Scrub()
		}
		return errno
	}
	if !q.run(r, scratch) {
		return syscall.ESHUTDOWN
	}
	return 0
}

func (q *queue) workForeign(r *blk.Request, scratch []byte) (errno syscall.Errno) {
	errno = syscall.EFAULT //nolint:wastedassign // what is returned after a fault
	defer caughtForeign(r.Buf)
	touchForeign(r)
	if !q.run(r, scratch) {
		return syscall.ESHUTDOWN
	}
	return 0
}

// caughtForeign ends the panic of a fault in b. It is deferred.
func caughtForeign(b []byte) {
	if p := recover(); p != nil && !mem.FaultIn(p, b) {
		panic(p)
	}
}

// run is the cipher's part of r: below is scratch, or a window of the device. It
// reports false if the gate is shut.
func (q *queue) run(r *blk.Request, below []byte) bool {
	if r.Op == blk.OpWrite {
		return q.encrypt(below, r.Buf, block(r))
	}
	return q.decrypt(r.Buf, below, block(r), r.Flags&blk.Foreign != 0)
}

// touchForeign touches each page of the buffer of r as the cipher will.
func touchForeign(r *blk.Request) {
	b := r.Buf
	first := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % blk.BlockSize)
	end := b[len(b)-1:]
	if first == 0 {
		end = nil // in a page that is touched
	}
	if r.Op == blk.OpWrite {
		touchLoad(b)
		touchLoad(end)
	} else {
		touchStore(b)
		touchStore(end)
	}
}

// wipe clears what a read leaves behind that fails. What of a foreign buffer is
// gone needs no clearing.
func wipe(b []byte, foreign bool) {
	if !foreign {
		mem.Wipe(b)
		return
	}
	for len(b) > 0 {
		into := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) % blk.BlockSize)
		n := min(len(b), blk.BlockSize-into) // a page, or what is left of one
		mem.ClearForeign(b[:n])
		b = b[n:]
	}
}

// encrypt encrypts blocks from first on, unless the gate is shut.
func (q *queue) encrypt(dst, src []byte, first uint64) bool {
	for len(src) > 0 {
		n := min(stretch, len(src))
		if !q.gate.Enter() {
			return false
		}
		q.seal(dst[:n], src[:n], first)
		dst, src, first = dst[n:], src[n:], first+stretch/blk.BlockSize
	}
	return true
}

// decrypt decrypts blocks from first on. If the gate is shut, or shuts on the
// way, it reports false and dst holds no plaintext (C3).
func (q *queue) decrypt(dst, src []byte, first uint64, foreign bool) bool {
	for done := 0; done < len(src); done += stretch {
		n := min(stretch, len(src)-done)
		if !q.gate.Enter() {
			if !plant.Is(plant.LateDecrypt) {
				wipe(dst[:done], foreign)
				return false
			}
			q.c.sched.Decrypt(dst[done:done+n], src[done:done+n], blk.BlockSize, first)
		} else {
			q.open(dst[done:done+n], src[done:done+n], first)
		}
		first += stretch / blk.BlockSize
	}
	return true
}

// seal and open are the cipher calls: one stretch, inside the gate that Enter
// has opened.

func (q *queue) seal(dst, src []byte, first uint64) {
	q.busy = true
	defer q.leave()
	switch {
	case plant.Is(plant.CipherNull):
		copy(dst, src)
	case plant.Is(plant.ScheduleLeft):
		left = *q.c.sched
		fallthrough
	default:
		// The processor sees by itself which lines are read next, up to the end of a
		// page; what is stored to it fetches too late.
		for ; len(src) > blk.BlockSize; first++ {
			mem.Prefetch(dst[blk.BlockSize:][:soon])
			q.c.sched.Encrypt(dst[:blk.BlockSize], src[:blk.BlockSize], blk.BlockSize, first)
			dst, src = dst[blk.BlockSize:], src[blk.BlockSize:]
		}
		q.c.sched.Encrypt(dst, src, blk.BlockSize, first)
	}
	q.busy = false
}

// left is where the planted bug leaves its copy.
var left xts.Schedule //nolint:unused // by builds with the tag planted

func (q *queue) open(dst, src []byte, first uint64) {
	q.busy = true
	defer q.leave()
	if plant.Is(plant.CipherNull) {
		copy(dst, src)
	} else {
		q.c.sched.Decrypt(dst, src, blk.BlockSize, first)
	}
	q.busy = false
}

// leave leaves the gate. If a fault unwinds a cipher call, the keys that it had in
// registers are cleared first, there and where the kernel has saved them.
func (q *queue) leave() {
	if q.busy {
		q.busy = false
		xts.Scrub()
		sys.OverwriteSignalFrame()
	}
	q.gate.Leave()
}
