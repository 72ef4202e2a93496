package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/node/nodesim"
)

var slow = limit.Limits{IOPS: 500, IOPSBurst: 3000, Bytes: 200 << 20}

// held checks that journal, node and engine agree on a lease's limits.
func (w *world) held(id string, want limit.Limits) {
	w.t.Helper()
	if got := w.get(id).Limits; got != want {
		w.t.Errorf("the node says %+v, want %+v", got, want)
	}
	if got := w.e.Limits()[id]; got != want {
		w.t.Errorf("the engine holds it to %+v, want %+v", got, want)
	}
	s, err := w.bolt.Load()
	w.must(s, err)
	for _, l := range s.Live {
		if l.ID == id && l.Limits != want {
			w.t.Errorf("the journal has %+v, want %+v", l.Limits, want)
		}
	}
}

func TestLimit(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k", Limits: slow})
		w.must(l, err)
		w.held(l.ID, slow)
		watch, err := w.n.Watch()
		w.must(watch, err)
		for _, next := range []limit.Limits{{IOPS: 7}, {}, {Bytes: 1 << 20, BytesBurst: 1 << 30}} {
			got, err := w.n.Limit(w.ctx, l.ID, next)
			if w.must(got, err); got.Limits != next || got.OpenLimits != slow || got.State != lease.Open {
				t.Errorf("%+v", got)
			}
			w.held(l.ID, next)
			if c, err := watch.Next(w.ctx); err != nil || c.Lease.Limits != next {
				t.Errorf("watched %+v, %v", c, err)
			}
			w.next()
			w.held(l.ID, next)
			w.restart()
			w.held(l.ID, next)
			if watch, err = w.n.Watch(); err != nil {
				t.Fatal(err)
			}
		}
		// The idempotency key stands for what it was opened with.
		again, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k", Limits: slow})
		if w.must(again, err); again.ID != l.ID {
			t.Errorf("lease %s, want %s", again.ID, l.ID)
		}
		_, err = w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k", Limits: limit.Limits{Bytes: 1 << 20, BytesBurst: 1 << 30}})
		kind(t, err, Refused)
		if c := w.close(l.ID); c.Limits.Bytes != 1<<20 {
			t.Errorf("closed with %+v", c.Limits)
		}
	})
}

func TestLimitRefused(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var why error
		w.edit = func(c *Config) { c.Unwritable = func() error { return why } }
		w.up()
		senseless := limit.Limits{IOPSBurst: 1, Bytes: 1}
		_, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Limits: senseless})
		kind(t, err, Invalid)
		l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Limits: slow})
		w.must(l, err)
		_, err = w.n.Limit(w.ctx, l.ID, senseless)
		kind(t, err, Invalid)
		_, err = w.n.Limit(w.ctx, "aaaaaaaaaaaaaaaa", slow)
		kind(t, err, NotFound)
		why = errDiskFull
		_, err = w.n.Limit(w.ctx, l.ID, limit.Limits{})
		kind(t, err, Unavailable)
		why = nil
		w.n.EngineGone()
		_, err = w.n.Limit(w.ctx, l.ID, limit.Limits{})
		kind(t, err, Recovering)
		w.next()
		w.held(l.ID, slow)
		w.e.Down(true)
		go w.close(l.ID)
		synctest.Wait()
		_, err = w.n.Limit(w.ctx, l.ID, limit.Limits{})
		kind(t, err, Refused)
		w.e.Down(false)
		w.close(l.ID)
		_, err = w.n.Limit(w.ctx, l.ID, limit.Limits{})
		kind(t, err, Refused)
	})
}

// TestLimitWithoutEngine: what the journal has is what counts, whoever ended in
// between.
func TestLimitWithoutEngine(t *testing.T) {
	for _, mode := range []nodesim.Mode{nodesim.Lost, nodesim.Done} {
		for name, goOn := range map[string]func(w *world){
			"the call comes through later":   func(*world) {},
			"another engine takes its place": (*world).next,
			"control ends":                   (*world).restart,
		} {
			t.Run(mode.String()+"/"+name, func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.up()
					l := w.open(1)
					w.f.Strike(2, mode, true) // the journal's call goes well
					_, err := w.n.Limit(w.ctx, l.ID, slow)
					kind(t, err, Recovering)
					w.f.Strike(0, 0, false)
					goOn(w)
					time.Sleep(10 * time.Second)
					w.held(l.ID, slow)
					w.must(w.n.Limit(w.ctx, l.ID, limit.Limits{}))
					w.held(l.ID, limit.Limits{})
				})
			})
		}
	}
}

// TestLimitGivenUp: where a lease ends before the engine has answered, nobody
// goes on asking; a caller who comes meanwhile does not wait for ever.
func TestLimitGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(1)
		w.f.Strike(2, nodesim.Lost, true)
		_, err := w.n.Limit(w.ctx, l.ID, slow)
		kind(t, err, Recovering)
		_, err = w.n.Limit(w.ctx, l.ID, slow)
		kind(t, err, Unavailable)
		go w.n.Close(w.ctx, l.ID) //nolint:errcheck // looked at below
		time.Sleep(time.Minute)
		w.f.Strike(0, 0, false)
		time.Sleep(time.Minute)
		w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
		for _, c := range w.f.Calls() {
			if c == "engine LimitLease" {
				t.Error("a lease that has ended is still to be limited")
			}
		}
	})
}

// TestLimitsOfMany: callers at once end with journal, node and engine of one mind.
func TestLimitsOfMany(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(1)
		done := make(chan error)
		for i := range 20 {
			go func() {
				_, err := w.n.Limit(w.ctx, l.ID, limit.Limits{IOPS: uint64(i + 1)})
				done <- err
			}()
		}
		for range 20 {
			w.must(nil, <-done)
		}
		w.held(l.ID, w.get(l.ID).Limits)
		if w.get(l.ID).Limits == (limit.Limits{}) {
			t.Error("nobody's limits")
		}
	})
}

// TestLimitWaitsForOpening: a lease that is being opened is limited when it is.
func TestLimitWaitsForOpening(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		hold := make(chan struct{})
		slowly := &slowEngine{Engine: w.e, opening: func() { <-hold }}
		w.edit = func(c *Config) { c.Engine = slowly }
		w.up()
		go w.n.Open(w.ctx, OpenRequest{SizeBytes: mib}) //nolint:errcheck // looked at below
		synctest.Wait()
		id := w.n.List(false)[0].ID
		gone, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		if _, err := w.n.Limit(gone, id, slow); err == nil {
			t.Error("limited before it was open")
		}
		close(hold)
		w.must(w.n.Limit(w.ctx, id, slow))
		w.held(id, slow)
	})
}
