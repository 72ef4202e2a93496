package engine

import (
	"bytes"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// handOver is the planned end of an engine, and the start of the next.
func (h *host) handOver() {
	h.t.Helper()
	h.leave(h.t.Context())
	h.crash()()
	h.takeOver()
}

// TestL8Leave hands leases over under load: no connection breaks, no byte is
// wrong.
func TestL8Leave(t *testing.T) {
	h := newHost(t)
	_, a := h.drive(h.dir)
	_, b := h.drive(h.dir)
	reqs := []ipc.LeaseOpenRequest{request(1, a, 0), request(2, b, 0), request(3, a, 1)}
	var stops []func() nbdclient.Report
	for i, req := range reqs {
		stops = append(stops, loaded(t, h.open(req), req.Lease, uint64(i)))
	}
	eventually(t, "all clients", func() bool { return h.stats().Connections == 6 })
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		time.Sleep(50 * time.Millisecond)
		h.handOver()
		eventually(t, "all connections to go on", func() bool { return h.stats().Connections == 6 })
	}
	for _, stop := range stops {
		report := stop()
		if t.Log(report.String()); report.Reconnects != 0 || report.Resent != 0 || report.Requests < 100 {
			t.Errorf("L8: over %d planned ends of the engine: %v; the last break: %v", rounds, report.String(), report.LastBreak)
		}
	}
}

// TestL8LeaveTwice: connections that were passed to an engine, and that it had
// not served yet when it left in turn, are passed on.
func TestL8LeaveTwice(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	c, _ := dial(t, h.open(req), nbdclient.Options{Timeout: time.Minute})
	want := bytes.Repeat([]byte{3}, 4096)
	check(t, c.WriteFlags(want, 0, 0))
	h.leave(t.Context())
	h.crash()()
	release := lockedBy(t, path)
	h.takeOver()
	if n := h.stats().Connections; n != 0 {
		t.Errorf("%d connections are served without the fence", n)
	}
	h.handOver()
	release()
	got := make([]byte, 4096)
	check(t, c.ReadFlags(got, 0, 0))
	if !bytes.Equal(got, want) {
		t.Error("L8: the lease reads other bytes")
	}
}

// TestL2LeaveForgets: recipient keys, which no other engine has, are destroyed.
func TestL2LeaveForgets(t *testing.T) {
	h := newHost(t, guardless)
	h.sealed(leaseID(1))
	if b := h.preparedBytes(); bytes.Equal(b, make([]byte, len(b))) {
		t.Fatal("control: no recipient key is found")
	}
	h.leave(t.Context())
	if b := h.preparedBytes(); !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("P2: there is a recipient key after the planned end")
	}
	h.crash()()
	h.takeOver()
}

// TestLeaveHung: a client that stops within a request holds up the planned end no
// longer than leaveWithin. It is cut off, others are not.
func TestLeaveHung(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	hung, fine := request(0, uuid, 0), request(1, uuid, 1)
	_, cut := dial(t, h.open(hung), nbdclient.Options{})
	c, _ := dial(t, h.open(fine), nbdclient.Options{Timeout: time.Minute})
	halfWrite(t, cut, make([]byte, 8192))
	eventually(t, "it to be received, else it is passed as it is", func() bool { return unread(t, cut) == 0 })
	began := time.Now()
	h.leave(t.Context())
	if took := time.Since(began); took < leaveWithin || took > leaveWithin+time.Minute {
		t.Errorf("leaving took %v, want %v", took, leaveWithin)
	}
	if !hungUp(t, cut, time.Minute) {
		t.Error("the client that hangs is still connected")
	}
	h.crash()()
	h.takeOver()
	check(t, c.Flush())
	h.keeper.set(func() {
		for slot, s := range h.keeper.slots {
			if len(s.conns) != 0 {
				t.Errorf("slot %d: the keeper holds connections after it was told to forget them", slot)
			}
		}
	})
}

// TestLeaveClosing: what is being closed when the engine leaves is carried on by
// the next one, and its clients are not passed.
func TestLeaveClosing(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	_, conn := dial(t, h.open(req), nbdclient.Options{})
	answer := h.hang(req.Lease)
	er, err := h.close(req.Lease)
	check(t, err)
	h.leave(t.Context())
	if !hungUp(t, conn, time.Minute) {
		t.Error("a client of a lease that was closed is still connected")
	}
	release := h.crash()
	h.takeOver()
	if rec, err := h.table.Get(req.Slot); err != nil || rec.State != volatile.StateErased {
		t.Errorf("the slot says %+v, %v", rec, err)
	}
	answer()
	release()
	h.drained(req.Lease)
	again, err := h.close(req.Lease)
	if er.Drained = true; err != nil || *again != *er {
		t.Errorf("closed again: %+v, %v; want %+v", again, err, er)
	}
}
