package volume_test

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sim"
)

// TestL5HungDrive closes a lease in the engine's order while its drive hangs:
// gate, ciphers, key. Nothing of that waits for the drive; what the drive
// delivers later is delivered to nobody, and then the volume is drained.
func TestL5HungDrive(t *testing.T) {
	d := sim.New(sim.Config{Size: 1 << 20})
	l := newLease(t, d, 1)
	q := mustQueue(t, l, 8)
	page := bytes.Repeat([]byte("plain"), 1000)[:blk.BlockSize]
	for b := range int64(3) {
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: b * blk.BlockSize, Len: blk.BlockSize, Buf: page}); err != nil {
			t.Fatal(err)
		}
	}
	d.From(d.Ops()+1, sim.Fault{Kind: sim.Hang})
	var done counter
	untouched := bytes.Repeat([]byte{0xEE}, 2*blk.BlockSize)
	batch := []*blk.Request{
		{Op: blk.OpRead, Len: blk.BlockSize, Done: &done},
		{Op: blk.OpRead, Off: 100, Len: 5000, Done: &done}, // in parts
		{Op: blk.OpWrite, Off: 2*blk.BlockSize + 512, Len: 512, Done: &done},
	}
	for _, r := range batch {
		r.Buf = bytes.Clone(untouched[:r.Len])
	}
	q.Submit(batch)

	start := time.Now()
	l.Shut()
	l.c.Revoke()
	clear(l.sched[:])
	erased := time.Since(start)
	if done != 0 || drained(l.Volume) {
		t.Fatalf("%d completions from a drive that hangs, drained %v", done, drained(l.Volume))
	}
	if erased > time.Minute { // microseconds, on a machine that is not busy
		t.Errorf("erased after %v", erased)
	}

	d.Heal()
	d.Release()
	for int(done) < len(batch) {
		q.Reap(true)
	}
	for _, r := range batch {
		if r.Errno != syscall.ESHUTDOWN || r.N != 0 || !bytes.Equal(r.Buf, untouched[:r.Len]) {
			t.Errorf("late %v of %d bytes: errno %v, N = %d, or its buffer changed", r.Op, r.Len, r.Errno, r.N)
		}
	}
	if !drained(l.Volume) {
		t.Error("not drained with nothing in flight")
	}
	closeAll(t, q)
}
