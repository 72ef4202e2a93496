package ublk

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/ublkcmd"
)

// A scarce device counts its queues, and may run out of them.
type scarce struct {
	blk.Device
	open atomic.Int32 // queues that were made and not closed
	left atomic.Int32 // that can be made
}

type scarceQueue struct {
	blk.Queue
	d *scarce
}

func count(d blk.Device, left int32) *scarce {
	c := &scarce{Device: d}
	c.left.Store(left)
	return c
}

func (d *scarce) NewQueue(depth int) (blk.Queue, error) {
	if d.left.Add(-1) < 0 {
		return nil, syscall.ENOMEM
	}
	q, err := d.Device.NewQueue(depth)
	if err != nil {
		return nil, err
	}
	d.open.Add(1)
	return &scarceQueue{q, d}, nil
}

func (q *scarceQueue) Quit()               { q.Queue.(blk.Quitter).Quit() }
func (q *scarceQueue) Pending(w *blk.Wait) { blk.Pending(q.Queue, w) }

func (q *scarceQueue) Close() error {
	q.d.open.Add(-1)
	return q.Queue.Close()
}

// TestStoppedResume: a device that is stopped while its lease is open gives the volume back
// all the same.
func TestStoppedResume(t *testing.T) {
	d, s, disk := begin(t, 2)
	v := count(on(disk), 100)
	resume(t, s, v)
	if got := answer(t, d.ask(1, 0, desc(ublkcmd.OpRead, 0, 4096), nil)); got != 4096 {
		t.Fatalf("a read is answered %d", got)
	}
	d.stop()
	gone(t, s)
	s.Wait()
	if n := v.open.Load(); n != 0 {
		t.Errorf("the device is gone, and has %d queues of the volume", n)
	}
	resume(t, s, v) // of a device that is gone: nothing
	if n := v.open.Load(); n != 0 {
		t.Errorf("a device that is gone has %d queues of the volume", n)
	}
}

// TestResumeFails: there is no memory for the second queue. The device stays paused,
// and nothing waits, though the drive hangs; another try has the requests carried out.
func TestResumeFails(t *testing.T) {
	d, s, disk := begin(t, 2)
	waits := d.ask(0, 0, desc(ublkcmd.OpRead, 0, 4096), nil)
	disk.From(disk.Ops()+1, sim.Fault{Kind: sim.Hang})
	defer disk.Release()
	v := count(on(disk), 1)
	failed := make(chan error, 1)
	go func() { failed <- s.Resume(v) }()
	select {
	case err := <-failed:
		if !errors.Is(err, syscall.ENOMEM) {
			t.Fatalf("resuming without memory: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a resume that fails waits for a drive")
	}
	if n := v.open.Load(); n != 0 || len(waits) > 0 {
		t.Fatalf("after a resume that failed the device has %d queues of the volume, and %d answers", n, len(waits))
	}
	disk.Heal()
	v.left.Store(100)
	resume(t, s, v)
	if got := answer(t, waits); got != 4096 {
		t.Errorf("what waited is answered %d", got)
	}
	if err := s.Resume(v); err == nil {
		t.Error("a device that is served is served again")
	}
	if got := answer(t, d.ask(1, 0, desc(ublkcmd.OpRead, 0, 4096), nil)); got != 4096 {
		t.Errorf("after a second resume a read is answered %d", got)
	}
	if n := v.open.Load(); n != 2 {
		t.Errorf("two queues of the device have %d of the volume", n)
	}
	s.Close()
	s.Wait()
	if n := v.open.Load(); n != 0 {
		t.Errorf("a device that is closed has %d queues of the volume", n)
	}
	resume(t, s, v)
	if n := v.open.Load(); n != 0 {
		t.Errorf("a device that is closed has %d queues of the volume", n)
	}
}

// TestCommandRefused: that the driver takes a tag's command no more is told, unless the
// device is being stopped.
func TestCommandRefused(t *testing.T) {
	d := newFake(t, depth)
	var told bytes.Buffer
	s, err := serve(nil, Config{Queues: 1, Depth: depth, MaxIO: blk.MaxTransfer, Lock: mem.TryLock, Log: slog.New(slog.NewTextHandler(&told, nil))}, d)
	if err != nil {
		t.Fatal(err)
	}
	r := d.rings[0]
	r.mu.Lock()
	r.complete(3, -int(syscall.EINVAL))
	r.mu.Unlock()
	s.Close()
	d.stop()
	gone(t, s)
	if n := strings.Count(told.String(), "\n"); n != 1 || !strings.Contains(told.String(), "tag=3") {
		t.Errorf("the log has %d lines: %s", n, told.String())
	}
}
