package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/node/nodesim"
)

// life is a scripted life of a node: everything that changes journal or engine.
// Errors are expected, and ignored: calls are struck.
func life(w *world) {
	try := func(_ any, _ error) {}
	ids := []string{}
	open := func(req OpenRequest) {
		if w.n == nil {
			return
		}
		if l, err := w.n.Open(w.ctx, req); err == nil {
			ids = append(ids, l.ID)
		}
	}
	shut := func(i int) {
		if w.n != nil && i < len(ids) {
			try(w.n.Close(w.ctx, ids[i]))
		}
	}
	hold := func(i int, l limit.Limits) {
		if w.n != nil && i < len(ids) {
			try(w.n.Limit(w.ctx, ids[i], l))
		}
	}
	grow := func(i int, size int64) {
		if w.n != nil && i < len(ids) {
			try(w.n.Resize(w.ctx, ids[i], size, false))
		}
	}
	release := func(i int) {
		if w.n != nil && i < len(ids) {
			try(w.n.ReleaseKey(w.ctx, ids[i], make([]byte, recipientLen)))
		}
	}
	again := func() { // control ends and starts
		w.stop()
		if err := w.start(); err != nil { // it would be started again
			w.stop()
			if err := w.start(); err != nil {
				w.stop()
			}
		}
	}
	if w.start() != nil {
		again()
	}
	for _, path := range []string{"/a", "/b"} {
		if w.n != nil {
			try(w.n.Enroll(w.ctx, EnrollRequest{Path: path}))
		}
	}
	open(OpenRequest{SizeBytes: 4 * mib, Tenant: "one", Key: "k1"})
	open(OpenRequest{SizeBytes: 6 * mib, Tenant: "two", Key: "k2", TTL: time.Minute}) // spans the drives
	hold(1, slow)
	grow(0, 5*mib)
	shut(0)
	open(OpenRequest{SizeBytes: 3 * mib, Tenant: "three", Key: "k3"}) // on what the first had
	grow(2, 3*mib+4096)
	release(2)
	again()
	w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = true })
	shut(2) // erased, not drained
	again()
	open(OpenRequest{SizeBytes: 3 * mib, Tenant: "four", Key: "k4"}) // all that is free
	open(OpenRequest{SizeBytes: 3 * mib, Tenant: "none", Key: "k0"}) // refused
	next := func(crash func()) {                                     // another engine
		crash()
		if w.n != nil {
			w.n.EngineGone()
			if w.n.Recover(w.ctx) != nil {
				again()
			}
		}
	}
	next(w.e.CrashEngine)
	shut(3) // waits for the fence
	w.clock.Jump(-time.Hour)
	again()
	time.Sleep(time.Second)
	w.e.With("/a", func(d *nodesim.Disk) { d.Hangs = false })
	time.Sleep(10 * time.Second)
	open(OpenRequest{SizeBytes: 1 * mib, Tenant: "five", Key: "k5", TTL: time.Hour, Limits: slow})
	hold(4, limit.Limits{IOPS: 9})
	grow(4, 5*mib)
	w.clock.Jump(30 * time.Minute)
	next(w.e.CrashEngine)
	next(w.e.GiveUp)
	open(OpenRequest{SizeBytes: 1 * mib, Tenant: "six", Key: "k6"})
	w.e.CrashKeeper()
	again()
	open(OpenRequest{SizeBytes: 1 * mib, Tenant: "seven", Key: "k8"})
	hold(6, slow)
	again()
	hold(6, limit.Limits{IOPS: 3})
	grow(6, 9*mib)
}

// settle starts the node without faults, and checks that every lease is held to
// the limits that the journal has, and has the size. Then all is lost.
func settle(w *world) {
	w.f.Strike(0, 0, false)
	w.stop()
	w.mustStart()
	time.Sleep(10 * time.Second)
	inStep(w)
	w.stop()
	w.e.Reboot()
}

// inStep checks that the engine holds what the journal has, and serves it.
func inStep(w *world) {
	if held := w.e.Held(); len(held) > 0 {
		w.t.Errorf("leases that nobody serves: %v", held)
	}
	for id, held := range w.e.Limits() {
		if l, err := w.n.Get(id); err == nil && l.Limits != held {
			w.t.Errorf("lease %s is held to %+v, and the journal has %+v", id, held, l.Limits)
		}
	}
	for id, size := range w.e.Sizes() {
		if l, err := w.n.Get(id); err == nil && l.SizeBytes != size {
			w.t.Errorf("lease %s has %d bytes, and the journal has %d", id, size, l.SizeBytes)
		}
	}
}

// aftermath starts the node without faults and checks that nothing is left of
// what went wrong.
func aftermath(w *world) {
	w.f.Strike(0, 0, false)
	w.stop()
	w.mustStart()
	time.Sleep(time.Minute) // back-off, time to live
	inStep(w)
	for _, l := range w.n.List(false) {
		w.close(l.ID)
	}
	for _, path := range []string{"/a", "/b"} {
		if _, err := w.n.Drive(w.ctx, path); err != nil { // its enrolment never happened
			w.must(w.n.Enroll(w.ctx, EnrollRequest{Path: path}))
		}
	}
	w.expectFree(12)

	req := OpenRequest{SizeBytes: 12 * mib, Tenant: "last", Key: "k7"}
	l, err := w.n.Open(w.ctx, req)
	if err != nil {
		w.t.Fatalf("the whole space cannot be leased: %v", err)
	}
	if again, err := w.n.Open(w.ctx, req); err != nil || again.ID != l.ID {
		w.t.Errorf("the same idempotency key gives lease %s, then %s, %v", l.ID, again.ID, err)
	}
	for _, l := range w.n.List(false) {
		w.close(l.ID)
	}
	w.expectFree(12)
	for _, l := range w.n.List(true) {
		if !l.State.Ended() || l.Result == "" || l.Space != lease.Free || l.CloseSeq == 0 {
			w.t.Errorf("lease %s is %s with result %q, space %s, CLOSE record %d", l.ID, l.State, l.Result, l.Space, l.CloseSeq)
		}
	}
	w.audit("")
	if s, err := w.bolt.Load(); err != nil || len(s.Live) != 0 {
		w.t.Errorf("leases without an end: %+v, %v", s.Live, err)
	}
	if keys := w.e.Keys(); len(keys) != 0 {
		w.t.Errorf("keys that nobody closed: %v", keys)
	}
	if left := w.socks.IDs(); len(left) != 0 {
		w.t.Errorf("sockets that nobody removed: %v", left)
	}
	for _, v := range w.e.Violations() {
		w.t.Error(v)
	}
}

// TestEveryFault strikes every call of journal, engine and sockets in a life:
// lost, done, and done with all later ones lost until a restart. (Lost for good
// from call n on is done for good from call n-1 on.)
func TestEveryFault(t *testing.T) {
	dir := t.TempDir()
	run := func(t *testing.T, name string, strike func(w *world)) (calls []string) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, filepath.Join(dir, name))
			defer w.stop()
			strike(w)
			life(w)
			calls = w.f.Calls()
			settle(w)
			aftermath(w)
		})
		return calls
	}
	calls := run(t, "none", func(*world) {})
	if t.Failed() {
		t.Fatal("without a fault")
	}
	for _, want := range []string{"AddDrive", "FinishDrive", "IntendEpochs", "ConfirmEpochs", "journal OpenLease", "journal CloseLease", "FreeSpace",
		"journal LimitLease", "engine LimitLease", "journal ResizeLease", "engine ResizeLease",
		"Hello", "Inspect", "Enroll", "OpenDrive", "engine OpenLease", "ServeLease", "journal ReleaseLease", "engine ReleaseLease", "engine CloseLease", "Drain", "Leases", "Make", "Remove", "Clean"} {
		if !slices.Contains(calls, want) {
			t.Errorf("the life never calls %s", want)
		}
	}
	t.Logf("%d calls", len(calls))
	for at := 1; at <= len(calls); at++ {
		for _, s := range []struct {
			mode   nodesim.Mode
			sticky bool
		}{{nodesim.Lost, false}, {nodesim.Done, false}, {nodesim.Done, true}} {
			run(t, fmt.Sprintf("%d-%s-%v", at, s.mode, s.sticky), func(w *world) { w.f.Strike(at, s.mode, s.sticky) })
			if t.Failed() {
				t.Fatalf("strike at call %d (%s), %s, sticky %v", at, calls[at-1], s.mode, s.sticky)
			}
		}
	}
}

// TestStruckErrorsAreNoAnswers guards the simulation: an error that carried a
// code would be taken for a refusal.
func TestStruckErrorsAreNoAnswers(t *testing.T) {
	f := &nodesim.Faults{}
	f.Strike(1, nodesim.Lost, false)
	e := nodesim.NewEngine(f)
	_, err := e.Hello(t.Context())
	if !errors.Is(err, nodesim.ErrStruck) || codeOf(err) != "" {
		t.Errorf("got %v", err)
	}
}
