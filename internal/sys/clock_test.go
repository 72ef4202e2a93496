package sys

import (
	"testing"
	"time"
)

func TestMonotonicNs(t *testing.T) {
	const pause = 5 * time.Millisecond
	first := MonotonicNs()
	time.Sleep(pause)
	if passed := time.Duration(MonotonicNs() - first); passed < pause || passed > time.Minute {
		t.Errorf("%v passed in a sleep of %v", passed, pause)
	}
	if n := testing.AllocsPerRun(100, func() { MonotonicNs() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
