package control

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/volatile"
)

const (
	stateOpen   = vacatev1.LeaseState_LEASE_STATE_OPEN
	stateErased = vacatev1.LeaseState_LEASE_STATE_ERASED
	stateClosed = vacatev1.LeaseState_LEASE_STATE_CLOSED
)

// TestEngineDies: control outlives its engines. Between two it lists leases, opens
// none, and closes with the next.
func TestEngineDies(t *testing.T) {
	w := newWorld(t)
	w.start()
	if st := w.status(); st.GetReady() || st.GetEngine() != nil {
		t.Errorf("ready without an engine: %v", st)
	}
	w.connect()
	w.hear(volatile.KindReady)
	stays, leaves := w.open(), w.open()
	for generation := uint64(2); generation < 5; generation++ {
		w.engine()
		w.sim.CrashEngine()
		eventually(t, "the engine is missed", func() bool { return !w.status().GetReady() })
		_, err := w.client.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 1 << 20})
		if connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("opening without an engine: %v", err)
		}
		w.expect(stays.GetId(), stateOpen)
		w.connect()
		eventually(t, "it is ready again", func() bool { return w.status().GetReady() })
		if g := w.status().GetEngine().GetGeneration(); g != generation {
			t.Errorf("generation %d, want %d", g, generation)
		}
	}
	w.engine()
	closed := make(chan error, 1)
	go func() {
		_, err := w.client.Leases.Close(t.Context(), &vacatev1.LeaseServiceCloseRequest{Id: leaves.GetId()})
		closed <- err
	}()
	select {
	case err := <-closed:
		t.Errorf("closed without an engine: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	w.sim.CrashEngine()
	w.connect()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if l := w.expect(leaves.GetId(), stateClosed); l.GetResult() != "ok" || !l.GetErasure().GetReadBack() {
		t.Errorf("%v", l)
	}
	w.expect(stays.GetId(), stateOpen)
	for _, v := range w.sim.Violations() {
		t.Error(v)
	}
}

// TestStop: a granted stop is said over the link, when everything is closed.
func TestStop(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	w.open()
	if _, err := w.client.Node.Stop(t.Context(), &vacatev1.NodeServiceStopRequest{}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("stopping with a lease open: %v", err)
	}
	if _, err := w.client.Node.Stop(t.Context(), &vacatev1.NodeServiceStopRequest{Erase: true}); err != nil {
		t.Error(err)
	}
	w.hear(volatile.KindStop)
	if err := w.end(); err != nil {
		t.Errorf("ended with %v", err)
	}
	if keys := w.sim.Keys(); len(keys) != 0 {
		t.Errorf("keys %v", keys)
	}
}

// TestKeeperGone: without a keeper there is nothing to do.
func TestKeeperGone(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	if err := w.keeper.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if err := w.end(); err == nil || !strings.Contains(err.Error(), "keeper is gone") {
		t.Errorf("ended with %v", err)
	}
}

// TestUpgradeIsTheKeepers: the call is passed on, and its answer back.
func TestUpgradeIsTheKeepers(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	for errno, want := range map[syscall.Errno]connect.Code{0: 0, syscall.ENOEXEC: connect.CodeInternal, syscall.EBUSY: connect.CodeUnavailable} {
		answered := make(chan error, 1)
		go func() {
			_, err := w.client.Node.Upgrade(t.Context(), &vacatev1.NodeServiceUpgradeRequest{})
			answered <- err
		}()
		w.answer(w.hear(volatile.KindUpgrade), errno)
		if err := <-answered; err != nil && connect.CodeOf(err) != want || err == nil && want != 0 {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// TestJournalOutOfReach is law L6 for a control that starts: a lease can be closed
// although the journal cannot be opened, and its CLOSE is recorded when it can.
func TestJournalOutOfReach(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	leaves, stays := w.open(), w.open()
	if err := w.keeper.Shutdown(); err != nil { // it dies
		t.Fatal(err)
	}
	if err := w.end(); err == nil {
		t.Error("it ended well")
	}
	w.engine()

	w.journalIs(false)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	if st := w.status(); st.GetReady() || !strings.Contains(st.GetReadyWhy(), "not safe") || !strings.Contains(st.GetReadyWhy(), "can only be closed") {
		t.Errorf("%v", st)
	}
	_, err := w.client.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 1 << 20})
	if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "journal") {
		t.Errorf("opening: %v", err)
	}
	res, err := w.client.Leases.Close(t.Context(), &vacatev1.LeaseServiceCloseRequest{Id: leaves.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	if l := res.GetLease(); l.GetState() != stateErased || !l.GetErasure().GetReadBack() || !strings.Contains(l.GetText(), "record could not be written yet") {
		t.Errorf("%v", l)
	}
	if keys := w.sim.Keys(); len(keys) != 1 {
		t.Errorf("keys %v", keys)
	}
	w.expect(stays.GetId(), stateOpen)

	w.journalIs(true)
	if err := w.end(); err == nil || !strings.Contains(err.Error(), errJournalBack.Error()) {
		t.Errorf("ended with %v", err)
	}
	w.engine()
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	if l := w.expect(leaves.GetId(), stateClosed); l.GetResult() != "ok" || !l.GetErasure().GetReadBack() {
		t.Errorf("%v", l)
	}
	w.expect(stays.GetId(), stateOpen)
	if !w.status().GetReady() {
		t.Errorf("%v", w.status())
	}
}

// TestJournalOutOfReachWithoutLeases: there is nothing to close, so control does
// not start, as ever.
func TestJournalOutOfReachWithoutLeases(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	if _, err := w.client.Node.Stop(t.Context(), &vacatev1.NodeServiceStopRequest{}); err != nil {
		t.Fatal(err)
	}
	w.hear(volatile.KindStop)
	if err := w.end(); err != nil {
		t.Fatal(err)
	}
	w.journalIs(false)
	w.start()
	w.connect()
	err := w.end()
	if e, ok := err.(interface{ CommandExit() int }); !ok || e.CommandExit() != 4 || !strings.Contains(err.Error(), "not safe") {
		t.Errorf("ended with %v", err)
	}
}
