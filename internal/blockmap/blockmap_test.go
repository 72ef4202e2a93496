package blockmap

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sim"
)

const noise = 0xA7 // what the drive holds from before

func newMap(tb testing.TB, size int64) (*Map, *sim.Drive) {
	tb.Helper()
	d := sim.New(sim.Config{Size: size, Seed: 1, Fill: noise})
	return New(d, newBits(uint64(size/blk.BlockSize))), d
}

func newQueue(t *testing.T, m *Map, depth int) blk.Queue {
	t.Helper()
	q, err := m.NewQueue(depth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

func TestConformance(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		m, _ := newMap(t, 4<<20)
		return m
	})
}

// TestL4UnwrittenReadsZeros: without any I/O, whatever the drive holds.
func TestL4UnwrittenReadsZeros(t *testing.T) {
	m, d := newMap(t, 2<<20)
	q := newQueue(t, m, 1)
	buf := bytes.Repeat([]byte{1}, blk.MaxTransfer)
	if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: 64 << 10, Len: blk.MaxTransfer, Buf: buf}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf, make([]byte, len(buf))) {
		t.Error("unwritten blocks do not read as zeros")
	}
	if n := d.Ops(); n != 0 {
		t.Errorf("%d operations on the drive, want none", n)
	}
	runtime.KeepAlive(buf)
}

// TestL4ReadOfRuns: written and unwritten blocks take turns, down to one block,
// with more runs than the queue has children.
func TestL4ReadOfRuns(t *testing.T) {
	m, d := newMap(t, 2<<20)
	q := newQueue(t, m, 2)
	want := make([]byte, blk.MaxTransfer)
	for b := 0; b < blk.MaxTransfer/blk.BlockSize; b += 2 {
		page := want[b*blk.BlockSize : (b+1)*blk.BlockSize]
		for i := range page {
			page[i] = byte(b + i)
		}
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: int64(b) * blk.BlockSize, Len: blk.BlockSize, Buf: page}); err != nil {
			t.Fatal(err)
		}
	}
	before := d.Ops()
	got := bytes.Repeat([]byte{noise}, len(want))
	if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Len: int64(len(got)), Buf: got}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("wrong bytes")
	}
	if n := d.Ops() - before; n != 32 {
		t.Errorf("%d reads of the drive, want 32", n)
	}
	if w := m.Written(); w != blk.MaxTransfer/2 {
		t.Errorf("Written = %d, want %d", w, blk.MaxTransfer/2)
	}
	runtime.KeepAlive(got)
}

// TestReadFault: a fault in one run fails the whole read, says how much is good
// before it, and leaves the queue usable, for every run that it can strike.
func TestReadFault(t *testing.T) {
	m, d := newMap(t, 2<<20)
	q := newQueue(t, m, 1)
	page := make([]byte, blk.BlockSize)
	for b := int64(0); b < 64; b += 2 {
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: b * blk.BlockSize, Len: blk.BlockSize, Buf: page}); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, blk.MaxTransfer)
	for n := range int64(32) {
		d.At(d.Ops()+n+1, sim.Fault{Kind: sim.Lost, Errno: syscall.ENXIO})
		r := blk.Request{Op: blk.OpRead, Len: blk.MaxTransfer, Buf: buf}
		if err := blk.Do(q, &r); err == nil {
			t.Fatalf("fault %d: the read succeeded", n)
		}
		if want := 2 * n * blk.BlockSize; r.Errno != syscall.ENXIO || r.N != want {
			t.Errorf("fault %d: errno %v, N = %d, want ENXIO and %d", n, r.Errno, r.N, want)
		}
		d.Heal()
		if err := blk.Do(q, &r); err != nil {
			t.Fatalf("after fault %d: %v", n, err)
		}
	}
	runtime.KeepAlive(buf)
}

// TestL4FailedWrite: a write that failed leaves an unwritten block unwritten,
// whatever became of it on the drive (R2), and a written block written.
func TestL4FailedWrite(t *testing.T) {
	for _, kind := range []sim.Kind{sim.Lost, sim.Done, sim.Short} {
		m, d := newMap(t, 2<<20)
		q := newQueue(t, m, 1)
		buf := bytes.Repeat([]byte{0x55}, 2*blk.BlockSize)
		d.At(1, sim.Fault{Kind: kind})
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Len: int64(len(buf)), Buf: buf}); err == nil {
			t.Fatal("the write succeeded")
		}
		if n := m.Written(); n != 0 {
			t.Errorf("fault %d: %d bytes written after a failed write", kind, n)
		}
		if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Len: int64(len(buf)), Buf: buf}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, make([]byte, len(buf))) {
			t.Errorf("fault %d: blocks whose write failed do not read as zeros", kind)
		}
		runtime.KeepAlive(buf)
	}
}

// TestL4BitAfterCompletion: while the write is in flight its blocks read as
// zeros (R1).
func TestL4BitAfterCompletion(t *testing.T) {
	m, d := newMap(t, 2<<20)
	writer, reader := newQueue(t, m, 1), newQueue(t, m, 1)
	var done counter
	buf, got := bytes.Repeat([]byte{0x55}, blk.BlockSize), make([]byte, blk.BlockSize)
	d.At(1, sim.Fault{Kind: sim.Hang})
	writer.Submit([]*blk.Request{{Op: blk.OpWrite, Len: blk.BlockSize, Buf: buf, Done: &done}})
	if err := blk.Do(reader, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize, Buf: got}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, make([]byte, blk.BlockSize)) {
		t.Error("a block reads as what the drive holds before its first write is complete")
	}
	d.Release()
	for done == 0 {
		writer.Reap(true)
	}
	if err := blk.Do(reader, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize, Buf: got}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, buf) {
		t.Error("a completed write is not read back")
	}
	runtime.KeepAlive(buf)
}

type counter int

func (c *counter) Complete(*blk.Request) { *c++ }

func TestExtents(t *testing.T) {
	m, _ := newMap(t, 64*blk.BlockSize)
	m.set(2, 4)
	m.set(10, 11)
	type extent struct {
		off, length int64
		written     bool
	}
	const b = blk.BlockSize
	for _, tt := range []struct {
		off, length int64
		want        []extent
	}{
		{0, 64 * b, []extent{{0, 2 * b, false}, {2 * b, 2 * b, true}, {4 * b, 6 * b, false}, {10 * b, b, true}, {11 * b, 53 * b, false}}},
		{3 * b, b, []extent{{3 * b, b, true}}},
		{3*b + 5, 2 * b, []extent{{3*b + 5, b - 5, true}, {4 * b, b + 5, false}}},
		{60 * b, 1 << 62, []extent{{60 * b, 4 * b, false}}},
		{64 * b, b, nil}, {-1, b, nil}, {0, 0, nil},
	} {
		var got []extent
		m.Extents(tt.off, tt.length, func(off, length int64, written bool) bool {
			got = append(got, extent{off, length, written})
			return true
		})
		if len(got) != len(tt.want) {
			t.Errorf("Extents(%d, %d) = %v, want %v", tt.off, tt.length, got, tt.want)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("Extents(%d, %d) = %v, want %v", tt.off, tt.length, got, tt.want)
			}
		}
	}
	calls := 0
	m.Extents(0, 64*b, func(int64, int64, bool) bool { calls++; return false })
	if calls != 1 {
		t.Errorf("%d calls of a yield that returns false", calls)
	}
}

// TestDiscardBesideWrite: after both are complete the block reads as zeros or as
// the new data (R3).
func TestDiscardBesideWrite(t *testing.T) {
	m, _ := newMap(t, 2<<20)
	old, fresh := bytes.Repeat([]byte{1}, blk.BlockSize), bytes.Repeat([]byte{2}, blk.BlockSize)
	q, other, got := newQueue(t, m, 1), newQueue(t, m, 1), make([]byte, blk.BlockSize)
	do := func(q blk.Queue, op blk.Op, buf []byte) {
		if err := blk.Do(q, &blk.Request{Op: op, Len: blk.BlockSize, Buf: buf}); err != nil {
			t.Error(err)
		}
	}
	for range 500 {
		do(q, blk.OpWrite, old)
		var wg sync.WaitGroup
		wg.Go(func() { do(other, blk.OpDiscard, nil) })
		do(q, blk.OpWrite, fresh)
		wg.Wait()
		do(q, blk.OpRead, got)
		if got[0] == 1 || !bytes.Equal(got, bytes.Repeat(got[:1], len(got))) {
			t.Fatalf("after a write beside a discard the block reads as %d …", got[0])
		}
	}
}

func TestMisfitPanics(t *testing.T) {
	d := sim.New(sim.Config{Size: 1 << 20})
	for name, b := range map[string]Bits{
		"more blocks than the device": newBits(257),
		"no words":                    {Blocks: 256},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			New(d, b)
		}()
	}
}

// churn changes random blocks of m, on four goroutines.
func churn(m *Map, seed uint64, rounds int) (wait func()) {
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, seed))
			for range rounds {
				lo := rng.Uint64N(m.bits.Blocks - 1)
				hi := lo + 1 + rng.Uint64N(min(200, m.bits.Blocks-lo))
				if rng.IntN(2) == 0 {
					m.set(lo, hi)
				} else {
					m.clear(lo, hi)
				}
			}
		})
	}
	return wg.Wait
}

// wantCounted checks that Written is what counting the bits gives.
func wantCounted(t *testing.T, m *Map) {
	t.Helper()
	if got, want := m.Written(), int64(m.bits.count()*blk.BlockSize); got != want || want == 0 {
		t.Errorf("Written = %d, the bits say %d", got, want)
	}
}

// Written must stay what counting the bits gives, whoever changes them at once;
// also of a map over bits of another, whose blocks are counted meanwhile.
func TestWrittenCounts(t *testing.T) {
	for _, blocks := range []uint64{4096, 5*64*regionWords + 77} {
		m, _ := newMap(t, int64(blocks*blk.BlockSize))
		churn(m, 7, 5000)()
		wantCounted(t, m)
		for seed := range uint64(5) {
			m = New(m.below, m.bits)
			if m.Written() != 0 {
				t.Errorf("%d bytes before anything is counted", m.Written())
			}
			wait := churn(m, seed, 3000)
			m.Count(t.Context())
			wait()
			wantCounted(t, m)
			m.Count(t.Context())
			wantCounted(t, m)
		}
	}
}

// Counting ends with its context, and can go on later.
func TestCountEnds(t *testing.T) {
	m, _ := newMap(t, 4*64*regionWords*blk.BlockSize)
	m.set(64*regionWords+5, 64*regionWords+9) // of the first region without a bit nothing is looked at
	m.set(3*64*regionWords, 3*64*regionWords+100)
	m = New(m.below, m.bits)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if m.Count(ended); m.Written() != 0 {
		t.Errorf("%d bytes were counted after the end", m.Written())
	}
	if m.countRegion(); m.Written() != 4*blk.BlockSize {
		t.Errorf("%d bytes in the first region, want 4 blocks", m.Written())
	}
	m.clear(0, m.bits.Blocks)
	if m.Count(t.Context()); m.Written() != 0 {
		t.Errorf("%d bytes are left of a map that was cleared", m.Written())
	}
}
