// Package blktest is the conformance suite for every [blk.Device]: drives, their
// simulated twin, and each layer above them.
//
// It holds a device to the rules B1 to B7 of package blk, and to a slow and
// obvious model of what a disk is: an array of bytes. What a device may refuse
// is taken from its geometry (alignment) and from its answers (EOPNOTSUPP for
// discard and write-zeroes); all else must work.
package blktest

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"vacate/internal/blk"
)

// Run runs the whole suite, a subtest a rule. open is called once for each and
// returns a device of at least 2 MiB that nobody else uses; what it needs
// closed, it gives to t.Cleanup. Its contents may be anything.
func Run(t *testing.T, open func(t *testing.T) blk.Device) {
	for _, tt := range []struct {
		name string
		test func(t *testing.T, dev blk.Device)
	}{
		{"Geometry", testGeometry},
		{"Integrity", testIntegrity},
		{"Persistence", testPersistence},
		{"Batch", testBatch},
		{"OutOfRange", testOutOfRange},
		{"Misaligned", testMisaligned},
		{"Flush", testFlush},
		{"Reap", testReap},
		{"SubmitFromDone", testSubmitFromDone},
		{"ReapFromDone", testReapFromDone},
		{"Pending", testPending},
		{"Window", testWindow},
		{"Register", testRegister},
		{"Foreign", testForeign},
		{"TwoQueues", testTwoQueues},
		{"Allocations", testAllocations},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := open(t)
			if g := dev.Geometry(); g.Size < 2<<20 {
				t.Fatalf("the device has %d bytes, the suite needs 2 MiB", g.Size)
			}
			tt.test(t, dev)
		})
	}
}

// Buffer returns n bytes that start at a multiple of 4096, as the data plane's
// buffers do. They are on the Go heap, which does not move: the caller keeps
// them alive (runtime.KeepAlive) while a request uses them.
func Buffer(n int) []byte {
	b := make([]byte, n+blk.BlockSize)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (blk.BlockSize - 1))
	return b[skip : skip+n : skip+n]
}

// A tracker owns requests and checks rules B1 and B2 for each of them.
type tracker struct {
	t        *testing.T
	q        blk.Queue
	entered  bool // inside of Submit or Reap
	inFlight int

	completions int                  // since it was made
	then        func(r *blk.Request) // called for each completion, may be nil
}

func newTracker(t *testing.T, dev blk.Device, depth int) *tracker {
	t.Helper()
	q, err := dev.NewQueue(depth)
	if err != nil {
		t.Fatalf("NewQueue(%d): %v", depth, err)
	}
	k := &tracker{t: t, q: q}
	t.Cleanup(func() {
		k.drain()
		if k.inFlight > 0 {
			return // it failed, and Close would panic
		}
		if err := q.Close(); err != nil {
			t.Errorf("closing the queue: %v", err)
		}
	})
	return k
}

// An op is a request and how often it was completed.
type op struct {
	blk.Request
	k         *tracker
	asked     blk.Request // as it was submitted
	completed int
}

func (k *tracker) op(kind blk.Op, off int64, buf []byte) *op {
	o := &op{k: k, Request: blk.Request{Op: kind, Off: off, Len: int64(len(buf)), Buf: buf}}
	o.Done = o
	return o
}

// Complete checks that this is the only completion, and a truthful one.
func (o *op) Complete(r *blk.Request) {
	k := o.k
	o.completed++
	k.inFlight--
	k.completions++
	switch {
	case r != &o.Request:
		k.t.Errorf("B1: %v completed with another request", o.Op)
	case o.completed != 1:
		k.t.Errorf("B1: %v of %d bytes at %d completed %d times", o.Op, o.Len, o.Off, o.completed)
	case !k.entered:
		k.t.Errorf("B1: %v completed outside of Submit and Reap", o.Op)
	}
	if a := &o.asked; r.Op != a.Op || r.Flags != a.Flags || r.Off != a.Off || r.Len != a.Len || len(r.Buf) != len(a.Buf) {
		k.t.Errorf("%v of %d bytes at %d came back changed", a.Op, a.Len, a.Off)
	}
	if o.Errno == 0 && o.N != o.Len || o.N < 0 || o.N > max(o.Len, 0) {
		k.t.Errorf("B2: %v of %d bytes at %d: N = %d with errno %d", o.Op, o.Len, o.Off, o.N, o.Errno)
	}
	if k.then != nil {
		k.then(r)
	}
}

func (k *tracker) submit(ops ...*op) {
	batch := make([]*blk.Request, len(ops))
	for i, o := range ops {
		batch[i] = &o.Request
		o.completed, o.asked = 0, o.Request
	}
	k.inFlight += len(ops)
	outer := k.entered
	k.entered = true
	k.q.Submit(batch)
	k.entered = outer
	clear(batch) // the slice is the caller's again
}

// reap checks rule B4.
func (k *tracker) reap(wait bool) {
	inFlight, before := k.inFlight, k.completions
	outer := k.entered
	k.entered = true
	k.q.Reap(wait)
	k.entered = outer
	if wait && inFlight > 0 && k.completions == before {
		k.t.Fatalf("B4: Reap(true) returned without a completion, %d in flight", k.inFlight)
	}
}

func (k *tracker) drain() {
	for k.inFlight > 0 && !k.t.Failed() {
		k.reap(true)
	}
}

// do carries out one request and returns its errno.
func (k *tracker) do(kind blk.Op, off int64, buf []byte) syscall.Errno {
	o := k.op(kind, off, buf)
	k.submit(o)
	k.drain()
	runtime.KeepAlive(buf)
	return o.Errno
}

// must is do for what every device can.
func (k *tracker) must(kind blk.Op, off int64, buf []byte) {
	k.t.Helper()
	if errno := k.do(kind, off, buf); errno != 0 {
		k.t.Fatalf("%v of %d bytes at %d: %v", kind, len(buf), off, errno)
	}
}

// supports reports whether the device carries out discards or write-zeroes, by
// trying one on its last block.
func (k *tracker) supports(kind blk.Op, dev blk.Device) bool {
	o := k.op(kind, dev.Geometry().Size-blk.BlockSize, nil)
	o.Len = blk.BlockSize
	k.submit(o)
	k.drain()
	if o.Errno != 0 && o.Errno != syscall.EOPNOTSUPP {
		k.t.Errorf("%v: %v, want success or EOPNOTSUPP", kind, o.Errno)
	}
	return o.Errno == 0
}

// unit is the smallest aligned request.
func unit(dev blk.Device) int64 { return int64(max(dev.Geometry().Logical, 1)) }
