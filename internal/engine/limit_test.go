package engine

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/limit"
	"vacate/internal/nbdclient"
	"vacate/internal/volume"
)

var slow = limit.Limits{IOPS: 50, IOPSBurst: limit.MaxIOPS, Bytes: 8 << 20, BytesBurst: limit.MaxBytes}

func (h *host) limit(id string, l limit.Limits) error {
	h.t.Helper()
	_, err := do[ipc.Empty](h, ipc.MethodLeaseLimit, ipc.LeaseLimitRequest{Lease: id, Limits: l}, nil)
	return err
}

// limited checks what table, volume (if there is one) and list say.
func (h *host) limited(id string, want limit.Limits) {
	h.t.Helper()
	t := h.tenancy(id)
	t.mu.Lock()
	defer t.mu.Unlock()
	rec, err := h.cfg.Table.Get(t.slot)
	check(h.t, err)
	if got := fromRecord(rec.Limits); got != want {
		h.t.Errorf("the lease table has %+v, want %+v", got, want)
	}
	if t.path != nil && t.path.volume.Limits() != volume.Limits(want) {
		h.t.Errorf("the volume is held to %+v, want %+v", t.path.volume.Limits(), want)
	}
}

func (h *host) listed(want limit.Limits) {
	h.t.Helper()
	if l := h.list().Leases; len(l) != 1 || l[0].Limits != want {
		h.t.Errorf("listed as %+v, want limits %+v", l, want)
	}
}

// TestLimits: a lease is held to the limits that it was opened with, then to
// those that were set last, by this engine and by all that take over; also where
// they are set before the next engine has the drive's fence.
func TestLimits(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	req.Limits = slow
	h.open(req)
	h.limited(req.Lease, slow)
	h.listed(slow)
	for _, next := range []limit.Limits{{}, {IOPS: 7}, {Bytes: limit.MinBytes}, slow} {
		check(t, h.limit(req.Lease, next))
		h.limited(req.Lease, next)
		h.restart()
		eventually(t, "the lease to be served", func() bool { return len(h.stats().Leases) == 1 })
		h.limited(req.Lease, next)
		h.listed(next)
	}

	h.crash()()
	release := lockedBy(t, path)
	h.takeOver()
	h.limited(req.Lease, slow)
	check(t, h.limit(req.Lease, limit.Limits{IOPS: 9}))
	h.limited(req.Lease, limit.Limits{IOPS: 9})
	release()
	in := h.tenancy(req.Lease)
	eventually(t, "the lease to be served", func() bool {
		in.mu.Lock()
		defer in.mu.Unlock()
		return in.path != nil
	})
	h.limited(req.Lease, limit.Limits{IOPS: 9})
}

func TestLimitsRefused(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	senseless := limit.Limits{BytesBurst: 1 << 20}
	bad := req
	bad.Limits = senseless
	f, _ := h.listen()
	_, err := do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, bad, f)
	wantCode(t, err, ipc.CodeInvalid)
	wantCode(t, h.limit(req.Lease, slow), ipc.CodeNotFound)
	req.Limits = slow
	h.open(req)
	wantCode(t, h.limit(req.Lease, senseless), ipc.CodeInvalid)
	h.limited(req.Lease, slow)

	// A lease table that cannot be written: nothing has changed.
	in := h.tenancy(req.Lease)
	slot := in.slot
	in.slot = -1
	err = h.limit(req.Lease, limit.Limits{})
	in.slot = slot
	if err == nil {
		t.Error("limited a lease without its slot")
	}
	h.limited(req.Lease, slow)

	_, err = h.close(req.Lease)
	check(t, err)
	wantCode(t, h.limit(req.Lease, limit.Limits{}), ipc.CodeNotFound)
	h.drained(req.Lease)
	wantCode(t, h.limit(req.Lease, limit.Limits{}), ipc.CodeNotFound)
}

// TestLimitWhileClosing: a lease whose key could not be destroyed yet is closing,
// and stays so.
func TestLimitWhileClosing(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	h.open(req)
	h.keeper.set(func() { h.keeper.wipeErr = errors.New("not now") })
	if _, err := h.close(req.Lease); err == nil {
		t.Fatal("closed without its keeper")
	}
	wantCode(t, h.limit(req.Lease, slow), ipc.CodeNotFound)
	if rec, err := h.cfg.Table.Get(req.Slot); err != nil || fromRecord(rec.Limits) != (limit.Limits{}) {
		t.Errorf("%+v, %v", rec, err)
	}
}

// TestLeaveLimited: requests that wait for their share are carried out before the
// connection is handed over, however long that would be.
func TestLeaveLimited(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	stop := loaded(t, h.open(req), req.Lease, 1)
	eventually(t, "both clients", func() bool { return h.stats().Connections == 2 })
	check(t, h.limit(req.Lease, limit.Limits{IOPS: 1, IOPSBurst: 1})) // 16 requests: 16 s, and leaveWithin is 2 s
	time.Sleep(50 * time.Millisecond)
	h.handOver()
	check(t, h.limit(req.Lease, limit.Limits{}))
	time.Sleep(50 * time.Millisecond)
	if report := stop(); report.Reconnects != 0 || report.Resent != 0 {
		t.Errorf("%v; the last break: %v", report.String(), report.LastBreak)
	}
}

// TestGoneWhileLimited: what a client left behind that waits for its share is never
// carried out: the client may have connected again, and written anew.
func TestGoneWhileLimited(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	socket := h.open(req)
	fresh, _ := dial(t, socket, nbdclient.Options{})
	gone, _ := dial(t, socket, nbdclient.Options{})
	check(t, h.limit(req.Lease, limit.Limits{Bytes: limit.MinBytes, BytesBurst: limit.MinBytes}))
	next, last := bytes.Repeat([]byte("new "), 32<<10), bytes.Repeat([]byte("old "), 32<<10)
	check(t, fresh.WriteFlags(next, 4096, 0)) // nothing else for 32 s
	answered := make(chan error, 1)
	go func() { answered <- gone.WriteFlags(last, 4096, 0) }()
	time.Sleep(50 * time.Millisecond) // it has reached the volume, and waits there
	gone.Abort()
	if err := <-answered; err == nil {
		t.Fatal("a write over the limit was answered")
	}
	eventually(t, "its connection to end", func() bool { return h.stats().Connections == 1 })
	check(t, h.limit(req.Lease, limit.Limits{}))
	got := make([]byte, len(next))
	check(t, fresh.ReadFlags(got, 4096, 0))
	if !bytes.Equal(got, next) {
		t.Errorf("the volume holds %q…", got[:8])
	}
}
