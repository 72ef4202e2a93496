package blktest

import (
	"math"
	"runtime"
	"syscall"
	"testing"

	"vacate/internal/blk"
)

// testBatch: a whole queue in one Submit, each request completed once.
func testBatch(t *testing.T, dev blk.Device) {
	for _, depth := range []int{1, 2, 7, 64} {
		k := newTracker(t, dev, depth)
		for _, kind := range []blk.Op{blk.OpWrite, blk.OpRead} {
			ops := make([]*op, depth)
			for i := range ops {
				buf := Buffer(blk.BlockSize)
				buf[0], buf[blk.BlockSize-1] = byte(i), byte(depth)
				if kind == blk.OpRead {
					clear(buf)
				}
				ops[i] = k.op(kind, int64(i)*blk.BlockSize, buf)
			}
			k.submit(ops...)
			k.drain()
			for i, o := range ops {
				if o.completed != 1 || o.Errno != 0 {
					t.Errorf("depth %d, %v %d: completed %d times, %v", depth, kind, i, o.completed, o.Errno)
				}
				if o.Buf[0] != byte(i) || o.Buf[blk.BlockSize-1] != byte(depth) {
					t.Errorf("depth %d, %v %d: wrong bytes", depth, kind, i)
				}
			}
		}
	}
	newTracker(t, dev, 1).submit() // an empty batch is nothing
}

// testOutOfRange: refused without harm, and the queue works on (B5).
func testOutOfRange(t *testing.T, dev blk.Device) {
	k := newTracker(t, dev, 4)
	size, u := dev.Geometry().Size, unit(dev)
	buf := Buffer(2 * blk.BlockSize)
	last := size - blk.BlockSize
	k.must(blk.OpWrite, last, buf[:blk.BlockSize])
	for _, kind := range []blk.Op{blk.OpRead, blk.OpWrite} {
		for _, tt := range []struct {
			name     string
			off, len int64
			buf      []byte
		}{
			{"at the end", size, u, buf[:u]},
			{"across the end", last, 2 * blk.BlockSize, buf},
			{"far past the end", math.MaxInt64 &^ (u - 1), u, buf[:u]},
			{"before the start", -u, u, buf[:u]},
			{"empty", 0, 0, nil},
			{"negative length", u, -u, nil},
			{"buffer too short", 0, 2 * blk.BlockSize, buf[:blk.BlockSize]},
			{"buffer too long", 0, blk.BlockSize, buf},
			{"over MaxTransfer", 0, blk.MaxTransfer + blk.BlockSize, Buffer(blk.MaxTransfer + blk.BlockSize)},
		} {
			r := blk.Request{Op: kind, Off: tt.off, Len: tt.len, Buf: tt.buf}
			if blk.Do(k.q, &r) == nil {
				t.Errorf("%v %s succeeded", kind, tt.name)
			} else if r.N != 0 {
				t.Errorf("%v %s: N = %d, want 0", kind, tt.name, r.N)
			}
			k.must(blk.OpRead, last, buf[:blk.BlockSize])
		}
	}
	for _, kind := range []blk.Op{blk.OpDiscard, blk.OpWriteZeroes} {
		for _, off := range []int64{-u, size, math.MaxInt64 &^ (u - 1)} {
			if blk.Do(k.q, &blk.Request{Op: kind, Off: off, Len: u}) == nil {
				t.Errorf("%v at %d succeeded", kind, off)
			}
		}
	}
	runtime.KeepAlive(buf)
}

// testMisaligned: EINVAL, or done right.
func testMisaligned(t *testing.T, dev blk.Device) {
	k := newTracker(t, dev, 1)
	want, got := Buffer(2*blk.BlockSize), Buffer(2*blk.BlockSize)
	for i := range want {
		want[i] = byte(i*3 + i>>8)
	}
	k.must(blk.OpWrite, 0, want)
	u := max(unit(dev), 2)
	for _, tt := range [][2]int64{{u / 2, u}, {0, u + u/2}, {u, u / 2}, {1, 1}} {
		off, n := tt[0], tt[1]
		clear(got)
		if errno := k.do(blk.OpRead, off, got[:n]); errno == 0 {
			if i := mismatch(got[:n], want[off:off+n]); i < int(n) {
				t.Errorf("read of %d bytes at %d: wrong byte at %d", n, off, i)
			}
		} else if errno != syscall.EINVAL {
			t.Errorf("read of %d bytes at %d: %v, want EINVAL or success", n, off, errno)
		}
		if errno := k.do(blk.OpWrite, off, want[off:off+n]); errno != 0 && errno != syscall.EINVAL {
			t.Errorf("write of %d bytes at %d: %v, want EINVAL or success", n, off, errno)
		}
	}
	k.must(blk.OpRead, 0, got)
	if i := mismatch(got, want); i < len(got) {
		t.Errorf("a misaligned request changed byte %d", i)
	}
}

// testFlush: a flush has no range, and N is 0.
func testFlush(t *testing.T, dev blk.Device) {
	k := newTracker(t, dev, 4)
	buf := Buffer(blk.BlockSize)
	w, f, fua := k.op(blk.OpWrite, 0, buf), k.op(blk.OpFlush, 0, nil), k.op(blk.OpWrite, blk.BlockSize, buf)
	fua.Flags = blk.FUA
	k.submit(w, f, fua)
	k.drain()
	for _, o := range []*op{w, f, fua} {
		if o.Errno != 0 {
			t.Errorf("%v: %v", o.Op, o.Errno)
		}
	}
	if f.N != 0 {
		t.Errorf("flush: N = %d", f.N)
	}
	runtime.KeepAlive(buf)
}

// testReap: with nothing in flight there is nothing to wait for (B4).
func testReap(t *testing.T, dev blk.Device) {
	k := newTracker(t, dev, 4)
	for _, wait := range []bool{true, false} {
		if n := k.q.Reap(wait); n != 0 {
			t.Errorf("Reap(%v) of an idle queue = %d", wait, n)
		}
	}
	buf := Buffer(blk.BlockSize)
	k.must(blk.OpWrite, 0, buf)
	if n := k.q.Reap(true); n != 0 {
		t.Errorf("Reap(true) of a drained queue = %d", n)
	}
}

// testSubmitFromDone: a request submitted from within each completion, as an
// export does it (B3). The stack must not grow with their number.
func testSubmitFromDone(t *testing.T, dev blk.Device) {
	const depth, total, deepest = 4, 2000, 32
	k := newTracker(t, dev, depth)
	ops := make(map[*blk.Request]*op, depth)
	submitted, completed, nested, worst := depth, 0, 0, 0
	k.then = func(r *blk.Request) {
		completed++
		if r.Errno != 0 {
			t.Errorf("%v at %d: %v", r.Op, r.Off, r.Errno)
		}
		nested++
		worst = max(worst, nested)
		if submitted < total && nested <= deepest {
			submitted++
			k.submit(ops[r])
		}
		nested--
	}
	for i := range depth {
		o := k.op(blk.Op(i%2), int64(i)*blk.BlockSize, Buffer(blk.BlockSize))
		ops[&o.Request] = o
	}
	for _, o := range ops {
		k.submit(o)
	}
	k.drain()
	if worst > deepest {
		t.Errorf("completions nest %d deep: the stack grows with the number of requests", worst)
	}
	if completed != submitted || submitted != total {
		t.Errorf("%d of %d completed, of %d", completed, submitted, total)
	}
	k.then = nil
}

// testReapFromDone: a Reap within a completion delivers nothing twice (B1, B3).
func testReapFromDone(t *testing.T, dev blk.Device) {
	const depth = 8
	k := newTracker(t, dev, depth)
	k.then = func(*blk.Request) { k.q.Reap(false) }
	for range 50 {
		ops := make([]*op, depth)
		for i := range ops {
			ops[i] = k.op(blk.OpWrite, int64(i)*blk.BlockSize, Buffer(blk.BlockSize))
		}
		k.submit(ops...)
		k.drain()
		for i, o := range ops {
			if o.completed != 1 || o.Errno != 0 {
				t.Fatalf("write %d: completed %d times, %v", i, o.completed, o.Errno)
			}
		}
	}
	k.then = nil
}

// testAllocations: none a request (B6).
func testAllocations(t *testing.T, dev blk.Device) {
	q, err := dev.NewQueue(4)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	var c counter
	buf := Buffer(blk.BlockSize)
	for _, r := range []*blk.Request{
		{Op: blk.OpWrite, Len: blk.BlockSize, Buf: buf},
		{Op: blk.OpWrite, Len: blk.BlockSize, Buf: buf, Flags: blk.FUA},
		{Op: blk.OpRead, Len: blk.BlockSize, Buf: buf},
		{Op: blk.OpFlush},
	} {
		r.Done = &c
		batch := []*blk.Request{r}
		n := testing.AllocsPerRun(100, func() {
			c = 0
			q.Submit(batch)
			for c == 0 {
				q.Reap(true)
			}
		})
		if n != 0 {
			t.Errorf("B6: %v allocations for a %v (flags %d)", n, r.Op, r.Flags)
		}
		if err := r.Err(); err != nil {
			t.Error(err)
		}
	}
	runtime.KeepAlive(buf)
}

type counter int

func (c *counter) Complete(*blk.Request) { *c++ }
