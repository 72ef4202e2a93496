package drive

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sim"
)

const mib = 1 << 20

// pieces are three parts of two drives, out of order, the last one short; the
// second and third are contiguous.
func pieces(a, b blk.Device) []SpanPiece {
	return []SpanPiece{
		{a, 2 * mib, mib},
		{b, 0, mib},
		{b, mib, mib},
		{a, 0, mib},
		{b, 3 * mib, 64 << 10},
	}
}

func spanOf(t *testing.T, ps []SpanPiece) blk.Device {
	t.Helper()
	s, err := NewSpan(ps)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformanceSpanSim(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		return spanOf(t, pieces(sim.New(sim.Config{Size: 4 * mib, Seed: 1, Fill: 0xaa}), sim.New(sim.Config{Size: 4 * mib, Seed: 2})))
	})
}

func TestConformanceSpanOne(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		d := sim.New(sim.Config{Size: 4 * mib, Seed: 3})
		return spanOf(t, []SpanPiece{{d, 3 * mib, mib}, {d, mib, mib}})
	})
}

func TestConformanceSpanDrives(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		return spanOf(t, pieces(open(t, enrolled(t, onTmpfs(t, 16*mib))), open(t, enrolled(t, sparse(t, "b.img", 16*mib)))))
	})
}

// TestSpanPlaces: each byte of the volume is where the pieces say.
func TestSpanPlaces(t *testing.T) {
	a, b := sim.New(sim.Config{Size: 4 * mib}), sim.New(sim.Config{Size: 4 * mib})
	ps := pieces(a, b)
	s := spanOf(t, ps)
	if g := s.Geometry(); g.Size != 4*mib+64<<10 || g.Logical != blk.BlockSize {
		t.Errorf("Geometry = %+v", g)
	}
	buf, got := blktest.Buffer(blk.MaxTransfer), make([]byte, blk.BlockSize)
	for off := int64(0); off < s.Geometry().Size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), s.Geometry().Size-off)]
		for i := range buf {
			block := (off + int64(i)) / blk.BlockSize
			buf[i] = byte(block) ^ byte(block>>8)<<7
		}
		if err := do(t, s, &blk.Request{Op: blk.OpWrite, Off: off, Len: int64(len(buf)), Buf: buf}); err != nil {
			t.Fatal(err)
		}
	}
	block := int64(0)
	for _, p := range ps {
		for at := int64(0); at < p.Len; at += blk.BlockSize {
			p.Drive.(*sim.Drive).Peek(got, p.Off+at)
			if want := bytes.Repeat([]byte{byte(block) ^ byte(block>>8)<<7}, blk.BlockSize); !bytes.Equal(got, want) {
				t.Fatalf("block %d is not at %d of its drive", block, p.Off+at)
			}
			block++
		}
	}
}

// TestSpanFaults strikes each child of a request across a boundary, and says
// what of it was carried out.
func TestSpanFaults(t *testing.T) {
	const half = 2 * blk.BlockSize
	for _, tt := range []struct {
		onA, onB sim.Kind
		errnoA   syscall.Errno
		errnoB   syscall.Errno
		n        int64 // carried out without a gap, from the start
		errno    syscall.Errno
	}{
		{0, 0, 0, 0, 2 * half, 0},
		{sim.Lost, 0, syscall.ENXIO, 0, 0, syscall.ENXIO},
		{0, sim.Lost, 0, syscall.ENOSPC, half, syscall.ENOSPC},
		{sim.Lost, sim.Lost, syscall.ENXIO, syscall.ENOSPC, 0, syscall.ENXIO},
		{sim.Done, 0, syscall.EIO, 0, 0, syscall.EIO},
	} {
		for seed := range uint64(4) { // either child first
			a, b := sim.New(sim.Config{Size: 4 * mib, Seed: seed}), sim.New(sim.Config{Size: 4 * mib, Seed: seed + 100})
			if tt.onA != 0 {
				a.At(1, sim.Fault{Kind: tt.onA, Errno: tt.errnoA})
			}
			if tt.onB != 0 {
				b.At(1, sim.Fault{Kind: tt.onB, Errno: tt.errnoB})
			}
			s := spanOf(t, []SpanPiece{{a, 0, mib}, {b, 0, mib}})
			buf := blktest.Buffer(2 * half)
			r := blk.Request{Op: blk.OpWrite, Off: mib - half, Len: 2 * half, Buf: buf}
			_ = do(t, s, &r)
			if r.N != tt.n || r.Errno != tt.errno {
				t.Errorf("faults %d and %d: N = %d, %v, want %d, %v", tt.onA, tt.onB, r.N, r.Errno, tt.n, tt.errno)
			}
			if err := do(t, s, &r); err != nil {
				t.Errorf("the same request again: %v", err)
			}
		}
	}
}

// TestSpanShort: the N of a child counts.
func TestSpanShort(t *testing.T) {
	a, b := sim.New(sim.Config{Size: 4 * mib}), sim.New(sim.Config{Size: 4 * mib, Seed: 5})
	b.From(1, sim.Fault{Kind: sim.Short})
	s := spanOf(t, []SpanPiece{{a, 0, mib}, {b, 0, mib}})
	const half = 16 * blk.BlockSize
	buf := bytes.Repeat([]byte{1}, 2*half)
	r := blk.Request{Op: blk.OpWrite, Off: mib - half, Len: 2 * half, Buf: buf}
	if err := do(t, s, &r); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	got := make([]byte, half)
	b.Peek(got, 0)
	if want := int64(half + bytes.Count(got, []byte{1})); r.N != want {
		t.Errorf("N = %d, want %d", r.N, want)
	}
}

// TestSpanFlush: once to each drive, and any failure counts.
func TestSpanFlush(t *testing.T) {
	a, b := sim.New(sim.Config{Size: 4 * mib}), sim.New(sim.Config{Size: 4 * mib})
	s := spanOf(t, pieces(a, b))
	if err := do(t, s, &blk.Request{Op: blk.OpFlush}); err != nil || a.Ops() != 1 || b.Ops() != 1 {
		t.Errorf("a flush: %v, %d and %d operations, want one each", err, a.Ops(), b.Ops())
	}
	b.At(2, sim.Fault{Kind: sim.Lost, Errno: syscall.ENOSPC})
	if err := do(t, s, &blk.Request{Op: blk.OpFlush}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a flush that fails on one drive: %v", err)
	}
	for _, op := range []blk.Op{blk.OpDiscard, blk.OpWriteZeroes} {
		if err := do(t, s, &blk.Request{Op: op, Len: blk.BlockSize}); !errors.Is(err, syscall.EOPNOTSUPP) {
			t.Errorf("%v: %v", op, err)
		}
	}
}

// TestSpanHang: requests to the other drive complete while one hangs.
func TestSpanHang(t *testing.T) {
	a, b := sim.New(sim.Config{Size: 4 * mib}), sim.New(sim.Config{Size: 4 * mib})
	s := spanOf(t, []SpanPiece{{a, 0, mib}, {b, 0, mib}})
	a.At(1, sim.Fault{Kind: sim.Hang})
	q, err := s.NewQueue(2)
	if err != nil {
		t.Fatal(err)
	}
	var done []int64
	note := complete(func(r *blk.Request) { done = append(done, r.Off) })
	buf := blktest.Buffer(2 * blk.BlockSize)
	q.Submit([]*blk.Request{
		{Op: blk.OpWrite, Off: 0, Len: blk.BlockSize, Buf: buf[:blk.BlockSize], Done: note},
		{Op: blk.OpWrite, Off: mib, Len: blk.BlockSize, Buf: buf[blk.BlockSize:], Done: note},
	})
	for len(done) == 0 {
		q.Reap(true)
	}
	if q.Reap(false) != 0 || len(done) != 1 || done[0] != mib {
		t.Fatalf("completed %v", done)
	}
	a.Release()
	if n := q.Reap(true); n != 1 || len(done) != 2 {
		t.Errorf("Reap = %d, completed %v", n, done)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

type complete func(r *blk.Request)

func (c complete) Complete(r *blk.Request) { c(r) }

func TestNewSpanRefuses(t *testing.T) {
	d, e := sim.New(sim.Config{Size: 4 * mib}), sim.New(sim.Config{Size: 4 * mib})
	for want, ps := range map[string][]SpanPiece{
		"no pieces":                 nil,
		"not within":                {{d, 3 * mib, 2 * mib}},
		"piece 1":                   {{d, 0, mib}, {d, -mib, mib}},
		"blocks of 4096":            {{d, 512, mib}},
		"piece 0 of a volume, 0":    {{d, 0, 0}},
		"overlap, at 1048576 and":   {{d, 0, 2 * mib}, {e, 0, mib}, {d, mib, 2 * mib}},
		"a piece of 65536 bytes in": {{d, 0, mib}, {e, 0, 64 << 10}, {d, mib, mib}},
	} {
		if _, err := NewSpan(ps); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", ps, err, want)
		}
	}
	// Short pieces that continue one another are long enough together.
	if _, err := NewSpan([]SpanPiece{{d, 0, 64 << 10}, {d, 64 << 10, mib}, {e, 0, mib}}); err != nil {
		t.Error(err)
	}
}

// failing makes no queues.
type failing struct{ blk.Device }

func (failing) NewQueue(int) (blk.Queue, error) { return nil, fmt.Errorf("no memory") }

func TestSpanQueueFails(t *testing.T) {
	d := open(t, enrolled(t, onTmpfs(t, 16*mib)))
	s := spanOf(t, []SpanPiece{{d, 0, mib}, {failing{sim.New(sim.Config{Size: 4 * mib})}, 0, mib}})
	if _, err := s.NewQueue(4); err == nil || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("NewQueue: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("a queue was left behind: %v", err)
	}
	if _, err := s.NewQueue(0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a queue of depth 0: %v", err)
	}
}
