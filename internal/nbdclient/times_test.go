package nbdclient

import (
	"testing"
	"time"
)

// TestTimes: two halves that are merged count as the whole does.
func TestTimes(t *testing.T) {
	var whole, a, b Times
	for i := range 1000 {
		d := time.Duration(i) * time.Microsecond
		whole.Add(d)
		if i%3 == 0 {
			a.Add(d)
		} else {
			b.Add(d)
		}
	}
	a.Merge(&b)
	if a != whole {
		t.Error("merged times differ from those that were counted at once")
	}
	if p := a.Quantile(0.5); p < 499*time.Microsecond || p > 563*time.Microsecond {
		t.Errorf("the median of 0 to 999 µs is %v", p)
	}
	if b = (Times{}); b.Quantile(0.99) != 0 {
		t.Error("the quantile of nothing is not 0")
	}
}
