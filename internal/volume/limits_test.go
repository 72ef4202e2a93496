package volume_test

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/sys"
	"vacate/internal/volume"
)

func TestLimitsAreKept(t *testing.T) {
	first := volume.Limits{IOPS: 100, IOPSBurst: 10}
	v := volume.New(newRAM(1<<20), volume.Config{Limits: first})
	if got := v.Limits(); got != first {
		t.Errorf("%+v, want %+v", got, first)
	}
	for _, l := range []volume.Limits{{Bytes: 1 << 30}, {}, {IOPS: 1, Bytes: 2, BytesBurst: 3}} {
		v.SetLimits(l)
		if got := v.Limits(); got != l {
			t.Errorf("%+v, want %+v", got, l)
		}
	}
}

// TestContinued: further parts of a request count their bytes, and what lies below
// does not hear of them.
func TestContinued(t *testing.T) {
	below := sim.New(sim.Config{Size: 1 << 20, Seed: 1})
	v := volume.New(flagless{below, t}, volume.Config{Lock: mem.TryLock})
	q, err := v.NewQueue(4)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	for i, op := range []blk.Op{blk.OpRead, blk.OpWrite, blk.OpRead, blk.OpWrite} {
		r := blk.Request{Op: op, Off: 4096 * int64(i), Len: 4096, Buf: make([]byte, 4096), Flags: blk.Continued}
		if i < 2 {
			r.Flags = 0
		}
		if i == 3 { // and one that is read, changed and written back
			r.Off, r.Len, r.Buf = 100, 5000, make([]byte, 5000)
		}
		if err := blk.Do(q, &r); err != nil {
			t.Fatal(err)
		}
	}
	if s := v.Stats(); s.Reads != 1 || s.Writes != 1 || s.ReadBytes != 8192 || s.WriteBytes != 4096+5000 {
		t.Errorf("%+v, want a read and a write, and the bytes of two", s)
	}
}

// flagless is a device that nobody tells of blk.Continued.
type flagless struct {
	blk.Device
	t *testing.T
}

func (d flagless) NewQueue(depth int) (blk.Queue, error) {
	q, err := d.Device.NewQueue(depth)
	return flaglessQueue{q, d.t}, err
}

type flaglessQueue struct {
	blk.Queue
	t *testing.T
}

func (q flaglessQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		if r.Flags&blk.Continued != 0 {
			q.t.Errorf("a %v of %d bytes at %d is continued below", r.Op, r.Len, r.Off)
		}
	}
	q.Queue.Submit(batch)
}

func TestLimitsValidate(t *testing.T) {
	for _, tt := range []struct {
		l    volume.Limits
		good bool
	}{
		{volume.Limits{}, true},
		{volume.Limits{IOPS: 1}, true},
		{volume.Limits{IOPS: 1, IOPSBurst: 5, Bytes: 1, BytesBurst: 7}, true},
		{volume.Limits{IOPSBurst: 5}, false},
		{volume.Limits{IOPS: 1, BytesBurst: 5}, false},
	} {
		if err := tt.l.Validate(); (err == nil) != tt.good {
			t.Errorf("%+v: %v", tt.l, err)
		}
		if err := (volume.Config{Limits: tt.l}).Validate(); (err == nil) != tt.good {
			t.Errorf("as a Config %+v: %v", tt.l, err)
		}
	}
}

// A client keeps requests in flight on a queue of a volume: each that completes
// is submitted again, until it stops.
type client struct {
	q     blk.Queue
	rs    []blk.Request
	again []*blk.Request // completed, to be submitted
	done  int
}

func newClient(t *testing.T, v *volume.Volume, op blk.Op, length int64, depth int) *client {
	t.Helper()
	c := &client{q: mustQueue(t, v, depth), rs: make([]blk.Request, depth)}
	for i := range c.rs {
		c.rs[i] = blk.Request{Op: op, Len: length, Done: c}
		if op == blk.OpRead || op == blk.OpWrite {
			c.rs[i].Buf = make([]byte, length)
		}
		c.again = append(c.again, &c.rs[i])
	}
	return c
}

func (c *client) Complete(r *blk.Request) {
	c.done++
	c.again = append(c.again, r)
}

func (c *client) submit() {
	batch := slices.Clone(c.again)
	c.again = c.again[:0]
	c.q.Submit(batch)
}

// run works for a time, and waits in Reap, or as Pending says.
func (c *client) run(t *testing.T, d time.Duration, pending bool) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		c.submit()
		if !pending {
			c.q.Reap(true)
			continue
		}
		if before := c.done; c.q.Reap(false) == 0 && c.done == before && len(c.again) == 0 {
			var w blk.Wait
			blk.Pending(c.q, &w)
			if w.Blind || len(w.FDs) != 0 || w.Due == 0 {
				t.Errorf("a queue over its limit waits for %+v, want a time only", w)
				return
			}
			time.Sleep(time.Duration(w.Due - sys.MonotonicNs()))
		}
	}
}

// finish lifts the limits, and waits for what is in flight.
func (c *client) finish(t *testing.T, v *volume.Volume) {
	t.Helper()
	v.SetLimits(volume.Limits{})
	for len(c.again) < len(c.rs) {
		c.q.Reap(true)
	}
	for i := range c.rs {
		if errno := c.rs[i].Errno; errno != 0 {
			t.Error(errno)
		}
	}
	closeAll(t, c.q)
}

// A limited is limits, what a client asks for, and what it then gets.
type limited struct {
	name   string
	limits volume.Limits
	op     blk.Op
	length int64
	depth  int
	burst  float64 // requests
	rate   float64 // requests a second
}

// TestLimitsHold: what is done is what the limits allow: the burst, and then the
// rate, however the owner waits. A busy machine may take time away from us,
// and never lets more through.
func TestLimitsHold(t *testing.T) {
	for _, tt := range []limited{
		{"requests", volume.Limits{IOPS: 5000, IOPSBurst: 1}, blk.OpRead, 4096, 8, 1, 5000},
		{"with a burst", volume.Limits{IOPS: 2000, IOPSBurst: 3000}, blk.OpRead, 4096, 8, 3000, 2000},
		{"at depth 1", volume.Limits{IOPS: 1000, IOPSBurst: 5}, blk.OpWrite, 4096, 1, 5, 1000},
		{"bytes", volume.Limits{Bytes: 20 << 20, BytesBurst: 1 << 20}, blk.OpWrite, 4096, 4, 256, 5120},
		{"long requests", volume.Limits{Bytes: 100 << 20, BytesBurst: 4096}, blk.OpRead, blk.MaxTransfer, 4, 1, 400},
		{"both", volume.Limits{IOPS: 1000, IOPSBurst: 10, Bytes: 1 << 20, BytesBurst: 4096}, blk.OpRead, 4096, 4, 1, 256},
		{"discards have no bytes", volume.Limits{IOPS: 5000, IOPSBurst: 10, Bytes: 4096, BytesBurst: 4096}, blk.OpDiscard, 4096, 4, 10, 5000},
	} {
		for _, pending := range []bool{false, true} {
			t.Run(tt.name, func(t *testing.T) {
				share := 0.0
				for began, try := time.Now(), 0; share < 0.9; try++ {
					if try >= 10 && time.Since(began) > 30*time.Second {
						t.Fatalf("%.3f of the limit, at best of %d tries", share, try)
					}
					share = max(share, tt.run(t, 150*time.Millisecond, pending))
				}
			})
		}
	}
}

// run returns how much of its limits a client has had.
func (tt *limited) run(t *testing.T, d time.Duration, pending bool) float64 {
	v := newLease(t, newRAM(4<<20), 1).Volume
	c := newClient(t, v, tt.op, tt.length, tt.depth)
	v.SetLimits(tt.limits)
	began := time.Now()
	c.run(t, d, pending)
	most, done := tt.burst+tt.rate*time.Since(began).Seconds(), float64(c.done)
	if done > most+1+slackOf(tt.rate) {
		t.Errorf("%v requests, want at most %.0f", done, most)
	}
	c.finish(t, v)
	return done / most
}

// TestLimitsLeaveFlushes: a flush waits for no limit, if nothing before it does.
func TestLimitsLeaveFlushes(t *testing.T) {
	v := newLease(t, newRAM(4<<20), 1).Volume
	c := newClient(t, v, blk.OpFlush, 0, 4)
	v.SetLimits(volume.Limits{IOPS: 1, IOPSBurst: 1, Bytes: 1, BytesBurst: 1})
	for range 100 {
		c.submit()
	}
	if c.done != 400 {
		t.Errorf("%d of 400 flushes", c.done)
	}
	c.finish(t, v)
}

// slackOf is what a queue may catch up with, in requests.
func slackOf(rate float64) float64 { return rate * 0.010 }

// TestLimitsAreShared: two queues of a volume have its limit together, and about
// half of it each, where the machine lets both run.
func TestLimitsAreShared(t *testing.T) {
	for try := 1; ; try++ {
		first, second := shareLimit(t)
		if first >= second/2 && second >= first/2 {
			return
		}
		if try == 20 {
			t.Fatalf("%d requests on one queue, %d on the other, at the last of %d tries", first, second, try)
		}
	}
}

// shareLimit returns how many requests each of two queues of a volume had done.
func shareLimit(t *testing.T) (first, second int) {
	v := newLease(t, newRAM(4<<20), 1).Volume
	one, two := newClient(t, v, blk.OpRead, 4096, 16), newClient(t, v, blk.OpRead, 64<<10, 2)
	v.SetLimits(volume.Limits{IOPS: 4000, IOPSBurst: 1})
	began := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		two.run(t, 500*time.Millisecond, true)
	}()
	one.run(t, 500*time.Millisecond, true)
	<-ended
	took := time.Since(began).Seconds()
	if sum := float64(one.done + two.done); sum > 4000*(took+0.020)+20 {
		t.Errorf("%v requests in %.3f s", sum, took)
	}
	first, second = one.done, two.done
	one.finish(t, v)
	two.finish(t, v)
	return first, second
}

// TestLimitsChangeWhileWaiting: who waits in Reap for a time that is far away is
// woken when the limits are lifted.
func TestLimitsChangeWhileWaiting(t *testing.T) {
	v := newLease(t, newRAM(4<<20), 1).Volume
	v.SetLimits(volume.Limits{Bytes: 1, BytesBurst: 1})
	c := newClient(t, v, blk.OpRead, blk.BlockSize, 3)
	c.submit()
	c.q.Reap(false)
	if c.done != 1 {
		t.Fatalf("%d requests done, want the first", c.done)
	}
	began := time.Now()
	time.AfterFunc(5*time.Millisecond, func() { v.SetLimits(volume.Limits{Bytes: 1 << 40}) })
	for c.done < 3 {
		c.q.Reap(true)
	}
	if took := time.Since(began); took < 4*time.Millisecond || took > time.Minute {
		t.Errorf("the wait ended after %v", took)
	}
	closeAll(t, c.q)
}

// TestLimitsChangeAgain: limits that change sooner than anybody's time comes let as
// much through as if they did not.
func TestLimitsChangeAgain(t *testing.T) {
	v := newLease(t, newRAM(4<<20), 1).Volume
	v.SetLimits(volume.Limits{IOPS: 10, IOPSBurst: 1})
	one, two := newClient(t, v, blk.OpRead, blk.BlockSize, 2), newClient(t, v, blk.OpRead, blk.BlockSize, 2)
	began := time.Now()
	for i := uint64(0); one.done+two.done < 11; i++ {
		for _, c := range []*client{one, two} {
			c.submit()
			c.q.Reap(false)
		}
		time.Sleep(5 * time.Millisecond)
		v.SetLimits(volume.Limits{IOPS: 10, IOPSBurst: 1, Bytes: 1<<40 + i})
		if time.Since(began) > time.Minute {
			t.Fatalf("%d requests in a minute, at 10/s", one.done+two.done)
		}
	}
	if took := time.Since(began); took < 900*time.Millisecond {
		t.Errorf("11 requests took %v, at 10/s", took)
	}
	one.finish(t, v)
	two.finish(t, v)
}

// TestL1ShutWhileLimited: what waits for its time when the gate is shut is never
// started, nobody waits for it, and who waits in Reap is woken.
func TestL1ShutWhileLimited(t *testing.T) {
	d := &counting{Device: newRAM(4 << 20)}
	l := newLease(t, d, 1)
	l.SetLimits(volume.Limits{Bytes: 1, BytesBurst: 1}) // the second's time comes in an hour
	c := newClient(t, l.Volume, blk.OpWrite, blk.BlockSize, 3)
	for i := range c.rs {
		c.rs[i].Off = int64(i) * blk.BlockSize
	}
	began := time.Now()
	c.submit()
	c.q.Reap(false)
	if c.done != 1 || d.ops.Load() != 1 {
		t.Fatalf("%d requests done, %d operations below, want the first", c.done, d.ops.Load())
	}
	time.AfterFunc(5*time.Millisecond, l.Shut)
	for c.done < 3 {
		c.q.Reap(true)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the wait ended after %v", took)
	}
	if !drained(l.Volume) || d.ops.Load() != 1 {
		t.Errorf("L1: drained: %v, %d operations below, want true and 1", drained(l.Volume), d.ops.Load())
	}
	for i := range c.rs[1:] {
		if errno := c.rs[1+i].Errno; errno != syscall.ESHUTDOWN {
			t.Errorf("request %d: %v, want ESHUTDOWN", 1+i, errno)
		}
	}
	closeAll(t, c.q)
}

// TestConformanceLimited: a volume that makes requests wait breaks no rule.
func TestConformanceLimited(t *testing.T) {
	limits := volume.Limits{IOPS: 20_000, IOPSBurst: 1, Bytes: 1 << 30, BytesBurst: 4096}
	for name, open := range map[string]func() blk.Device{
		"sim":  func() blk.Device { return sim.New(sim.Config{Size: 4 << 20, Seed: 1, Fill: 0xA7}) },
		"sync": func() blk.Device { return newRAM(4 << 20) },
	} {
		t.Run(name, func(t *testing.T) {
			blktest.Run(t, func(t *testing.T) blk.Device {
				l := newLease(t, open(), 1)
				l.SetLimits(limits)
				return l
			})
		})
	}
}
