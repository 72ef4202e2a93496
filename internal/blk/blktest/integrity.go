package blktest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"

	"vacate/internal/blk"
)

func testGeometry(t *testing.T, dev blk.Device) {
	g := dev.Geometry()
	if g.Size > blk.MaxVolume || g.Size%unit(dev) != 0 {
		t.Errorf("size %d is over the maximum or no multiple of the logical block, %d", g.Size, g.Logical)
	}
	if l := unit(dev); l&(l-1) != 0 || l > blk.BlockSize {
		t.Errorf("logical block of %d bytes", l)
	}
	if g.Physical < int(unit(dev)) {
		t.Errorf("physical block of %d bytes, logical %d", g.Physical, g.Logical)
	}
}

// A model is the slow device: what each byte of two windows, at the start and
// at the end of the device, must read as, and which of it a request in flight
// may be changing.
type model struct {
	windows [2]window
}

type window struct {
	base int64
	data []byte
	busy []int32 // by unit: readers in flight, or -1 for a writer
}

const windowSize = 1 << 20

// learn reads what the device holds: it may be anything.
func learn(k *tracker, dev blk.Device) *model {
	m := &model{}
	for i, base := range []int64{0, dev.Geometry().Size - windowSize} {
		w := window{base: base, data: Buffer(windowSize), busy: make([]int32, windowSize/unit(dev))}
		for at := int64(0); at < windowSize; at += blk.MaxTransfer {
			k.must(blk.OpRead, base+at, w.data[at:at+blk.MaxTransfer])
		}
		m.windows[i] = w
	}
	return m
}

// claim marks a range as read or written, unless that would make the outcome
// depend on the order in which the device does things.
func (w *window) claim(first, last int64, write bool) bool {
	for b := first; b < last; b++ {
		if w.busy[b] < 0 || write && w.busy[b] > 0 {
			return false
		}
	}
	for b := first; b < last; b++ {
		if write {
			w.busy[b] = -1
		} else {
			w.busy[b]++
		}
	}
	return true
}

func (w *window) release(first, last int64) {
	for b := first; b < last; b++ {
		if w.busy[b] < 0 {
			w.busy[b] = 0
		} else {
			w.busy[b]--
		}
	}
}

// A flight is a request against the model.
type flight struct {
	*op
	w           *window
	first, last int64 // units of the window
	buf         []byte
	free        bool
}

// testIntegrity does random operations, as many at a time as the queue takes,
// and compares each read with the model. The seed is fixed: the device decides
// what varies.
func testIntegrity(t *testing.T, dev blk.Device) {
	const depth = 16
	k := newTracker(t, dev, depth)
	u := unit(dev)
	kinds := []blk.Op{blk.OpRead, blk.OpRead, blk.OpWrite, blk.OpWrite, blk.OpFlush}
	for _, op := range []blk.Op{blk.OpDiscard, blk.OpWriteZeroes} {
		if k.supports(op, dev) {
			kinds = append(kinds, op)
		}
	}
	m := learn(k, dev)
	rng := rand.New(rand.NewPCG(1, 2))
	flights := make([]*flight, depth)
	for i := range flights {
		flights[i] = &flight{buf: Buffer(blk.MaxTransfer), free: true}
	}
	k.then = func(r *blk.Request) {
		for _, f := range flights {
			if !f.free && &f.Request == r {
				f.finish(t)
			}
		}
	}
	for range 300 {
		batch := make([]*op, 0, depth)
		for _, f := range flights {
			if f.free && rng.IntN(3) > 0 && f.start(k, m, kinds[rng.IntN(len(kinds))], u, rng) {
				batch = append(batch, f.op)
			}
		}
		k.submit(batch...)
		k.reap(rng.IntN(2) == 0)
		if t.Failed() {
			return
		}
	}
	k.drain()
	k.then = nil
	m.verify(t, k)
	runtime.KeepAlive(flights)
}

// start makes a random request that overlaps nothing in flight.
func (f *flight) start(k *tracker, m *model, kind blk.Op, u int64, rng *rand.Rand) bool {
	f.w = &m.windows[rng.IntN(len(m.windows))]
	f.first, f.last = 0, 0
	if kind == blk.OpFlush {
		f.op = k.op(kind, 0, nil)
		f.free = false
		return true
	}
	// Mostly short requests, some up to the limit.
	n := 1 + rng.Int64N(8)
	if rng.IntN(16) == 0 {
		n = 1 + rng.Int64N(blk.MaxTransfer/u)
	}
	f.first = rng.Int64N(windowSize/u - n + 1)
	f.last = f.first + n
	if !f.w.claim(f.first, f.last, kind != blk.OpRead) {
		return false
	}
	f.free = false
	buf := f.buf[:n*u]
	switch kind {
	case blk.OpRead:
		clear(buf)
	case blk.OpWrite:
		for i := 0; i < len(buf); i += 8 {
			binary.NativeEndian.PutUint64(buf[i:], rng.Uint64())
		}
	}
	f.op = k.op(kind, f.w.base+f.first*u, buf)
	if kind == blk.OpDiscard || kind == blk.OpWriteZeroes {
		f.op.Buf = nil
	}
	if kind == blk.OpWrite && rng.IntN(4) == 0 {
		f.op.Flags = blk.FUA
	}
	return true
}

// finish compares a read with the model, or carries a change into it.
func (f *flight) finish(t *testing.T) {
	f.free = true
	if f.Errno != 0 {
		t.Errorf("%v of %d bytes at %d: %v", f.Op, f.Len, f.Off, f.Errno)
	}
	at := f.Off - f.w.base
	switch f.Op {
	case blk.OpFlush:
		return
	case blk.OpRead:
		if want := f.w.data[at : at+f.Len]; !bytes.Equal(f.Buf, want) {
			t.Errorf("read of %d bytes at %d differs from what was written, first at byte %d", f.Len, f.Off, mismatch(f.Buf, want))
		}
	case blk.OpWrite:
		copy(f.w.data[at:], f.Buf)
	case blk.OpDiscard, blk.OpWriteZeroes:
		clear(f.w.data[at : at+f.Len])
	}
	f.w.release(f.first, f.last)
}

func (m *model) verify(t *testing.T, k *tracker) {
	t.Helper()
	buf := Buffer(blk.MaxTransfer)
	for i := range m.windows {
		w := &m.windows[i]
		for at := int64(0); at < windowSize; at += blk.MaxTransfer {
			k.must(blk.OpRead, w.base+at, buf)
			if want := w.data[at : at+blk.MaxTransfer]; !bytes.Equal(buf, want) {
				t.Errorf("byte %d differs from what was written", w.base+at+int64(mismatch(buf, want)))
			}
		}
	}
}

func mismatch(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// testPersistence: what one queue wrote, a later one reads.
func testPersistence(t *testing.T, dev blk.Device) {
	want := Buffer(blk.MaxTransfer)
	for i := range want {
		want[i] = byte(i*7 + i>>8)
	}
	off := (dev.Geometry().Size / 2) &^ (blk.BlockSize - 1)
	q, err := dev.NewQueue(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*blk.Request{
		{Op: blk.OpWrite, Off: off, Len: blk.MaxTransfer, Buf: want},
		{Op: blk.OpFlush},
	} {
		if err := blk.Do(q, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	got := Buffer(blk.MaxTransfer)
	newTracker(t, dev, 1).must(blk.OpRead, off, got)
	if !bytes.Equal(got, want) {
		t.Errorf("byte %d differs from what was written", mismatch(got, want))
	}
}

// testTwoQueues: two goroutines, each with a queue and a half of the device.
func testTwoQueues(t *testing.T, dev blk.Device) {
	ks := [2]*tracker{newTracker(t, dev, 8), newTracker(t, dev, 8)}
	errs := make(chan syscall.Errno, len(ks))
	for i, k := range ks {
		go func() {
			errs <- func() syscall.Errno {
				base := int64(i) * windowSize
				buf, got := Buffer(16<<10), Buffer(16<<10)
				for n := range int64(64) {
					for j := 0; j < len(buf); j += blk.SectorSize {
						binary.NativeEndian.PutUint64(buf[j:], uint64(n)<<32|uint64(i)<<16|uint64(j))
					}
					off := base + n*int64(len(buf))
					if errno := k.do(blk.OpWrite, off, buf); errno != 0 {
						return errno
					}
					if errno := k.do(blk.OpRead, off, got); errno != 0 {
						return errno
					}
					if !bytes.Equal(got, buf) {
						return syscall.EILSEQ
					}
				}
				return 0
			}()
		}()
	}
	for range ks {
		if errno := <-errs; errno != 0 {
			t.Errorf("a queue beside another: %v", errno)
		}
	}
}
