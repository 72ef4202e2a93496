//go:build vm

package vm

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// TestAttachMany has many devices at once, and many after one another. Nothing of them
// is left over.
func TestAttachMany(t *testing.T) {
	eachDriver(t, time.Duration(either(5, 60))*time.Minute, (*host).comeAndGo)
}

func (h *host) comeAndGo(kind string) {
	h.t.Helper()
	const size = 1 << 20
	atOnce, afterOneAnother := either(16, 64), either(20, 1000)
	var leases []attached
	nodes := map[string]bool{}
	for n := range atOnce {
		l := h.open(size)
		d := h.device(l, size)
		leases, nodes[d.Path] = append(leases, l), true
		h.do("fill", wire.Fill{Device: l.Device, Seed: uint64(n), Size: 64 << 10}, nil)
	}
	if len(nodes) != atOnce {
		h.t.Errorf("%d leases have %d devices", atOnce, len(nodes))
	}
	h.counted(kind, leases)
	h.kill("engine") // all are served by the next
	for n, l := range leases {
		h.do("check-fill", wire.Fill{Device: l.Device, Seed: uint64(n), Size: 64 << 10}, nil)
	}
	for n, l := range leases {
		if n%2 == 0 {
			h.vacate("lease", "detach", l.ID)
		}
		h.vacate("lease", "close", l.ID)
	}
	h.nothingLeft()

	for n := range afterOneAnother {
		l := h.open(size)
		d := h.device(l, size)
		if kind == "ublk" && nodes[d.Path] {
			h.t.Errorf("%s was another lease's before", d.Path)
		}
		nodes[d.Path] = true
		f := wire.Fill{Device: l.Device, Seed: uint64(n), Size: 64 << 10, Start: size - 64<<10}
		h.do("fill", f, nil)
		h.do("check-fill", f, nil)
		if n%2 == 0 {
			h.vacate("lease", "detach", l.ID)
		}
		h.vacate("lease", "close", l.ID)
		if n%50 == 0 {
			h.clean() // the kernel's log is short
		}
	}
	h.clean()
	h.nothingLeft()
}

// counted demands that of each lease a link, a socket and a device are counted: else
// nothing that is left over would be.
func (h *host) counted(kind string, leases []attached) {
	h.t.Helper()
	l := h.left()
	for _, lease := range leases {
		has := func(all []string) bool {
			return slices.ContainsFunc(all, func(s string) bool { return strings.Contains(s, lease.ID) })
		}
		if !has(l.Links) || !has(l.Sockets) {
			h.t.Errorf("of lease %s, which is attached, neither link nor sockets are counted: %q", lease.ID, l.Things())
		}
	}
	// Each of ublk is counted in /dev and in sysfs; the nodes of nbd stay.
	disks, characters := 2*len(leases), 2*len(leases)
	if kind == "nbd" {
		disks, characters = len(leases), 0
	}
	if len(l.Characters) != characters || len(l.Disks) != disks {
		h.t.Errorf("of %d devices these are counted: %q", len(leases), l.Things())
	}
	for _, command := range []string{"serve", "control", "engine", "devices"} {
		if now, before := l.Descriptors[command], h.before.Descriptors[command]; len(now) == 0 || len(before) == 0 {
			h.t.Errorf("descriptors of %s are not counted: %q, and %q before", command, now, before)
		}
	}
	if now, before := l.Descriptors["engine"], h.before.Descriptors["engine"]; len(now) < len(before)+len(leases) {
		h.t.Errorf("an engine with %d devices has the descriptors %q, and %q without", len(leases), now, before)
	}
}
