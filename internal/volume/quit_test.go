package volume_test

import (
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sim"
	"vacate/internal/volume"
)

// TestQuitLimited: what waits for its share when its owner quits is never begun, and
// is over at once, however far off its time is.
func TestQuitLimited(t *testing.T) {
	d := &counting{Device: newRAM(4 << 20)}
	l := newLease(t, d, 1)
	l.SetLimits(volume.Limits{IOPS: 1, IOPSBurst: 1, Bytes: 1, BytesBurst: 1})
	c := newClient(t, l.Volume, blk.OpWrite, blk.BlockSize, 4)
	c.submit()
	c.q.Reap(false)
	if c.done != 1 {
		t.Fatalf("%d requests done, want the first", c.done)
	}
	c.q.(blk.Quitter).Quit()
	for c.done < 4 {
		if c.q.Reap(true) == 0 {
			t.Fatal("Reap waits for nothing")
		}
	}
	for i := range c.rs[1:] {
		if errno := c.rs[1+i].Errno; errno != syscall.ECANCELED {
			t.Errorf("request %d: %v, want ECANCELED", 1+i, errno)
		}
	}
	if n := d.ops.Load(); n != 1 {
		t.Errorf("%d operations below, want 1", n)
	}
	closeAll(t, c.q)
	l.Shut()
	if !drained(l.Volume) {
		t.Error("the gate has not drained")
	}
}

// TestQuitInLine: what waits for other queues is not begun either, holds up nobody,
// and what is in flight is carried out.
func TestQuitInLine(t *testing.T) {
	d := sim.New(sim.Config{Size: 1 << 20})
	l := newLease(t, d, 1)
	one, two := mustQueue(t, l, 4), mustQueue(t, l, 4)
	var n counter
	write := func(off, length int64) *blk.Request {
		return &blk.Request{Op: blk.OpWrite, Off: off, Len: length, Buf: make([]byte, length), Done: &n}
	}
	first, apart, waits := write(0, blk.BlockSize), write(1<<19, blk.BlockSize), write(512, 512)
	d.At(d.Ops()+1, sim.Fault{Kind: sim.Hang})
	one.Submit([]*blk.Request{first})
	d.At(d.Ops()+1, sim.Fault{Kind: sim.Hang})
	two.Submit([]*blk.Request{apart, waits})
	two.(blk.Quitter).Quit()
	two.Reap(false)
	if n != 1 || waits.Errno != syscall.ECANCELED {
		t.Errorf("%d requests done, the one in line with %v; want 1, ECANCELED", n, waits.Errno)
	}
	d.Release()
	for range 1000 {
		one.Reap(false)
		two.Reap(false)
	}
	if n != 3 || first.Errno != 0 || apart.Errno != 0 {
		t.Errorf("%d of 3 done: %v, %v", n, first.Errno, apart.Errno)
	}
	late := write(512, 512) // nothing holds the block any more
	if err := blk.Do(one, late); err != nil {
		t.Error(err)
	}
	closeAll(t, one, two)
}

// TestQuitGivesBack: what was reserved for requests that were never begun is there for
// others: a client that comes and goes does not use the share of its lease up.
func TestQuitGivesBack(t *testing.T) {
	l := newLease(t, newRAM(4<<20), 1)
	l.SetLimits(volume.Limits{IOPS: 1 << 40, Bytes: 1 << 20, BytesBurst: 1})
	c := newClient(t, l.Volume, blk.OpRead, blk.MaxTransfer, 1)
	c.submit() // and nothing for 250 ms
	for range 200 {
		gone := newClient(t, l.Volume, blk.OpRead, blk.MaxTransfer, 2)
		gone.submit()
		gone.q.(blk.Quitter).Quit()
		if gone.q.Reap(true); gone.done != 2 {
			t.Fatalf("%d requests done, want 2 canceled", gone.done)
		}
		closeAll(t, gone.q)
	}
	began := time.Now()
	for c.submit(); c.done < 2; {
		c.q.Reap(true)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the next request waited for %v", took)
	}
	closeAll(t, c.q)
}
