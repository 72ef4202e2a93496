package volume_test

import (
	"testing"

	"vacate/internal/blk"
	"vacate/internal/sim"
	"vacate/internal/volume"
)

// TestBypass: a read may pass the volume by while nothing limits it and the lease is
// open, and is counted.
func TestBypass(t *testing.T) {
	l := newLease(t, sim.New(sim.Config{Size: 1 << 20}), 1)
	q := mustQueue(t, l, 4)
	s := q.(blk.Bypasser)
	passes := func(want bool, when string) {
		t.Helper()
		if got := s.Bypass(); got != want {
			t.Errorf("%s: passes by: %v, want %v", when, got, want)
		}
	}
	passes(true, "open")
	l.SetLimits(volume.Limits{IOPS: 1000})
	passes(false, "limited")
	l.SetLimits(volume.Limits{})
	passes(true, "not limited any more")
	l.Shut()
	passes(false, "shut")
	if st := l.Stats(); st != (volume.Stats{}) {
		t.Errorf("stats: %+v, and nobody has read", st)
	}
	s.Bypassed(4096, true)
	s.Bypassed(8192, false)
	if st := l.Stats(); st.Reads != 1 || st.ReadBytes != 12288 {
		t.Errorf("stats: %+v, want 1 read, and 12288 bytes with the part of another", st)
	}
	closeAll(t, q)
}
