package volume_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/volume"
)

func mustQueue(tb testing.TB, v blk.Device, depth int) blk.Queue {
	tb.Helper()
	q, err := v.NewQueue(depth)
	if err != nil {
		tb.Fatal(err)
	}
	return q
}

var kinds = []blk.Op{blk.OpRead, blk.OpWrite, blk.OpFlush, blk.OpDiscard, blk.OpWriteZeroes}

func drained(v *volume.Volume) bool {
	select {
	case <-v.Drained():
		return true
	default:
		return false
	}
}

// TestL1ShutGate: once Shut has returned, no request of any kind reaches what
// lies below, on no queue; not even those that were submitted before and wait
// for their turn. What is in flight is waited for, and nothing else.
func TestL1ShutGate(t *testing.T) {
	d := sim.New(sim.Config{Size: 1 << 20, Fill: 0xA7})
	l := newLease(t, d, 1)
	q, other := mustQueue(t, l, 8), mustQueue(t, l, 8)
	buf := make([]byte, 2*blk.BlockSize)

	var inFlight, waiting counter
	hangs := blk.Request{Op: blk.OpWrite, Len: blk.BlockSize, Buf: buf[:blk.BlockSize], Done: &inFlight}
	d.At(1, sim.Fault{Kind: sim.Hang})
	q.Submit([]*blk.Request{&hangs})
	waits := blk.Request{Op: blk.OpWrite, Off: 512, Len: 512, Buf: buf[:512], Done: &waiting}
	other.Submit([]*blk.Request{&waits})
	if d.Ops() != 1 {
		t.Fatalf("%d operations below, want the one that hangs", d.Ops())
	}

	l.Shut()
	if other.Reap(false); waiting != 1 || waits.Errno != syscall.ESHUTDOWN {
		t.Fatalf("the request that waited for its turn: completed %d times, %v, want ESHUTDOWN", waiting, waits.Errno)
	}
	for _, op := range kinds {
		for _, off := range []int64{8 * blk.BlockSize, 8*blk.BlockSize + 512} {
			r := blk.Request{Op: op, Off: off, Len: blk.BlockSize}
			if op == blk.OpRead || op == blk.OpWrite {
				r.Buf = buf[:r.Len]
			}
			if blk.Do(other, &r); r.Errno != syscall.ESHUTDOWN || r.N != 0 {
				t.Errorf("%v at %d after Shut: errno %v, N = %d, want ESHUTDOWN and 0", op, off, r.Errno, r.N)
			}
		}
	}
	if _, err := l.NewQueue(1); !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("a queue after Shut: %v, want ESHUTDOWN", err)
	}
	if n := d.Ops(); n != 1 {
		t.Errorf("L1: %d operations below, want 1", n)
	}

	if drained(l.Volume) {
		t.Error("drained with a request in flight")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := l.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Drain while the drive hangs: %v, want the context's error", err)
	}
	d.Release()
	for inFlight == 0 {
		q.Reap(true)
	}
	if !drained(l.Volume) || hangs.Errno != 0 {
		t.Errorf("not drained, or the request in flight failed: %v", hangs.Errno)
	}
	for _, q := range []blk.Queue{q, other} {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
	runtime.KeepAlive(buf)
}

// TestL1ShutUnderLoad: after Drained nothing reaches the drive, however the gate
// was hit.
func TestL1ShutUnderLoad(t *testing.T) {
	const workers = 3
	for round := range 20 {
		d := &counting{Device: newRAM(1 << 20)}
		l := newLease(t, d, uint64(round))
		var wg sync.WaitGroup
		var enough atomic.Bool // for the case that the gate does not stop them
		for i := range workers {
			q := mustQueue(t, l, 1)
			wg.Go(func() {
				defer q.Close()
				buf := make([]byte, blk.BlockSize)
				for n := int64(0); !enough.Load(); n++ {
					r := blk.Request{Op: kinds[n%2], Off: n % 7 * 512, Len: int64(i+1) * 512, Buf: buf[:(i+1)*512]}
					if blk.Do(q, &r); r.Errno == syscall.ESHUTDOWN {
						return
					} else if r.Errno != 0 {
						t.Error(r.Err())
					}
				}
			})
		}
		for d.ops.Load() < 500 {
			runtime.Gosched()
		}
		if err := l.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := d.ops.Load()
		time.Sleep(time.Millisecond)
		enough.Store(true)
		wg.Wait()
		if n := d.ops.Load() - before; n != 0 {
			t.Fatalf("round %d: %d operations below after the volume was drained", round, n)
		}
	}
}

// counting counts what reaches a device.
type counting struct {
	blk.Device
	ops atomic.Int64
}

func (d *counting) NewQueue(depth int) (blk.Queue, error) {
	q, err := d.Device.NewQueue(depth)
	return countingQueue{q, d}, err
}

type countingQueue struct {
	blk.Queue
	d *counting
}

func (q countingQueue) Submit(batch []*blk.Request) {
	q.d.ops.Add(int64(len(batch)))
	q.Queue.Submit(batch)
}

// TestL3Below: the plaintext that a tenant writes, whole blocks and parts of
// them, is nowhere on the drive.
func TestL3Below(t *testing.T) {
	d := sim.New(sim.Config{Size: 1 << 20})
	l := newLease(t, d, 1)
	q := mustQueue(t, l, 1)
	canary := []byte("the tenant's canary ")
	buf := bytes.Repeat(canary, 1000)[:4*blk.BlockSize]
	for _, r := range []blk.Request{{Off: 0, Len: 4 * blk.BlockSize}, {Off: 1<<19 + 100, Len: 3000}, {Off: 1<<19 + 3*blk.BlockSize - 7, Len: 2 * blk.BlockSize}} {
		r.Op, r.Buf = blk.OpWrite, buf[:r.Len]
		if err := blk.Do(q, &r); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, r.Len)
		if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: r.Off, Len: r.Len, Buf: got}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, r.Buf) {
			t.Errorf("%d bytes at %d are not read back", r.Len, r.Off)
		}
	}
	raw := make([]byte, 1<<20)
	d.Peek(raw, 0)
	if n := bytes.Count(raw, canary); n != 0 {
		t.Errorf("L3: the canary is on the drive %d times", n)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for _, tt := range []struct {
		name string
		cfg  volume.Config
		good bool
	}{
		{"defaults", volume.Config{}, true},
		{"4096", volume.Config{Size: 1 << 30, Logical: 4096}, true},
		{"not in blocks", volume.Config{Size: 1000}, false},
		{"negative", volume.Config{Size: -4096}, false},
		{"too large", volume.Config{Size: blk.MaxVolume + 4096}, false},
		{"odd logical block", volume.Config{Logical: 1024}, false},
	} {
		if err := tt.cfg.Validate(); (err == nil) != tt.good {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	if g := volume.New(newRAM(1<<20+5), volume.Config{}).Geometry(); g != (blk.Geometry{Size: 1 << 20, Logical: 512, Physical: 4096}) {
		t.Errorf("geometry by default: %+v", g)
	}
	defer func() {
		if recover() == nil {
			t.Error("a volume larger than its device did not panic")
		}
	}()
	volume.New(newRAM(1<<20), volume.Config{Size: 1<<20 + 4096})
}

func TestStats(t *testing.T) {
	l := newLease(t, newRAM(1<<20), 1)
	q := mustQueue(t, l, 2)
	buf := make([]byte, 2*blk.BlockSize)
	for _, r := range []*blk.Request{
		{Op: blk.OpWrite, Len: 8192, Buf: buf}, {Op: blk.OpWrite, Off: 512, Len: 512, Buf: buf[:512]},
		{Op: blk.OpRead, Len: 4096, Buf: buf[:4096]}, {Op: blk.OpFlush}, {Op: blk.OpDiscard, Len: 4096},
		{Op: blk.OpWriteZeroes, Len: 4096}, {Op: blk.OpRead, Off: 1 << 20, Len: 4096, Buf: buf[:4096]},
	} {
		blk.Do(q, r)
	}
	want := volume.Stats{Reads: 1, Writes: 2, Discards: 2, Flushes: 1, ReadBytes: 4096, WriteBytes: 8704, Errors: 1, SubBlock: 1}
	if got := l.Stats(); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if got := l.Stats(); got != want {
		t.Errorf("after the queue was closed: %+v, want %+v", got, want)
	}
}

// TestQueueWithoutMemory: what cannot be had is named, and nothing is left
// behind.
func TestQueueWithoutBelow(t *testing.T) {
	v := volume.New(newRAM(1<<20), volume.Config{Lock: mem.TryLock})
	if _, err := v.NewQueue(0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a queue of depth 0: %v", err)
	}
	v = volume.New(refusing{newRAM(1 << 20)}, volume.Config{Lock: mem.TryLock})
	if _, err := v.NewQueue(1); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("a queue over a device that refuses: %v, want ENOMEM", err)
	}
	if v.Shut(); !drained(v) {
		t.Error("not drained")
	}
}

type refusing struct{ blk.Device }

func (refusing) NewQueue(int) (blk.Queue, error) { return nil, syscall.ENOMEM }
