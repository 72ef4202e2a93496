package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

// next is an engine that ends, and another that takes over.
func (w *world) next() {
	w.t.Helper()
	w.e.CrashEngine()
	w.n.EngineGone()
	w.must(nil, w.n.Recover(w.ctx))
}

// TestTakeOver is law L8: the engine's death is no event in a lease's life.
func TestTakeOver(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(9)
		records, _ := w.audit(l.ID)
		for range 3 {
			w.next()
			if got := w.expect(l.ID, lease.Open, "", lease.Held); got.Origin != l.Origin {
				t.Errorf("its origin is %+v, was %+v", got.Origin, l.Origin)
			}
			w.restart() // control, too
			w.expect(l.ID, lease.Open, "", lease.Held)
		}
		if got, _ := w.audit(l.ID); got != records || len(w.socks.IDs()) != 1 {
			t.Errorf("%d records, were %d; sockets %v", got, records, w.socks.IDs())
		}
		w.open(3)
		if c := w.close(l.ID); c.State != lease.Closed || c.Erasure == nil || !c.Erasure.ReadBack {
			t.Errorf("%+v", c)
		}
		w.expectFree(9)
	})
}

// TestNoOpenWithoutEngine: between two engines nothing is opened, and nothing is
// burnt trying.
func TestNoOpenWithoutEngine(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		w.n.EngineGone()
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib})
		kind(t, err, Recovering)
		if s := w.n.Status(); s.Ready || s.ReadyWhy == "" {
			t.Errorf("%+v", s)
		}
		w.next()
		w.open(12)
		if n, _ := w.audit(""); n != 3 {
			t.Errorf("%d records, want two of drives and one of a lease", n)
		}
	})
}

// TestCloseBetweenEngines: a close that finds no engine goes on with the next.
func TestCloseBetweenEngines(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(9)
		w.e.Down(true)
		done := make(chan lease.Lease)
		go func() { done <- w.close(l.ID) }()
		time.Sleep(time.Second)
		w.expect(l.ID, lease.Closing, "", lease.Held)
		w.e.Down(false)
		began := time.Now()
		w.next()
		if c := <-done; c.State != lease.Closed || c.Result != lease.OK || time.Since(began) != 0 {
			t.Errorf("after %v: %+v", time.Since(began), c)
		}
	})
}

// TestEndingsAreKept: what an engine destroyed is known to the next, so that a
// control that was away records the erasure, and not a loss.
func TestEndingsAreKept(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(9)
		er, err := w.e.CloseLease(w.ctx, l.ID) // as a control that died right after
		w.must(nil, err)
		w.stop()
		w.e.CrashEngine()
		w.mustStart()
		synctest.Wait()
		c := w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
		if c.Erasure == nil || c.Erasure.KeyDestroyedNs != er.KeyDestroyedNs {
			t.Errorf("erasure %+v, want the one observed, %+v", c.Erasure, er)
		}
		w.expectFree(12)
	})
}

// TestTakeOverWaitsForFence: a lease whose drive's fence the new engine does not
// hold is open; closing it destroys the key at once, and frees nothing.
func TestTakeOverWaitsForFence(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		leaver, stayer, other := w.open(3, "/a"), w.open(3, "/a"), w.open(1, "/b")
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
		w.next()
		for _, l := range []lease.Lease{leaver, stayer, other} {
			w.expect(l.ID, lease.Open, "", lease.Held)
		}
		if d, _ := w.n.Drive(w.ctx, "/a"); d.State != DriveBusy || d.FreeBytes != 0 {
			t.Errorf("drive %+v", d)
		}
		done := make(chan lease.Lease)
		go func() { done <- w.close(leaver.ID) }()
		synctest.Wait()
		if keys := w.e.Keys(); len(keys) != 2 {
			t.Errorf("keys %v", keys)
		}
		if c := <-done; c.State != lease.Erased || c.Space != lease.Cleaning {
			t.Errorf("%+v", c)
		}
		w.close(other.ID)
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		time.Sleep(10 * time.Second)
		w.expect(leaver.ID, lease.Closed, lease.OK, lease.Free)
		w.expect(stayer.ID, lease.Open, "", lease.Held)
		w.expectFree(9)
	})
}

// TestEngineDiesWhileALeaseDrains: the next one knows the lease, so that its
// record says that it drained, where it did so in time.
func TestEngineDiesWhileALeaseDrains(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(3, "/a")
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
		done := make(chan lease.Lease)
		go func() { done <- w.close(l.ID) }()
		synctest.Wait()
		w.e.CrashEngine()
		w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
		w.must(nil, w.n.Recover(w.ctx))
		if c := <-done; c.State != lease.Closed || !c.Erasure.Drained {
			t.Errorf("%+v, erasure %+v", c, c.Erasure)
		}
	})
}

// TestUnsureOpening: an opening during which control ended is not answered for by
// its idempotency key before an engine has said what became of it.
func TestUnsureOpening(t *testing.T) {
	for _, mode := range []nodesim.Mode{nodesim.Lost, nodesim.Done} {
		t.Run(mode.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				req := OpenRequest{SizeBytes: mib, Key: "k"}
				w.f.Strike(3, mode, true) // journal, sockets, engine: and control is killed
				gone, cancel := context.WithTimeout(w.ctx, time.Second)
				defer cancel()
				if _, err := w.n.Open(gone, req); err == nil {
					t.Fatal("opened")
				}
				before := w.n.List(false)[0].ID
				w.f.Strike(0, 0, false)
				w.stop()
				w.e.Down(true)
				if err := w.start(); err == nil {
					t.Fatal("started without an engine")
				}
				_, err := w.n.Open(w.ctx, req)
				kind(t, err, Recovering)
				w.e.Down(false)
				w.must(nil, w.n.Start(w.ctx))
				synctest.Wait()
				l, err := w.n.Open(w.ctx, req)
				if err != nil || l.State != lease.Open || (l.ID == before) != (mode == nodesim.Done) {
					t.Errorf("%+v, %v; the first one was %s", l, err, before)
				}
				w.close(l.ID)
				w.expectFree(12)
			})
		})
	}
}

// TestUnwritable: leases can be closed, and nothing else.
func TestUnwritable(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var why error
		w.edit = func(c *Config) { c.Unwritable = func() error { return why } }
		w.up()
		l := w.open(1)
		why = errDiskFull
		w.restart()
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib})
		if kind(t, err, Unavailable); !errors.Is(err, errDiskFull) {
			t.Error(err)
		}
		_, err = w.n.Enroll(w.ctx, EnrollRequest{Path: "/c"})
		kind(t, err, Unavailable)
		if s := w.n.Status(); s.Ready || s.ReadyWhy == "" {
			t.Errorf("%+v", s)
		}
		w.close(l.ID)
		why = nil
		w.open(12)
	})
}

// TestClockJumps: a time to live is the host's, not the wall clock's. Setting it
// neither ends a lease that is being watched, nor keeps one for longer than its
// whole time, also where control starts anew.
func TestClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{-1000 * time.Hour, -time.Minute, time.Minute, 1000 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.up()
				open := func() lease.Lease {
					l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, TTL: time.Hour})
					w.must(l, err)
					return l
				}
				l := open()
				w.clock.Jump(jump)
				time.Sleep(time.Hour - time.Second)
				w.expect(l.ID, lease.Open, "", lease.Held)
				time.Sleep(2 * time.Second)
				w.expect(l.ID, lease.Closed, lease.OK, lease.Free)

				l = open()
				w.clock.Jump(jump)
				time.Sleep(time.Hour / 2)
				w.restart()
				time.Sleep(time.Hour/2 + time.Second)
				w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
				w.audit("")
			})
		})
	}
}

// TestOpeningCutOff: an opening of which nobody was told, cut off by the ends of
// engine and control, was undone: nothing was lost with it, and its idempotency
// key opens another lease.
func TestOpeningCutOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		req := OpenRequest{SizeBytes: mib, Key: "k"}
		l, err := w.n.Open(w.ctx, req)
		w.must(l, err)
		w.e.CrashEngine()
		w.e.Undo(l.ID)
		w.restart()
		synctest.Wait()
		w.expect(l.ID, lease.Closed, lease.Failed, lease.Free)
		again, err := w.n.Open(w.ctx, req)
		if w.must(again, err); again.ID == l.ID || again.State != lease.Open {
			t.Errorf("%+v", again)
		}
	})
}
