package crypt

import (
	"bytes"
	"runtime"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/mem"
	"vacate/internal/xts"
)

// TestForeignNoDeviceFault: a foreign buffer that is gone is no failure of a device
// that lies in memory; a window that is gone is, and then a foreign buffer holds
// nothing of the device. Nobody stays inside of the gate.
func TestForeignNoDeviceFault(t *testing.T) {
	s, _ := newSchedule(t, 1)
	d := newInMemory(t, 1<<20)
	c := New(d, s, mem.TryLock)
	q := newQueue(t, c, 2)
	f := blktest.NewForeign(t, 8)
	do := func(op blk.Op, want syscall.Errno, skew int) {
		t.Helper()
		r := blk.Request{Op: op, Flags: blk.Foreign, Len: 7 * blk.BlockSize, Buf: f.Bytes[skew : skew+7*blk.BlockSize]}
		if _ = blk.Do(q, &r); r.Errno != want || want != 0 && r.N != 0 {
			t.Errorf("%v: %v, N = %d, want %v", op, r.Errno, r.N, want)
		}
	}
	for _, skew := range []int{0, 1, 2048} {
		do(blk.OpWrite, 0, skew)
		f.Cut(t, 5)
		do(blk.OpWrite, syscall.EFAULT, skew)
		do(blk.OpRead, syscall.EFAULT, skew)
		f.Cut(t, 8)
		if len(d.faults) != 0 {
			t.Fatalf("the device was told of %+v", d.faults)
		}
		d.protect(t, 3, syscall.PROT_NONE)
		for i := range f.Bytes {
			f.Bytes[i] = 0x5A
		}
		do(blk.OpRead, syscall.EIO, skew)
		if !mem.IsZero(f.Bytes[skew:][:7*blk.BlockSize]) {
			t.Error("C3: a read that failed left something in its buffer")
		}
		d.protect(t, 3, syscall.PROT_READ|syscall.PROT_WRITE)
		if len(d.faults) != 1 {
			t.Errorf("the device was told of %+v", d.faults)
		}
		d.faults = nil
		do(blk.OpRead, 0, skew)
	}
	c.Revoke()
}

// TestL2ForeignFaultLeavesNoKey: as with a fault on a window, in memory and through
// scratch.
func TestL2ForeignFaultLeavesNoKey(t *testing.T) {
	if !undisturbed(t) {
		return
	}
	runtime.LockOSThread() // as the engine's threads are
	defer runtime.UnlockOSThread()
	s, copies := newSlot(t)
	d := newInMemory(t, 1<<20)
	q := newQueue(t, New(d, s, mem.TryLock), 1).(*queue)
	f := blktest.NewForeign(t, 1)
	f.Cut(t, 0)
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		r := blk.Request{Op: op, Flags: blk.Foreign, Len: blk.BlockSize, Buf: f.Bytes}
		for way, errno := range map[string]syscall.Errno{
			"window":  q.late(&r, d.bytes[:blk.BlockSize]),
			"scratch": q.late(&r, q.scratch.buf[:blk.BlockSize]),
			"touched": q.work(&r, q.scratch.buf[:blk.BlockSize]),
		} {
			if errno != syscall.EFAULT {
				t.Fatalf("%v by %s: %v, want EFAULT", op, way, errno)
			}
		}
		if n := copies(); n != 0 {
			t.Errorf("L2: %d round keys are in memory after a fault in a %v", n, op)
		}
	}
	func() { // the search finds what a fault leaves that nobody cleans up after
		defer func() { _ = recover() }()
		s.Decrypt(f.Bytes, d.bytes[:blk.BlockSize], blk.BlockSize, 0)
	}()
	if n := copies(); n == 0 && xts.Implementation() != "generic" {
		t.Error("no round key is found after a fault without cleaning up: this test finds nothing")
	}
}

// late is work on a buffer that goes away after it was touched.
func (q *queue) late(r *blk.Request, below []byte) (errno syscall.Errno) {
	if errno = q.lateCall(r, below); errno == syscall.EFAULT {
		xts.Scrub()
	}
	return errno
}

func (q *queue) lateCall(r *blk.Request, below []byte) (errno syscall.Errno) {
	errno = syscall.EFAULT //nolint:wastedassign // what is returned after a fault
	defer caughtForeign(r.Buf)
	q.run(r, below)
	return 0
}

// TestL5ForeignWipe: a read that is cut short by Revoke leaves nothing in what is
// left of a foreign buffer, and does not fault on what is gone.
func TestL5ForeignWipe(t *testing.T) {
	f := blktest.NewForeign(t, 3)
	for _, skew := range []int{0, 100} {
		f.Cut(t, 3)
		copy(f.Bytes, bytes.Repeat([]byte{1}, len(f.Bytes)))
		f.Cut(t, 2)
		wipe(f.Bytes[skew:], true)
		if !mem.IsZero(f.Bytes[skew : 2*blk.BlockSize]) {
			t.Errorf("from %d on something is left", skew)
		}
	}
}

// TestForeignComesAndGoes: memory that is cut and brought back while requests are
// under way, at any moment of theirs. Each is carried out or ends with EFAULT.
func TestForeignComesAndGoes(t *testing.T) {
	s, _ := newSchedule(t, 1)
	d := newInMemory(t, 1<<20)
	d.windows = func(off int64) bool { return off == 0 } // the other way too
	c := New(d, s, mem.TryLock)
	q := newQueue(t, c, 1)
	f := blktest.NewForeign(t, 16)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				f.Cut(t, i%2*16)
			}
		}
	}()
	ends := map[syscall.Errno]int{}
	// A busy machine may give the other goroutine no turn for a while.
	for i, began := 0, time.Now(); i < 6000 || len(ends) < 2 && time.Since(began) < time.Minute; i++ {
		r := blk.Request{Op: blk.Op(i % 2), Flags: blk.Foreign, Off: int64(i / 2 % 2 * 16 * blk.BlockSize), Len: 15 * blk.BlockSize, Buf: f.Bytes[i%3:][:15*blk.BlockSize]}
		_ = blk.Do(q, &r) // what it came to is in r
		ends[r.Errno]++
	}
	close(stop)
	<-stopped
	if len(ends) != 2 || ends[0] == 0 || ends[syscall.EFAULT] == 0 {
		t.Errorf("the requests ended with %v, want some carried out, some EFAULT", ends)
	}
	c.Revoke()
}
