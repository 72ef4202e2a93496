package crypt

import (
	"bytes"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/mem"
	"vacate/internal/xts"
)

// inMemory is a device that lies in memory. Its pages can be taken away.
type inMemory struct {
	ram
	windows  func(off int64) bool // which offsets have one; nil: all
	skew     int                  // bytes by which windows lie off the requests' place
	given    atomic.Int64
	faults   []blk.Request
	register [][]byte
}

func newInMemory(tb testing.TB, size int) *inMemory {
	tb.Helper()
	p, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := syscall.Munmap(p); err != nil {
			tb.Error(err)
		}
	})
	return &inMemory{ram: ram{p}}
}

// protect lets a block be touched, or not.
func (d *inMemory) protect(tb testing.TB, block, prot int) {
	tb.Helper()
	if err := syscall.Mprotect(d.bytes[block*blk.BlockSize:(block+1)*blk.BlockSize], prot); err != nil {
		tb.Fatal(err)
	}
}

func (d *inMemory) NewQueue(int) (blk.Queue, error) { return inMemoryQueue{ramQueue{&d.ram}, d}, nil }

type inMemoryQueue struct {
	ramQueue
	d *inMemory
}

func (q inMemoryQueue) Window(op blk.Op, off, n int64) []byte {
	if op != blk.OpRead && op != blk.OpWrite || off < 0 || n <= 0 || n > blk.MaxTransfer || off > int64(len(q.d.bytes))-n ||
		q.d.windows != nil && !q.d.windows(off) {
		return nil
	}
	q.d.given.Add(1)
	off += int64(q.d.skew)
	return q.d.bytes[off : off+n : off+n]
}

func (q inMemoryQueue) Faulted(op blk.Op, off, n int64) {
	q.d.faults = append(q.d.faults, blk.Request{Op: op, Off: off, Len: n})
}

func (q inMemoryQueue) Register(memory []byte) { q.d.register = append(q.d.register, memory) }

func TestConformanceInMemory(t *testing.T) {
	for name, windows := range map[string]func(int64) bool{
		"windows":      nil,
		"some windows": func(off int64) bool { return off>>12%3 != 0 },
	} {
		t.Run(name, func(t *testing.T) {
			blktest.Run(t, func(t *testing.T) blk.Device {
				s, _ := newSchedule(t, 1)
				d := newInMemory(t, 4<<20)
				d.windows = windows
				return New(d, s, mem.TryLock)
			})
		})
	}
}

// TestL3CiphertextInWindows: what lies in the device's memory is AES-256-XTS,
// read back by another implementation, whichever way it took.
func TestL3CiphertextInWindows(t *testing.T) {
	s, key := newSchedule(t, 2)
	d := newInMemory(t, 4<<20)
	c := New(d, s, mem.TryLock)
	q := newQueue(t, c, 2)
	for i, tt := range []struct{ first, blocks int64 }{{0, 1}, {7, 8}, {100, 9}, {200, 64}} {
		plain := bytes.Repeat([]byte("the tenant's secret "), 14_000)[3:][:tt.blocks*blk.BlockSize]
		got := make([]byte, len(plain)+1)[1:]
		for _, way := range []func(int64) bool{nil, func(int64) bool { return false }} { // there in place, back through scratch; and in place
			if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: tt.first * blk.BlockSize, Len: int64(len(plain)), Buf: plain}); err != nil {
				t.Fatal(err)
			}
			for b := range tt.blocks {
				raw := d.bytes[(tt.first+b)*blk.BlockSize:][:blk.BlockSize]
				if !bytes.Equal(open(t, key, raw, uint64(tt.first+b)), plain[b*blk.BlockSize:(b+1)*blk.BlockSize]) {
					t.Fatalf("L3: block %d on the device does not decrypt with its number as tweak", tt.first+b)
				}
			}
			d.windows = way
			clear(got)
			if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: tt.first * blk.BlockSize, Len: int64(len(got)), Buf: got}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, plain) {
				t.Errorf("%d blocks at %d are not read back", tt.blocks, tt.first)
			}
			d.windows = nil
		}
		if want := int64(3 * (i + 1)); d.given.Load() != want {
			t.Fatalf("%d windows were given, want %d", d.given.Load(), want)
		}
	}
	runtime.KeepAlive(q)
}

// TestL5RevokedInMemory: after Revoke no window is asked for, and nothing is
// deciphered.
func TestL5RevokedInMemory(t *testing.T) {
	s, _ := newSchedule(t, 1)
	d := newInMemory(t, 1<<20)
	c := New(d, s, mem.TryLock)
	q := newQueue(t, c, 1)
	buf := bytes.Repeat([]byte{0xEE}, blk.BlockSize)
	c.Revoke()
	clear(s[:]) // a use of it would panic
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		r := blk.Request{Op: op, Len: blk.BlockSize, Buf: buf}
		if blk.Do(q, &r); r.Errno != syscall.ESHUTDOWN || r.N != 0 {
			t.Errorf("%v after Revoke: %v, N = %d, want ESHUTDOWN and 0", op, r.Errno, r.N)
		}
	}
	if d.given.Load() != 0 || !bytes.Equal(buf, bytes.Repeat([]byte{0xEE}, len(buf))) || !mem.IsZero(d.bytes) {
		t.Errorf("%d windows were given after Revoke, or bytes have changed", d.given.Load())
	}
}

// TestFaultInPlace: wherever a page of a window is gone, the request fails with
// EIO, its buffer holds nothing of the device, the device is told, and the queue
// works on. With skew, a page that is not touched faults first within the cipher.
func TestFaultInPlace(t *testing.T) {
	const at, blocks = 40, 20
	s, _ := newSchedule(t, 1)
	for _, skew := range []int{0, blk.BlockSize / 2} {
		for bad := at; bad < at+blocks; bad++ {
			d := newInMemory(t, 1<<20)
			d.skew = skew
			c := New(d, s, mem.TryLock)
			q, err := c.NewQueue(2)
			if err != nil {
				t.Fatal(err)
			}
			buf := bytes.Repeat([]byte{0x5A}, blocks*blk.BlockSize)
			page := bad
			if skew != 0 { // the second half of the window's last block, which is not touched
				page = at + blocks
			}
			d.protect(t, page, syscall.PROT_NONE)
			for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
				d.faults = nil
				r := blk.Request{Op: op, Off: at * blk.BlockSize, Len: int64(len(buf)), Buf: buf}
				if blk.Do(q, &r); r.Errno != syscall.EIO || r.N != 0 {
					t.Fatalf("%v with block %d gone, skew %d: %v, N = %d, want EIO and 0", op, page, skew, r.Errno, r.N)
				}
				if len(d.faults) != 1 || d.faults[0].Op != op || d.faults[0].Off != r.Off || d.faults[0].Len != r.Len {
					t.Fatalf("%v: the device was told of %+v", op, d.faults)
				}
				if op == blk.OpRead && !mem.IsZero(buf) {
					t.Fatal("a read that failed left something in its buffer")
				}
			}
			d.protect(t, page, syscall.PROT_READ)
			r := blk.Request{Op: blk.OpWrite, Off: at * blk.BlockSize, Len: int64(len(buf)), Buf: buf}
			if blk.Do(q, &r); r.Errno != syscall.EIO {
				t.Fatalf("a write with block %d read-only: %v, want EIO", page, r.Errno)
			}
			d.protect(t, page, syscall.PROT_READ|syscall.PROT_WRITE)
			for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
				if err := blk.Do(q, &blk.Request{Op: op, Off: at * blk.BlockSize, Len: int64(len(buf)), Buf: buf}); err != nil {
					t.Fatalf("after the page is back: %v", err)
				}
			}
			c.Revoke() // nobody is left inside of the gate
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestPanicInPlace: what is no fault of the device is not made one.
func TestPanicInPlace(t *testing.T) {
	d := newInMemory(t, 1<<20)
	q, err := New(d, new(xts.Schedule), mem.TryLock).NewQueue(1) // never expanded
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if p := recover(); p == nil || len(d.faults) != 0 {
			t.Errorf("a broken invariant came out as %v, and the device was told of %v", p, d.faults)
		}
	}()
	blk.Do(q, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize, Buf: make([]byte, blk.BlockSize)}) //nolint:errcheck // it panics
}

// TestRegister: the queue below is told of the scratch, all of it, once.
func TestRegister(t *testing.T) {
	s, _ := newSchedule(t, 1)
	d := newInMemory(t, 1<<20)
	q := newQueue(t, New(d, s, mem.TryLock), 4).(*queue)
	if len(d.register) != 1 || &d.register[0][0] != &q.scratch.buf[0] || len(d.register[0]) != len(q.scratch.buf) {
		t.Errorf("%d pieces of memory were registered", len(d.register))
	}
}

// TestL2FaultLeavesNoKey: a fault while the cipher has keys in registers, which
// the kernel then saves in memory, leaves them nowhere.
func TestL2FaultLeavesNoKey(t *testing.T) {
	if !undisturbed(t) {
		return
	}
	runtime.LockOSThread() // as the engine's threads are
	defer runtime.UnlockOSThread()
	s, copies := newSlot(t)
	d := newInMemory(t, 1<<20)
	d.skew = blk.BlockSize / 2
	q := newQueue(t, New(d, s, mem.TryLock), 1)
	d.protect(t, 1, syscall.PROT_NONE)
	buf := make([]byte, blk.BlockSize)
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		r := blk.Request{Op: op, Len: blk.BlockSize, Buf: buf}
		if blk.Do(q, &r); r.Errno != syscall.EIO {
			t.Fatalf("%v: %v, want EIO", op, r.Errno)
		}
		if n := copies(); n != 0 {
			t.Errorf("L2: %d round keys are in memory after a fault in a %v", n, op)
		}
	}
	// The search finds what a fault leaves that nobody cleans up after.
	func() {
		defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
		defer func() { _ = recover() }()
		s.Decrypt(buf, d.bytes[d.skew:][:blk.BlockSize], blk.BlockSize, 0)
	}()
	if n := copies(); n == 0 && xts.Implementation() != "generic" {
		t.Error("no round key is found after a fault without cleaning up: this test finds nothing")
	}
}
