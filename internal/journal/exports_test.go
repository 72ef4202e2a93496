package journal

import (
	"errors"
	"path/filepath"
	"testing"

	"vacate/internal/lease"
)

// TestExports: the exports of a lease survive the process, and exports that make
// no sense are neither stored nor believed.
func TestExports(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	l := fresh(0, piece(uuidA, 0, 1))
	for _, senseless := range []lease.Exports{{NoNBD: true}, {Queues: 1}, {ReadOnly: true}, {VhostUser: true, Queues: 65}} {
		l.Exports = senseless
		if _, err := b.OpenLease(l, Testimony{}); !errors.Is(err, ErrUnchanged) {
			t.Errorf("opening with %+v: %v", senseless, err)
		}
	}
	l.Exports = lease.Exports{VhostUser: true, Queues: 3}
	stored, err := b.OpenLease(l, Testimony{})
	must(t, err)
	b = reopen(t, b)
	if got := load(t, b).Live[0].Exports; got != l.Exports || stored.Exports != l.Exports {
		t.Errorf("stored %+v, loaded %+v, want %+v", stored.Exports, got, l.Exports)
	}
	if got, err := b.CloseLease(erased(fresh(0, piece(uuidA, 0, 1))), true, Testimony{}); err != nil || got.Exports != l.Exports {
		t.Errorf("closed: %+v, %v", got.Exports, err)
	}
	// Somebody else wrote them.
	l = fresh(1, piece(uuidA, 1, 1))
	stored, err = b.OpenLease(l, Testimony{})
	must(t, err)
	must(t, b.update("test", func(t *tables) error {
		stored.Exports = lease.Exports{NoNBD: true}
		t.put(leasesBucket, []byte(l.ID), encode(leaseValue{Version, stored}))
		return nil
	}))
	if _, err := b.Load(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("loading senseless exports: %v", err)
	}
}
