package ublk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/ublkcmd"
	"vacate/internal/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	depth  = 8
	volLen = 4 << 20
)

// begin serves a device of a fake driver by a volume on a simulated drive.
func begin(t *testing.T, queues int) (*fakeDriver, *Server, *sim.Drive) {
	t.Helper()
	d := newFake(t, depth)
	s, err := serve(nil, Config{Queues: queues, Depth: depth, MaxIO: blk.MaxTransfer, Lock: mem.TryLock, Poll: 20 * time.Microsecond}, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		d.stop()
		gone(t, s)
	})
	disk := sim.New(sim.Config{Size: volLen, Seed: rand.Uint64()})
	return d, s, disk
}

func on(disk *sim.Drive) *volume.Volume {
	return volume.New(disk, volume.Config{Lock: mem.TryLock})
}

func gone(t testing.TB, s *Server) {
	t.Helper()
	select {
	case <-s.Gone():
	case <-time.After(time.Minute):
		t.Fatal("the device is stopped, and the server is still there")
	}
}

func resume(t *testing.T, s *Server, v blk.Device) {
	t.Helper()
	if err := s.Resume(v); err != nil {
		t.Fatal(err)
	}
}

func desc(op uint32, off, n int) ublkcmd.Desc {
	return ublkcmd.Desc{OpFlags: op, Start: uint64(off / 512), Sectors: uint32(n / 512)}
}

// TestRequests compares what a device reads with what was written to it, over two
// queues, requests of all kinds and lengths in flight at once.
func TestRequests(t *testing.T) {
	d, s, disk := begin(t, 2)
	resume(t, s, on(disk))
	model := make([]byte, volLen)
	if got := answer(t, d.ask(0, 0, desc(ublkcmd.OpDiscard, 0, volLen), nil)); got != 0 && got != -int32(syscall.EOPNOTSUPP) {
		t.Fatalf("a discard is answered %d", got)
	}
	for off := 0; off < volLen; off += blk.MaxTransfer {
		if got := answer(t, d.ask(1, 1, desc(ublkcmd.OpWrite, off, blk.MaxTransfer), make([]byte, blk.MaxTransfer))); got != blk.MaxTransfer {
			t.Fatalf("a write is answered %d", got)
		}
	}
	for range 300 {
		type request struct {
			op            uint32
			queue, off, n int
			answers       <-chan int32
		}
		var all [depth]request
		at := 0
		for tag := range all { // side by side, apart from each other
			n := 512 * (1 + rand.IntN(blk.MaxTransfer/512))
			off := at + 512*rand.IntN(64)
			at = off + n
			r := request{op: []uint32{ublkcmd.OpRead, ublkcmd.OpWrite, ublkcmd.OpFlush}[rand.IntN(3)], queue: rand.IntN(2), off: off, n: n}
			var data []byte
			if r.op == ublkcmd.OpWrite {
				data = bytes.Repeat([]byte{byte(rand.IntN(256))}, n)
				copy(model[off:], data)
			}
			r.answers = d.ask(r.queue, tag, desc(r.op, off, n), data)
			all[tag] = r
		}
		for tag, r := range all {
			got := answer(t, r.answers)
			switch {
			case r.op == ublkcmd.OpFlush && got == 0:
			case r.op != ublkcmd.OpFlush && int(got) == r.n:
			default:
				t.Fatalf("operation %d of %d bytes at %d is answered %d", r.op, r.n, r.off, got)
			}
			if r.op == ublkcmd.OpRead && !bytes.Equal(d.data(r.queue, tag, r.n), model[r.off:r.off+r.n]) {
				t.Fatalf("%d bytes at %d are not what was written", r.n, r.off)
			}
		}
	}
}

// TestL3BuffersHoldNoPlaintext: what has moved through a device is not in its memory
// when the requests have been answered.
func TestL3BuffersHoldNoPlaintext(t *testing.T) {
	d, s, disk := begin(t, 1)
	resume(t, s, on(disk))
	secret := bytes.Repeat([]byte("a tenant's data\n"), blk.MaxTransfer/16)
	for i, n := range []int{512, 4096, 5120, blk.MaxTransfer} {
		if got := answer(t, d.ask(0, i, desc(ublkcmd.OpWrite, 0, n), secret[:n])); int(got) != n {
			t.Fatalf("a write of %d bytes is answered %d", n, got)
		}
		if got := answer(t, d.ask(0, i, desc(ublkcmd.OpRead, 0, n), nil)); int(got) != n || !bytes.Equal(d.data(0, i, n), secret[:n]) {
			t.Fatalf("a read of %d bytes is answered %d, or by other data", n, got)
		}
	}
	if err := s.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !mem.IsZero(s.queues[0].arena.region.Bytes()) {
		t.Error("every request was answered, and the device's memory holds data")
	}
}

// TestRefused: what no driver should ask fails, and harms nothing.
func TestRefused(t *testing.T) {
	d, s, disk := begin(t, 1)
	resume(t, s, on(disk))
	ops := disk.Ops()
	for name, c := range map[string]struct {
		desc ublkcmd.Desc
		want syscall.Errno
	}{
		"beyond the end":      {desc(ublkcmd.OpRead, volLen, 4096), syscall.EIO},
		"across the end":      {desc(ublkcmd.OpWrite, volLen-4096, 8192), syscall.EIO},
		"nothing":             {desc(ublkcmd.OpRead, 0, 0), syscall.EIO},
		"too long":            {desc(ublkcmd.OpRead, 0, blk.MaxTransfer+512), syscall.EIO},
		"no such place":       {ublkcmd.Desc{OpFlags: ublkcmd.OpRead, Start: 1 << 63, Sectors: 8}, syscall.EIO},
		"a discard beyond":    {desc(ublkcmd.OpDiscard, volLen, 4096), syscall.EIO},
		"no such operation":   {desc(4, 0, 4096), syscall.EOPNOTSUPP},
		"a zone's operation":  {desc(0x22, 0, 4096), syscall.EOPNOTSUPP},
		"longest of sectors":  {ublkcmd.Desc{OpFlags: ublkcmd.OpWrite, Sectors: ^uint32(0)}, syscall.EIO},
		"longest of discards": {ublkcmd.Desc{OpFlags: ublkcmd.OpDiscard, Sectors: ^uint32(0)}, syscall.EIO},
	} {
		if got := answer(t, d.ask(0, 3, c.desc, nil)); got != -int32(c.want) {
			t.Errorf("%s: answered %d, want %d", name, got, -int32(c.want))
		}
	}
	if disk.Ops() != ops {
		t.Error("something of that reached the drive")
	}
	if got := answer(t, d.ask(0, 3, desc(ublkcmd.OpRead, 0, 4096), nil)); got != 4096 {
		t.Errorf("then a read is answered %d", got)
	}
}

// TestPause: a device that is paused keeps its requests until it is resumed, by
// another volume too, and holds no queue of the one before.
func TestPause(t *testing.T) {
	d, s, disk := begin(t, 2)
	early := d.ask(1, 0, desc(ublkcmd.OpRead, 0, 4096), nil)
	for range 20 {
		v := on(disk)
		resume(t, s, v)
		if got := answer(t, early); got != 4096 {
			t.Fatalf("what waited is answered %d", got)
		}
		if err := s.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		v.Shut()
		select {
		case <-v.Drained():
		default:
			t.Fatal("the device rests, and something is in flight")
		}
		ops := disk.Ops()
		early = d.ask(1, 0, desc(ublkcmd.OpRead, 0, 4096), nil)
		time.Sleep(time.Millisecond)
		if len(early) > 0 || disk.Ops() != ops {
			t.Fatal("a device that is paused carries out requests")
		}
	}
	s.Close()
	if got := answer(t, early); got != -int32(syscall.EIO) {
		t.Errorf("after the lease was closed a request that waited is answered %d", got)
	}
}

// TestTwoVolumes: a device is not served by two volumes at once.
func TestTwoVolumes(t *testing.T) {
	_, s, disk := begin(t, 1)
	resume(t, s, on(disk))
	if err := s.Resume(on(disk)); err == nil {
		t.Error("a device that is served is served by another volume")
	}
}

// TestCloseHung: a drive hangs. A close answers what is in flight there at once, and
// what comes; the tag is used again before the drive has done the old request, which
// then changes nothing.
func TestCloseHung(t *testing.T) {
	d, s, disk := begin(t, 1)
	v := on(disk)
	resume(t, s, v)
	if got := answer(t, d.ask(0, 0, desc(ublkcmd.OpWrite, 0, 8192), bytes.Repeat([]byte{7}, 8192))); got != 8192 {
		t.Fatalf("a write is answered %d", got)
	}
	ops := disk.Ops()
	disk.From(ops+1, sim.Fault{Kind: sim.Hang})
	reads, writes := d.ask(0, 0, desc(ublkcmd.OpRead, 0, 8192), make([]byte, 8192)), d.ask(0, 1, desc(ublkcmd.OpWrite, 8192, 8192), make([]byte, 8192))
	for deadline := time.Now().Add(time.Minute); disk.Ops() < ops+2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("two requests did not reach the drive")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("pausing a device whose drive hangs: %v", err)
	}
	v.Shut()
	s.Close()
	for _, a := range []<-chan int32{reads, writes} {
		if got := answer(t, a); got != -int32(syscall.EIO) {
			t.Errorf("what hung is answered %d", got)
		}
	}
	for range 3 {
		if got := answer(t, d.ask(0, 0, desc(ublkcmd.OpRead, 0, 4096), nil)); got != -int32(syscall.EIO) {
			t.Errorf("a request of a closed lease is answered %d", got)
		}
	}
	disk.Heal()
	disk.Release()
	s.Wait()
	<-v.Drained()
	if got := d.data(0, 0, 8192); !mem.IsZero(got) {
		t.Error("what the drive read after the close went to the driver")
	}
}

// TestStopped: a device that is stopped while it is served leaves nothing: the volume
// gets its queues back.
func TestStopped(t *testing.T) {
	d := newFake(t, depth)
	before := descriptors(t)
	s, err := serve(nil, Config{Queues: 2, Depth: depth, MaxIO: blk.MaxTransfer, Lock: mem.TryLock}, d)
	if err != nil {
		t.Fatal(err)
	}
	v := &counted{Device: on(sim.New(sim.Config{Size: volLen}))}
	resume(t, s, v)
	if got := answer(t, d.ask(0, 0, desc(ublkcmd.OpRead, 0, 4096), nil)); got != 4096 {
		t.Fatalf("a read is answered %d", got)
	}
	if n := v.queues.Load(); n != 2 {
		t.Fatalf("the volume has %d queues, want 2", n)
	}
	d.stop()
	gone(t, s)
	if n := v.queues.Load(); n != 0 {
		t.Errorf("the device is stopped, and the volume has %d queues of it", n)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors are open, before it were %d", n, before)
	}
}

// A counted device counts its queues.
type counted struct {
	blk.Device
	queues atomic.Int32
}

type countedQueue struct {
	blk.Queue
	of *counted
}

func (c *counted) NewQueue(depth int) (blk.Queue, error) {
	q, err := c.Device.NewQueue(depth)
	if err != nil {
		return nil, err
	}
	c.queues.Add(1)
	return countedQueue{q, c}, nil
}

func (q countedQueue) Close() error {
	q.of.queues.Add(-1)
	return q.Queue.Close()
}

// TestFetchFails: the driver refuses commands. Nothing is served, and nothing stays.
func TestFetchFails(t *testing.T) {
	d := newFake(t, depth)
	d.fail = syscall.EBUSY
	before := descriptors(t)
	_, err := serve(nil, Config{Queues: 2, Depth: depth, MaxIO: blk.MaxTransfer, Lock: mem.TryLock}, d)
	if !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("serving: %v, want EBUSY", err)
	}
	for deadline := time.Now().Add(time.Minute); descriptors(t) != before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, before it were %d", descriptors(t), before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestNoDevice: what is no character device, and a configuration that makes no sense.
func TestNoDevice(t *testing.T) {
	f, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	good := Config{Queues: 1, Depth: depth, MaxIO: blk.MaxTransfer, Lock: mem.TryLock}
	if _, err := Serve(f, good); !errors.Is(err, syscall.ENODEV) {
		t.Errorf("a file is served: %v", err)
	}
	for _, c := range []Config{{}, {Queues: 17, Depth: 1, MaxIO: 512}, {Queues: 1, Depth: 4097, MaxIO: 512}, {Queues: 1, Depth: 1, MaxIO: 100}, {Queues: 1, Depth: 1, MaxIO: blk.MaxTransfer + 512}} {
		if _, err := Serve(f, c); err == nil {
			t.Errorf("%+v is served", c)
		}
	}
}
