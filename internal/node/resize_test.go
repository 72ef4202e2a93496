package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/extent"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

// sized checks that journal, node and engine agree on a lease's size.
func (w *world) sized(id string, want int64) {
	w.t.Helper()
	if got := w.get(id).SizeBytes; got != want {
		w.t.Errorf("the node says %d bytes, want %d", got, want)
	}
	if got := w.e.Sizes()[id]; got != want {
		w.t.Errorf("the engine has %d bytes, want %d", got, want)
	}
	s, err := w.bolt.Load()
	w.must(s, err)
	for _, l := range s.Live {
		if l.ID == id && l.SizeBytes != want {
			w.t.Errorf("the journal has %d bytes, want %d", l.SizeBytes, want)
		}
	}
}

func TestResize(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib - 4096, Key: "k"})
		w.must(l, err)
		watch, err := w.n.Watch()
		w.must(watch, err)
		for _, tt := range []struct{ size, extents int64 }{
			{mib - 4096, 1}, // as it is
			{mib, 1},        // there is room
			{mib + 4096, 2},
			{5 * mib, 5},
			{10 * mib, 10}, // on the other drive too
		} {
			before, free := w.get(l.ID).SizeBytes, w.free()
			planned, err := w.n.Resize(w.ctx, l.ID, tt.size, true)
			if w.must(planned, err); w.free() != free || planned.SizeBytes != tt.size {
				t.Errorf("the plan %+v has changed something", planned)
			}
			w.sized(l.ID, before)
			got, err := w.n.Resize(w.ctx, l.ID, tt.size, false)
			if w.must(got, err); got.SizeBytes != tt.size || got.State != lease.Open || !samePieces(got, planned) {
				t.Errorf("%+v, planned %+v", got, planned)
			}
			w.sized(l.ID, tt.size)
			if n := w.free(); n != 12-tt.extents {
				t.Errorf("%d bytes: %d extents are free, want %d", tt.size, n, 12-tt.extents)
			}
			if tt.size != before {
				if c, err := watch.Next(w.ctx); err != nil || c.Lease.SizeBytes != tt.size {
					t.Errorf("watched %+v, %v", c, err)
				}
			}
			w.next()
			w.sized(l.ID, tt.size)
			w.restart()
			w.sized(l.ID, tt.size)
			if watch, err = w.n.Watch(); err != nil {
				t.Fatal(err)
			}
		}
		if got := w.get(l.ID); got.Pieces[0].Count != 5 {
			t.Errorf("%v: a run that goes on is one", got.Pieces)
		}
		// The idempotency key stands for what it was opened with.
		again, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib - 4096, Key: "k"})
		if w.must(again, err); again.ID != l.ID {
			t.Errorf("lease %s, want %s", again.ID, l.ID)
		}
		_, err = w.n.Open(w.ctx, OpenRequest{SizeBytes: 10 * mib, Key: "k"})
		kind(t, err, Refused)
		if c := w.close(l.ID); c.SizeBytes != 10*mib {
			t.Errorf("closed with %d bytes", c.SizeBytes)
		}
		w.expectFree(12)
		w.audit("")
	})
}

func samePieces(a, b lease.Lease) bool {
	more, err := extent.Beyond(a.Pieces, b.Pieces)
	return err == nil && len(more) == 0
}

// TestResizeGoesOn: space behind the last piece is taken first, then space on the
// same drive, then on others.
func TestResizeGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		one, two := w.open(2), w.open(1)
		got, err := w.n.Resize(w.ctx, two.ID, 2*mib, false)
		if w.must(got, err); len(got.Pieces) != 1 {
			t.Errorf("%v", got.Pieces)
		}
		got, err = w.n.Resize(w.ctx, one.ID, 4*mib, false) // the other lies behind it
		if w.must(got, err); len(got.Pieces) != 2 || got.Pieces[1].Drive != got.Pieces[0].Drive {
			t.Errorf("%v", got.Pieces)
		}
		got, err = w.n.Resize(w.ctx, two.ID, 6*mib, false)
		if w.must(got, err); len(got.Pieces) != 2 || got.Pieces[1].Drive == got.Pieces[0].Drive || got.Pieces[1].Count != 4 {
			t.Errorf("%v", got.Pieces)
		}
		_, err = w.n.Resize(w.ctx, one.ID, 7*mib, false)
		if kind(t, err, Full); !errors.Is(err, extent.ErrFull) || !strings.Contains(err.Error(), "larger") {
			t.Errorf("no space is left: %v", err)
		}
		w.sized(one.ID, 4*mib)
		w.sized(two.ID, 6*mib)
		w.must(w.n.Resize(w.ctx, one.ID, 6*mib, false))
		if n := w.free(); n != 0 {
			t.Errorf("%d extents are free", n)
		}
	})
}

// TestResizeStaysOnDrive: a lease that was opened on a drive stays there.
func TestResizeStaysOnDrive(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Drive: "/b"})
		w.must(l, err)
		_, err = w.n.Resize(w.ctx, l.ID, 5*mib, false)
		kind(t, err, Full)
		w.must(w.n.Resize(w.ctx, l.ID, 4*mib, false))
	})
}

func TestResizeRefused(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		var why error
		w.edit = func(c *Config) { c.Unwritable = func() error { return why } }
		w.up()
		l := w.open(2)
		try := func(size int64, want Kind) {
			t.Helper()
			for _, plan := range []bool{true, false} {
				_, err := w.n.Resize(w.ctx, l.ID, size, plan)
				kind(t, err, want)
			}
		}
		for _, size := range []int64{0, -4096, 2*mib + 512, 1<<62 + 4096} {
			try(size, Invalid)
		}
		try(mib, Refused)
		try(1<<62, Full)
		_, err := w.n.Resize(w.ctx, "aaaaaaaaaaaaaaaa", mib, false)
		kind(t, err, NotFound)
		why = errDiskFull
		try(3*mib, Unavailable)
		why = nil
		w.n.EngineGone()
		try(3*mib, Recovering)
		w.next()
		w.sized(l.ID, 2*mib)
		w.e.Down(true)
		go w.close(l.ID)
		synctest.Wait()
		try(3*mib, Refused)
		w.e.Down(false)
		w.close(l.ID)
		try(3*mib, Refused)
		w.expectFree(12)
	})
}

// TestResizeWithoutEngine: what the journal has is what counts, whoever ended in
// between.
func TestResizeWithoutEngine(t *testing.T) {
	for _, at := range []int{1, 2} { // the journal's call, the engine's
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
						w.f.Strike(at, mode, true)
						_, err := w.n.Resize(w.ctx, l.ID, 3*mib, false)
						kind(t, err, Recovering)
						w.f.Strike(0, 0, false)
						goOn(w)
						time.Sleep(10 * time.Second)
						want := int64(3 * mib)
						if got := w.get(l.ID).SizeBytes; at == 1 && mode == nodesim.Lost && name == "control ends" && got == mib {
							want = mib // it ended before the journal had it
						}
						w.sized(l.ID, want)
						w.must(w.n.Resize(w.ctx, l.ID, 4*mib, false))
						w.sized(l.ID, 4*mib)
						w.close(l.ID)
						w.expectFree(12)
					})
				})
			}
		}
	}
}

// TestResizeGivenUp: where a lease ends before the engine has answered, nobody goes
// on asking, and all its space is free.
func TestResizeGivenUp(t *testing.T) {
	for _, at := range []int{1, 2} {
		for _, mode := range []nodesim.Mode{nodesim.Lost, nodesim.Done} {
			t.Run(mode.String(), func(t *testing.T) {
				bubble(t, func(t *testing.T, w *world) {
					w.up()
					l := w.open(1)
					w.f.Strike(at, mode, true)
					_, err := w.n.Resize(w.ctx, l.ID, 3*mib, false)
					kind(t, err, Recovering)
					_, err = w.n.Resize(w.ctx, l.ID, 3*mib, false)
					kind(t, err, Unavailable)
					go w.n.Close(w.ctx, l.ID) //nolint:errcheck // looked at below
					time.Sleep(time.Minute)
					w.f.Strike(0, 0, false)
					time.Sleep(time.Minute)
					w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
					w.expectFree(12)
					w.audit("")
				})
			})
		}
	}
}

// TestResizesOfMany: callers at once end with journal, node and engine of one mind.
func TestResizesOfMany(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l := w.open(1)
		done := make(chan error)
		for i := range 10 {
			go func() {
				_, err := w.n.Resize(w.ctx, l.ID, int64(i+1)*mib, false)
				var e *Error
				if errors.As(err, &e) && e.Kind == Refused { // a larger one came first
					err = nil
				}
				done <- err
			}()
		}
		for range 10 {
			w.must(nil, <-done)
		}
		w.sized(l.ID, 10*mib)
	})
}

// TestResizeWaitsForOpening: a lease that is being opened is resized when it is.
func TestResizeWaitsForOpening(t *testing.T) {
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
		if _, err := w.n.Resize(gone, id, 2*mib, false); err == nil {
			t.Error("resized before it was open")
		}
		close(hold)
		w.must(w.n.Resize(w.ctx, id, 2*mib, false))
		w.sized(id, 2*mib)
	})
}

// refusing is a journal that cannot be written, for resizes.
type refusing struct{ journal.Store }

func (refusing) ResizeLease(string, int64, []extent.Piece) (lease.Lease, error) {
	return lease.Lease{}, fmt.Errorf("no space left: %w", journal.ErrUnchanged)
}

// TestResizeNotStored: where the journal surely did nothing, nothing was taken.
func TestResizeNotStored(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		l, store := w.open(2), w.n.cfg.Store
		w.n.cfg.Store = refusing{store}
		_, err := w.n.Resize(w.ctx, l.ID, 5*mib, false)
		kind(t, err, Unavailable)
		w.expectFree(10)
		w.sized(l.ID, 2*mib)
		w.n.cfg.Store = store
		w.must(w.n.Resize(w.ctx, l.ID, 12*mib, false))
	})
}
