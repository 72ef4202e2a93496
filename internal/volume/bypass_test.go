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
		if got := s.Bypass(4096); got != want {
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
	if st := l.Stats(); st.Reads != 2 || st.ReadBytes != 8192 {
		t.Errorf("stats: %+v, want 2 reads of 8192 bytes in all", st)
	}
	closeAll(t, q)
}
