package volume_test

import (
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/blockmap"
	"vacate/internal/crypt"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/volume"
	"vacate/internal/xts"
)

// A lease is the layers as the engine stacks them, on a device.
type lease struct {
	*volume.Volume
	m     *blockmap.Map
	c     *crypt.Crypt
	sched *xts.Schedule
	key   [xts.KeySize]byte
	bits  blockmap.Bits
}

// newLease makes a new tenant's lease of all of a device: a fresh key, and an
// empty map. What the device holds stays there.
func newLease(tb testing.TB, below blk.Device, seed uint64) *lease {
	tb.Helper()
	blocks := uint64(below.Geometry().Size / blk.BlockSize)
	l := &lease{sched: new(xts.Schedule), bits: blockmap.Bits{
		Words:   make([]atomic.Uint64, (blocks+63)/64),
		Summary: make([]atomic.Uint64, (blocks+64*64*512-1)/(64*64*512)),
		Blocks:  blocks,
	}}
	rng := rand.New(rand.NewPCG(seed, 7))
	for i := range l.key {
		l.key[i] = byte(rng.Uint32())
	}
	if err := l.sched.Expand(&l.key); err != nil {
		tb.Fatal(err)
	}
	l.stack(below)
	return l
}

// stack builds the layers anew over the same key and map, as an engine does that
// takes over.
func (l *lease) stack(below blk.Device) {
	l.c = crypt.New(below, l.sched, mem.TryLock)
	l.m = blockmap.New(l.c, l.bits)
	l.Volume = volume.New(l.m, volume.Config{Lock: mem.TryLock})
}

// ram is a device that completes within Submit.
type ram struct{ bytes []byte }

func newRAM(size int) *ram {
	d := &ram{bytes: make([]byte, size)}
	for i := range d.bytes {
		d.bytes[i] = 0xA7
	}
	return d
}

func (d *ram) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(len(d.bytes)), Logical: 1, Physical: 1}
}
func (d *ram) NewQueue(int) (blk.Queue, error) { return ramQueue{d}, nil }

type ramQueue struct{ d *ram }

func (q ramQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		if !r.InRange(int64(len(q.d.bytes))) {
			r.Finish(0, syscall.EINVAL)
			continue
		}
		switch r.Op {
		case blk.OpRead:
			copy(r.Buf, q.d.bytes[r.Off:])
		case blk.OpWrite:
			copy(q.d.bytes[r.Off:], r.Buf)
		}
		r.Finish(r.Len, 0)
	}
}
func (q ramQueue) Reap(bool) int { return 0 }
func (q ramQueue) Close() error  { return nil }

func TestConformance(t *testing.T) {
	t.Run("sim", func(t *testing.T) {
		blktest.Run(t, func(t *testing.T) blk.Device {
			return newLease(t, sim.New(sim.Config{Size: 4 << 20, Seed: 1, Fill: 0xA7}), 1)
		})
	})
	t.Run("sync", func(t *testing.T) {
		blktest.Run(t, func(t *testing.T) blk.Device { return newLease(t, newRAM(4<<20), 1) })
	})
}

type counter int

func (c *counter) Complete(*blk.Request) { *c++ }

// TestNoAllocations: none a request, through all layers, of any alignment (B6).
func TestNoAllocations(t *testing.T) {
	q, err := newLease(t, newRAM(4<<20), 1).NewQueue(4)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	buf := make([]byte, blk.MaxTransfer)
	for _, r := range []*blk.Request{
		{Op: blk.OpWrite, Len: 4 << 10},
		{Op: blk.OpRead, Len: 4 << 10},
		{Op: blk.OpWrite, Len: blk.MaxTransfer},
		{Op: blk.OpRead, Len: blk.MaxTransfer},
		{Op: blk.OpWrite, Off: 512, Len: 512},
		{Op: blk.OpRead, Off: 511, Len: 5000},
		{Op: blk.OpWriteZeroes, Off: 511, Len: 5000},
		{Op: blk.OpDiscard, Len: 1 << 20},
		{Op: blk.OpRead, Len: 4 << 10}, // unwritten
		{Op: blk.OpFlush},
	} {
		var done counter
		r.Done = &done
		if r.Op == blk.OpRead || r.Op == blk.OpWrite {
			r.Buf = buf[:r.Len]
		}
		batch := []*blk.Request{r}
		if n := testing.AllocsPerRun(100, func() { q.Submit(batch) }); n != 0 {
			t.Errorf("%v allocations for a %v of %d bytes at %d", n, r.Op, r.Len, r.Off)
		}
		if done != 101 || r.Errno != 0 {
			t.Errorf("%v of %d bytes at %d: %d completions, %v", r.Op, r.Len, r.Off, done, r.Errno)
		}
	}
}

// A null device carries out everything at once, and nothing.
type null struct{ size int64 }

func (d null) Geometry() blk.Geometry {
	return blk.Geometry{Size: d.size, Logical: 1, Physical: 1}
}
func (d null) NewQueue(int) (blk.Queue, error) { return nullQueue{}, nil }

type nullQueue struct{}

func (nullQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		r.Finish(r.Len, 0)
	}
}
func (nullQueue) Reap(bool) int { return 0 }
func (nullQueue) Close() error  { return nil }

// BenchmarkStack shows where the time of a request goes: the same request over
// more and more of the layers.
func BenchmarkStack(b *testing.B) {
	const size = 64 << 20
	bits := func() blockmap.Bits {
		bits := blockmap.Bits{Words: make([]atomic.Uint64, size/4096/64), Summary: make([]atomic.Uint64, 1), Blocks: size / 4096}
		bits.Summary[0].Store(1)
		for i := range bits.Words {
			bits.Words[i].Store(^uint64(0))
		}
		return bits
	}
	lease := newLease(b, newRAM(size), 1)
	for i := range lease.bits.Words {
		lease.bits.Words[i].Store(^uint64(0))
	}
	lease.bits.Summary[0].Store(1)
	for _, layer := range []struct {
		name string
		dev  blk.Device
	}{
		{"ram", newRAM(size)},
		{"map+null", blockmap.New(null{size}, bits())},
		{"volume+null", volume.New(null{size}, volume.Config{})},
		{"volume+map+null", volume.New(blockmap.New(null{size}, bits()), volume.Config{})},
		{"crypt+ram", lease.c},
		{"volume+map+crypt+ram", lease},
	} {
		for _, bb := range []struct {
			name     string
			op       blk.Op
			off, len int64
		}{{"read4K", blk.OpRead, 0, 4096}, {"write4K", blk.OpWrite, 0, 4096}, {"read128K", blk.OpRead, 0, 128 << 10}, {"write128K", blk.OpWrite, 0, 128 << 10}, {"write512", blk.OpWrite, 512, 512}} {
			if bb.len < 4096 && layer.dev != blk.Device(lease) {
				continue
			}
			b.Run(layer.name+"/"+bb.name, func(b *testing.B) {
				q, err := layer.dev.NewQueue(32)
				if err != nil {
					b.Fatal(err)
				}
				defer q.Close()
				r := blk.Request{Op: bb.op, Off: bb.off, Len: bb.len, Buf: make([]byte, bb.len), Done: new(counter)}
				batch := []*blk.Request{&r}
				b.SetBytes(bb.len)
				for b.Loop() {
					r.Off = (r.Off + 1<<18) & (size - 1)
					q.Submit(batch)
				}
				if r.Errno != 0 {
					b.Fatal(r.Err())
				}
			})
		}
	}
}
