package sim

import (
	"bytes"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
)

func TestConformance(t *testing.T) {
	for _, cfg := range []Config{
		{Size: 4 << 20, Seed: 1, Fill: 0xee},
		{Size: 4 << 20, Seed: 2, Logical: 512},
	} {
		blktest.Run(t, func(*testing.T) blk.Device { return New(cfg) })
	}
}

func queueOf(t *testing.T, d *Drive, depth int) blk.Queue {
	t.Helper()
	q, err := d.NewQueue(depth)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func block(b byte) []byte { return bytes.Repeat([]byte{b}, blk.BlockSize) }

func TestFaults(t *testing.T) {
	tests := []struct {
		kind    Kind
		errno   syscall.Errno
		written bool
	}{
		{Lost, syscall.EIO, false},
		{Lost, syscall.ENXIO, false},
		{Done, syscall.EIO, true},
	}
	for _, tt := range tests {
		d := New(Config{Size: 1 << 20})
		q := queueOf(t, d, 1)
		d.At(2, Fault{tt.kind, tt.errno})
		for n, want := range []error{nil, tt.errno, nil} {
			buf := block(byte(n + 1))
			err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: int64(n) * blk.BlockSize, Len: blk.BlockSize, Buf: buf})
			if !errors.Is(err, want) {
				t.Errorf("kind %d: operation %d: %v, want %v", tt.kind, n+1, err, want)
			}
		}
		got := make([]byte, 1)
		d.Peek(got, blk.BlockSize)
		if (got[0] == 2) != tt.written {
			t.Errorf("kind %d: byte on the medium is %d, written: %v", tt.kind, got[0], tt.written)
		}
	}
}

func TestShort(t *testing.T) {
	d := New(Config{Size: 1 << 20, Seed: 7})
	q := queueOf(t, d, 1)
	d.From(1, Fault{Kind: Short})
	buf := bytes.Repeat([]byte{9}, 16*blk.BlockSize)
	r := blk.Request{Op: blk.OpWrite, Len: int64(len(buf)), Buf: buf}
	if err := blk.Do(q, &r); !errors.Is(err, syscall.EIO) || r.N >= r.Len || r.N%blk.BlockSize != 0 {
		t.Fatalf("short write: N = %d, %v", r.N, err)
	}
	got := make([]byte, len(buf))
	d.Peek(got, 0)
	if n := bytes.Count(got, []byte{9}); int64(n) != r.N {
		t.Errorf("%d bytes written, N = %d", n, r.N)
	}
	d.Heal()
	if err := blk.Do(q, &r); err != nil {
		t.Errorf("after Heal: %v", err)
	}
}

func TestHang(t *testing.T) {
	d := New(Config{Size: 1 << 20})
	q := queueOf(t, d, 2)
	d.At(1, Fault{Kind: Hang})
	var done []int64
	note := completer(func(r *blk.Request) { done = append(done, r.Off) })
	buf := block(5)
	q.Submit([]*blk.Request{
		{Op: blk.OpWrite, Off: 0, Len: blk.BlockSize, Buf: buf, Done: note},
		{Op: blk.OpWrite, Off: blk.BlockSize, Len: blk.BlockSize, Buf: buf, Done: note},
	})
	q.Reap(true)
	if q.Reap(false) != 0 || !slices.Equal(done, []int64{blk.BlockSize}) {
		t.Fatalf("completed %v, want only the second", done)
	}
	go func() {
		time.Sleep(5 * time.Millisecond)
		d.Release()
	}()
	q.Reap(true) // waits
	if len(done) != 2 {
		t.Fatalf("completed %v after Release", done)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

type completer func(r *blk.Request)

func (c completer) Complete(r *blk.Request) { c(r) }

// TestCrash: what was flushed stays, what was not stays or goes block by block,
// both ways happen, and the same seed does the same.
func TestCrash(t *testing.T) {
	run := func(seed uint64) []byte {
		d := New(Config{Size: 1 << 20, Seed: seed})
		q := queueOf(t, d, 4)
		for i, kind := range []blk.Op{blk.OpWrite, blk.OpFlush, blk.OpWrite} {
			r := blk.Request{Op: kind}
			if kind == blk.OpWrite {
				r.Buf = bytes.Repeat([]byte{byte(i + 1)}, 32*blk.BlockSize)
				r.Len, r.Off = int64(len(r.Buf)), int64(i)*16*blk.BlockSize
			}
			if err := blk.Do(q, &r); err != nil {
				t.Fatal(err)
			}
		}
		never := completer(func(*blk.Request) { t.Error("a request completed after the crash") })
		q.Submit([]*blk.Request{{Op: blk.OpWrite, Off: 128 * blk.BlockSize, Len: 32 * blk.BlockSize, Buf: bytes.Repeat([]byte{7}, 32*blk.BlockSize), Done: never}})
		d.Crash()
		if n := q.Reap(true); n != 0 {
			t.Errorf("Reap after a crash = %d", n)
		}
		if err := blk.Do(q, &blk.Request{Op: blk.OpFlush}); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("request after a crash: %v, want ENODEV", err)
		}
		all := make([]byte, 1<<20)
		d.Peek(all, 0)
		return all
	}
	kept := func(all []byte, first, count int, b byte) (n int) {
		for i := first; i < first+count; i++ {
			if bytes.Equal(all[i*blk.BlockSize:(i+1)*blk.BlockSize], block(b)) {
				n++
			}
		}
		return n
	}
	all := run(3)
	if n := kept(all, 0, 32, 1); n != 32 {
		t.Errorf("%d of 32 flushed blocks survived", n)
	}
	for _, tt := range []struct {
		name  string
		first int
		b     byte
	}{{"unflushed", 32, 3}, {"in flight", 128, 7}} {
		if n := kept(all, tt.first, 32, tt.b); n == 0 || n == 32 {
			t.Errorf("%d of 32 %s blocks survived: not random", n, tt.name)
		}
	}
	if !bytes.Equal(all, run(3)) {
		t.Error("the same seed gave another crash")
	}
	if bytes.Equal(all, run(4)) {
		t.Error("another seed gave the same crash")
	}
}

func TestNotSupported(t *testing.T) {
	q := queueOf(t, New(Config{Size: 1 << 20}), 1)
	for _, op := range []blk.Op{blk.OpDiscard, blk.OpWriteZeroes} {
		if err := blk.Do(q, &blk.Request{Op: op, Len: blk.BlockSize}); !errors.Is(err, syscall.EOPNOTSUPP) {
			t.Errorf("%v: %v, want EOPNOTSUPP", op, err)
		}
	}
}
