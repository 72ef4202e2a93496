package journal

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vacate/internal/lease"
	"vacate/internal/limit"
)

// TestLimits: a lease's limits can be set until its CLOSE record is written,
// survive the process, and change neither its records nor what it was opened
// with.
func TestLimits(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	l := fresh(0, piece(uuidA, 0, 1))
	l.OpenLimits = limit.Limits{IOPS: 100}
	l.Limits = l.OpenLimits
	want, err := b.OpenLease(l, Testimony{})
	must(t, err)
	records, err := b.Records(0, 100)
	must(t, err)
	for _, next := range []limit.Limits{{Bytes: 1 << 20, BytesBurst: 1 << 30}, {IOPS: 7, IOPSBurst: 1}, {IOPS: 7, IOPSBurst: 1}, {}} {
		want.Limits = next
		got, err := b.LimitLease(l.ID, next)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Fatalf("%+v: %v\n%s", next, err, diff)
		}
		b = reopen(t, b)
		if diff := cmp.Diff([]lease.Lease{want}, load(t, b).Live); diff != "" {
			t.Fatalf("after reopening (-want +got):\n%s", diff)
		}
	}
	if after, err := b.Records(0, 100); err != nil || !cmp.Equal(records, after) {
		t.Errorf("records have changed: %v", err)
	}
	_, err = b.LimitLease(l.ID, limit.Limits{IOPS: 9})
	must(t, err)
	for _, free := range []bool{false, true} {
		// What control believes of the limits is not asked.
		if got, err := b.CloseLease(erased(l), free, Testimony{}); err != nil || got.Limits != (limit.Limits{IOPS: 9}) {
			t.Errorf("closed: %+v, %v", got, err)
		}
		if _, err := b.LimitLease(l.ID, limit.Limits{IOPS: 8}); !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnchanged) {
			t.Errorf("limits of a lease that has ended: %v", err)
		}
	}
}

func TestLimitsRefused(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	if _, err := b.LimitLease(fresh(0).ID, limit.Limits{}); !errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnchanged) {
		t.Errorf("no such lease: %v", err)
	}
	senseless := limit.Limits{IOPSBurst: 1}
	for _, l := range []lease.Lease{{Limits: senseless}, {OpenLimits: senseless}} {
		next := fresh(0, piece(uuidA, 0, 1))
		next.Limits, next.OpenLimits = l.Limits, l.OpenLimits
		if _, err := b.OpenLease(next, Testimony{}); !errors.Is(err, ErrUnchanged) {
			t.Errorf("opening with %+v: %v", l, err)
		}
	}
	l := fresh(0, piece(uuidA, 0, 1))
	_, err := b.OpenLease(l, Testimony{})
	must(t, err)
	if _, err := b.LimitLease(l.ID, senseless); !errors.Is(err, ErrUnchanged) {
		t.Errorf("senseless limits: %v", err)
	}
	if got := load(t, b).Live[0]; got.Limits != (limit.Limits{}) {
		t.Errorf("%+v", got.Limits)
	}
	// Somebody else wrote them.
	must(t, b.update("test", func(t *tables) error {
		l.OpenSeq, l.Limits = 2, senseless
		t.put(leasesBucket, []byte(l.ID), encode(leaseValue{Version, l}))
		return nil
	}))
	if _, err := b.Load(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("loading senseless limits: %v", err)
	}
}
