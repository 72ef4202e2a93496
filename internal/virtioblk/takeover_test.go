package virtioblk

import (
	"testing"
	"time"

	"vacate/internal/virtq"
)

// TestStopAfterTakeover: W1. A ring that is stopped before all was done again that a
// predecessor left in flight comes back without any of it: nobody would know of the
// rest, and what was used out of order would be done once more.
func TestStopAfterTakeover(t *testing.T) {
	fly, err := virtq.NewInflight(make([]byte, virtq.InflightSize(1, 64)), 64)
	if err != nil {
		t.Fatal(err)
	}
	dev := newRAM(1 << 20)
	dev.hold = true
	d := newDriver(newGuest(t, 1<<20), 64, true)
	d.flags.Inflight = fly
	dead := d.ring()
	data := []span{{addr: d.g.alloc(4096, 4096), n: 4096}}
	const popped = 5
	for range popped + 1 {
		d.ask(typeIn, 0, data, false, false)
	}
	var chains [popped]virtq.Chain
	for i := range chains {
		if ok, err := dead.Pop(&chains[i]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	dead.Done(&chains[2], 1)
	if _, err := dead.Publish(); err != nil { // and then its engine is killed
		t.Fatal(err)
	}
	w := served(t, d, Config{Export: dev, Depth: 1})
	eventually(t, "none is begun", func() bool { return dev.begun.Load() == 1 })
	stop := &order{what: orderStop}
	if err := w.give(stop); err != nil { // it comes while four are to be done again
		t.Fatal(err)
	}
	for range popped + 1 {
		select {
		case dev.held <- struct{}{}:
		case <-time.After(100 * time.Millisecond):
		}
	}
	<-stop.done
	r := stop.ring
	if r.Resubmit() != 0 || r.Base() != popped {
		t.Errorf("the ring comes back at %d with %d to be done again; want %d and none", r.Base(), r.Resubmit(), popped)
	}
	used := map[uint16]bool{}
	for head, _, ok := d.used1(); ok; head, _, ok = d.used1() {
		if used[head] {
			t.Errorf("descriptor %d is used twice", head)
		}
		used[head] = true
	}
	if len(used) != popped {
		t.Errorf("%d are used, want %d", len(used), popped)
	}
}
