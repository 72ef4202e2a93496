package virtioblk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// A lane is a ring whose requests are laid out once, and made available again and
// again: what a driver does is next to nothing, so that the device's share is what
// is measured.
type lane struct {
	d       *driver
	w       *Worker
	headers []uint64
	size    uint64
	n       uint32
	rng     *rand.Rand
}

// newLane makes a lane of depth requests of n bytes, and a worker that has no
// thread: the caller is it.
func newLane(tb testing.TB, dev blk.Device, typ uint32, depth, n int, eventIdx bool) *lane {
	tb.Helper()
	cfg := Config{Export: dev, Lock: mem.TryLock}
	cfg.setDefaults()
	g := dev.Geometry()
	w := &Worker{cfg: cfg, size: g.Size, logical: int64(logicalOf(g)), wake: -1, told: true}
	w.furnish()
	var err error
	if w.bounces, err = mem.NewPool(bounceSize, bounceCount, mem.TryLock); err != nil {
		tb.Fatal(err)
	}
	if w.queue, err = dev.NewQueue(cfg.Depth); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.queue.Close(); _ = w.bounces.Close() })
	d := newDriver(newGuest(tb, 4<<20+2*depth*n), 256, eventIdx)
	l := &lane{d: d, w: w, size: uint64(g.Size), n: uint32(n), rng: rand.New(rand.NewPCG(1, 2))}
	w.rings = []*ring{{q: d.ring(), files: RingFiles{Kick: -1, Call: -1, Err: -1}}}
	for range depth {
		d.ask(typ, 0, []span{{addr: d.g.alloc(n, 4096), n: uint32(n)}}, typ == typeOut, false)
		for h := range d.chains {
			l.headers = append(l.headers, binary.LittleEndian.Uint64(d.g.at(d.desc+16*uint64(h))))
			delete(d.chains, h)
		}
	}
	l.round(tb)
	return l
}

// round has the worker carry out what is available, and checks the answers. All is
// made available again.
func (l *lane) round(tb testing.TB) {
	for l.w.round() {
		continue
	}
	d := l.d
	for i := range l.headers {
		head, _, ok := d.used1()
		if !ok {
			tb.Fatalf("%d of %d are used", i, len(l.headers))
		}
		if s := d.g.at(l.headers[i] + 16)[0]; s != statusOK {
			tb.Fatalf("status %d", s)
		}
		binary.LittleEndian.PutUint64(d.g.at(l.headers[i]+8), l.rng.Uint64N((l.size-uint64(l.n))/4096)*8)
		slot := d.g.at(d.avail + 4 + 2*uint64(d.made%d.size))
		binary.LittleEndian.PutUint16(slot, head)
		d.made++
	}
	atomic.StoreUint32(d.g.word(d.avail), uint32(d.made)<<16)
}

// null is a volume that carries nothing out.
type null struct{}

func (null) Geometry() blk.Geometry {
	return blk.Geometry{Size: 1 << 30, Logical: 512, Physical: blk.BlockSize}
}
func (null) NewQueue(int) (blk.Queue, error) { return null{}, nil }
func (null) Submit(batch []*blk.Request) {
	for _, r := range batch {
		r.Finish(r.Len, 0)
	}
}
func (null) Reap(bool) int { return 0 }
func (null) Close() error  { return nil }

// TestNoAllocations: none a request, of any kind (B6).
func TestNoAllocations(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for _, eventIdx := range []bool{false, true} {
		for _, typ := range []uint32{typeIn, typeOut, typeFlush, typeGetID} {
			n := 8192
			l := newLane(t, newRAM(1<<20), typ, 32, n, eventIdx)
			if got := testing.AllocsPerRun(50, func() { l.round(t) }); got != 0 {
				t.Errorf("type %d, eventIdx=%v: %v allocations in a round", typ, eventIdx, got)
			}
		}
	}
	l := newLane(t, stack(t, 16<<20), typeOut, 32, 4096, true)
	if got := testing.AllocsPerRun(50, func() { l.round(t) }); got != 0 {
		t.Errorf("through all layers: %v allocations in a round", got)
	}
}

// TestBouncesCleared: V3. Nothing of a tenant's stays in a bounce buffer, whether
// its request was carried out or not; and while it is, something is there.
func TestBouncesCleared(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	dev := newRAM(1 << 20)
	l := newLane(t, dev, typeFlush, 1, 4096, true)
	w, d := l.w, l.d
	seen := false
	for _, errno := range []syscall.Errno{0, syscall.EIO} {
		for _, typ := range []uint32{typeIn, typeOut} {
			dev.fail = func(r *blk.Request) syscall.Errno {
				seen = seen || r.Op == blk.OpWrite && r.Flags&blk.Foreign == 0 && bytes.Contains(r.Buf, []byte("secret"))
				return errno
			}
			copy(dev.bytes, bytes.Repeat([]byte("secret"), 1000))
			at := d.g.alloc(8192, 4096)
			d.g.put(at, bytes.Repeat([]byte("secret"), 1000))
			d.ask(typ, 0, []span{{addr: at, n: 100}, {addr: at + 200, n: 3996}}, typ == typeOut, false)
			for w.round() {
				continue
			}
		}
	}
	if !seen {
		t.Error("no bounce buffer was used: this shows nothing")
	}
	if n := w.bounces.Free(); n != bounceCount {
		t.Fatalf("%d bounce buffers are free, want %d", n, bounceCount)
	}
	for range bounceCount {
		b := w.bounces.Get()
		if !mem.IsZero(b) {
			t.Error("a bounce buffer is not cleared")
		}
		defer w.bounces.Put(b)
	}
}

// BenchmarkRing is what a request costs: the ring alone, and through all layers,
// with a driver that does next to nothing on the same thread.
func BenchmarkRing(b *testing.B) {
	debug.SetPanicOnFault(true)
	const depth = 32
	for _, bb := range []struct {
		name string
		dev  func() blk.Device
		typ  uint32
		n    int
	}{
		{"null/read=4K", func() blk.Device { return null{} }, typeIn, 4096},
		{"encrypted/read=4K", func() blk.Device { return stack(b, 256<<20) }, typeIn, 4096},
		{"encrypted/write=4K", func() blk.Device { return stack(b, 256<<20) }, typeOut, 4096},
		{"encrypted/read=128K", func() blk.Device { return stack(b, 256<<20) }, typeIn, 128 << 10},
	} {
		b.Run(fmt.Sprintf("%s/depth=%d", bb.name, depth), func(b *testing.B) {
			l := newLane(b, bb.dev(), bb.typ, depth, bb.n, true)
			b.SetBytes(int64(depth * bb.n))
			for b.Loop() {
				l.round(b)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*depth), "ns/request")
		})
	}
}
