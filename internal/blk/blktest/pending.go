package blktest

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"vacate/internal/blk"
)

// testPending: an owner that never blocks in Reap, unless it is told to, waits
// for what [blk.Pending] says, and is always woken. An idle queue names nothing.
func testPending(t *testing.T, dev blk.Device) {
	const depth, rounds = 8, 50
	k := newTracker(t, dev, depth)
	var w blk.Wait
	idle := func(when string) {
		t.Helper()
		k.reap(false)
		if p, ok := k.q.(blk.Waiter); ok {
			p.Pending(&w)
		}
		if len(w.FDs) != 0 || w.Due != 0 || w.Blind {
			t.Errorf("%s the queue says that it waits for something: %+v", when, w)
			w.Reset()
		}
	}
	idle("before the first request")
	for round := range rounds {
		ops := make([]*op, depth)
		for i := range ops {
			ops[i] = k.op(blk.Op((i+round)%2), int64(i)*blk.MaxTransfer, Buffer(blk.BlockSize<<(i%3)))
		}
		k.submit(ops...)
		for k.inFlight > 0 && !t.Failed() {
			before := k.completions
			k.reap(false)
			if k.completions == before {
				w.Reset()
				blk.Pending(k.q, &w)
				await(k, &w)
			}
		}
		for _, o := range ops {
			if o.Errno != 0 {
				t.Errorf("%v at %d: %v", o.Op, o.Off, o.Errno)
			}
		}
		runtime.KeepAlive(ops)
	}
	w.Reset()
	idle("after the last request")
}

// await waits as w says, for at most ten seconds where a descriptor announces
// what is waited for.
func await(k *tracker, w *blk.Wait) {
	switch {
	case w.Blind:
		k.reap(true)
	case w.Due != 0: // the tests that set limits wait for it; here, look again
	case len(w.FDs) == 0:
		k.t.Errorf("%d in flight, and Pending names nothing to wait for", k.inFlight)
	default:
		if !readable(w.FDs) {
			k.t.Errorf("%d in flight, and none of the descriptors %v became readable", k.inFlight, w.FDs)
		}
	}
}

// readable waits until one of the descriptors is.
func readable(fds []int32) bool {
	type pollFD struct { // poll(2)
		fd              int32
		events, revents int16
	}
	set := make([]pollFD, len(fds))
	for i, fd := range fds {
		set[i] = pollFD{fd: fd, events: 1} // POLLIN
	}
	patience := syscall.Timespec{Sec: 10}
	for {
		n, _, errno := syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&set[0])), uintptr(len(set)),
			uintptr(unsafe.Pointer(&patience)), 0, 0, 0)
		if errno != syscall.EINTR {
			return errno == 0 && n > 0
		}
	}
}
