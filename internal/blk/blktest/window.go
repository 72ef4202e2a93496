package blktest

import (
	"math"
	"testing"

	"vacate/internal/blk"
)

// testWindow: where a queue gives windows, they are the device: what is put into
// one is read by requests, and the other way round. A request that would fail has
// no window.
func testWindow(t *testing.T, dev blk.Device) {
	k := newTracker(t, dev, 4)
	w, ok := k.q.(blk.Windower)
	if !ok {
		return
	}
	size, u := dev.Geometry().Size, unit(dev)
	buf := Buffer(4 * blk.BlockSize)
	for round, n := range []int64{blk.BlockSize, 4 * blk.BlockSize} {
		for _, off := range []int64{0, 1 << 20, 1<<20 - blk.BlockSize, size - n} {
			for i := range buf[:n] {
				buf[i] = byte(i>>4 ^ i<<1 + round)
			}
			k.must(blk.OpWrite, off, buf[:n])
			p := w.Window(blk.OpRead, off, n)
			if p == nil {
				continue // it is the device's to say where
			}
			if int64(len(p)) != n || cap(p) != len(p) {
				t.Fatalf("a window of %d bytes at %d has %d, and room for %d", n, off, len(p), cap(p))
			}
			if i := mismatch(p, buf[:n]); i < int(n) {
				t.Errorf("byte %d of a window at %d is not what was written", i, off)
			}
			if p = w.Window(blk.OpWrite, off, n); p == nil {
				t.Fatalf("a window for reads at %d, and none for writes", off)
			}
			for i := range p {
				p[i] ^= 0xff
			}
			k.must(blk.OpRead, off, buf[:n])
			if i := mismatch(p, buf[:n]); i < int(n) {
				t.Errorf("a read of %d bytes at %d: byte %d is not what was put into the window", n, off, i)
			}
		}
	}
	for _, tt := range []struct {
		name   string
		op     blk.Op
		off, n int64
	}{
		{"at the end", blk.OpRead, size, u},
		{"across the end", blk.OpWrite, size - blk.BlockSize, 2 * blk.BlockSize},
		{"far past the end", blk.OpRead, math.MaxInt64 &^ (u - 1), u},
		{"before the start", blk.OpRead, -u, u},
		{"empty", blk.OpRead, 0, 0},
		{"of negative length", blk.OpWrite, u, -u},
		{"over MaxTransfer", blk.OpRead, 0, blk.MaxTransfer + blk.BlockSize},
		{"for a flush", blk.OpFlush, 0, blk.BlockSize},
		{"for a discard", blk.OpDiscard, 0, blk.BlockSize},
	} {
		if w.Window(tt.op, tt.off, tt.n) != nil {
			t.Errorf("a window %s", tt.name)
		}
	}
	if n := testing.AllocsPerRun(100, func() { w.Window(blk.OpRead, 0, blk.BlockSize) }); n != 0 {
		t.Errorf("B6: %v allocations for a window", n)
	}
}

// testRegister: buffers within memory that was told of, across its ends, and
// outside of it.
func testRegister(t *testing.T, dev blk.Device) {
	k := newTracker(t, dev, 8)
	g, ok := k.q.(blk.Registrar)
	if !ok {
		return
	}
	all := Buffer(16 * blk.BlockSize)
	g.Register(all[2*blk.BlockSize : 14*blk.BlockSize])
	for round := range 3 {
		ops := make([]*op, 8)
		for i := range ops {
			b := all[2*i*blk.BlockSize : 2*(i+1)*blk.BlockSize]
			if round == 1 {
				b = all[max(0, 2*i-1)*blk.BlockSize : (2*i+1)*blk.BlockSize]
			}
			for j := range b {
				b[j] = byte(j ^ i + round)
			}
			ops[i] = k.op(blk.OpWrite, int64(i)*2*blk.BlockSize, b)
			if round == 1 {
				k.must(blk.OpWrite, ops[i].Off, b) // the buffers overlap
			}
		}
		if round != 1 {
			k.submit(ops...)
			k.drain()
		}
		got := Buffer(2 * blk.BlockSize)
		for i, o := range ops {
			if o.Errno != 0 {
				t.Fatalf("write %d: %v", i, o.Errno)
			}
			k.must(blk.OpRead, o.Off, got[:len(o.Buf)])
			for j := range o.Buf {
				if got[j] != byte(j^i+round) {
					t.Fatalf("round %d, write %d: wrong byte at %d", round, i, j)
				}
			}
			clear(o.Buf)
			k.must(blk.OpRead, o.Off, o.Buf)
			if m := mismatch(o.Buf, got[:len(o.Buf)]); m < len(o.Buf) {
				t.Fatalf("round %d, read %d: wrong byte at %d", round, i, m)
			}
		}
	}
}
