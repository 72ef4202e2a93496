package devices

import (
	"errors"
	"path/filepath"
	"testing"

	"vacate/internal/ublkcmd"
	"vacate/internal/ublkctl"
)

// TestOthers: devices of another program, and of another daemon on this host, stay.
func TestOthers(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	foreign, err := b.k.Add(ublkctl.Info{ID: -1, Mark: 1})
	if err != nil {
		t.Fatal(err)
	}
	b.up(leaseA, 7)
	b.anew("/run/other")
	b.up(leaseB, 8)
	if err := b.links.set("ccccccccccccccc2", filepath.Join(b.k.dev, "ublkb99")); err != nil {
		t.Fatal(err)
	}
	if err := b.links.set("ddddddddddddddd2", filepath.Join(b.k.dev, "nbd0")); err != nil {
		t.Fatal(err)
	}
	if l, err := b.list(ctx); err != nil || len(l) != 1 || l[0].Lease != leaseB {
		t.Errorf("list: %v, %v", l, err)
	}
	if err := b.remove(ctx, leaseA, true); !errors.Is(err, errNoDevice) {
		t.Errorf("the other daemon's device: %v", err)
	}
	if err := b.clear(ctx); err != nil {
		t.Fatal(err)
	}
	b.states(map[int]int{foreign.ID: ublkcmd.StateDead, 1: ublkcmd.StateLive})
	b.linked(map[string]string{leaseA: "ublkb1", "ddddddddddddddd2": "nbd0"})
}

// TestLinkOfAnother: a number is another lease's now; the link of before is removed and
// believed by nobody.
func TestLinkOfAnother(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	b.up(leaseA, 7)
	if err := b.links.set(leaseB, b.node(0)); err != nil {
		t.Fatal(err)
	}
	b.anew("/run/vacate")
	if err := b.remove(ctx, leaseB, true); !errors.Is(err, errNoDevice) {
		t.Fatalf("lease %s: %v", leaseB, err)
	}
	b.states(map[int]int{0: ublkcmd.StateLive})
	if l, err := b.list(ctx); err != nil || len(l) != 1 || l[0].Lease != leaseA {
		t.Errorf("list: %v, %v", l, err)
	}
	if err := b.tidy(ctx); err != nil {
		t.Fatal(err)
	}
	b.linked(map[string]string{leaseA: "ublkb0"})
	// A link that somebody has removed is not what a device is found by.
	if err := b.links.remove(leaseA); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.tidy(ctx), b.remove(ctx, leaseA, true)); err != nil {
		t.Fatal(err)
	}
	b.states(map[int]int{})
}

func TestMark(t *testing.T) {
	seen := map[uint64]bool{0: true}
	for _, run := range []string{"/run/vacate", "/run/other", ""} {
		for _, lease := range []string{leaseA, leaseB} {
			m := mark(run, lease)
			if seen[m] || m>>63 == 0 || uint32(m>>32) != runMark(run) {
				t.Errorf("mark of %s and %s: %#x", run, lease, m)
			}
			seen[m] = true
		}
	}
	// Devices live longer than programs: this never changes.
	if got := mark("/run/vacate", leaseA); got != 0x80033f3ad44323de {
		t.Errorf("mark %#x", got)
	}
}
