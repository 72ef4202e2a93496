package volume_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"vacate/internal/sim"
)

// seeds returns the seeds of a property test: those that are always run, and a
// new one. VACATE_SEED replays one.
func seeds(t *testing.T, always int) []uint64 {
	if s := os.Getenv("VACATE_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("VACATE_SEED: %v", err)
		}
		return []uint64{seed}
	}
	if testing.Short() {
		always = (always + 4) / 5
	}
	all := []uint64{uint64(time.Now().UnixNano())}
	for s := range uint64(always) {
		all = append(all, s+1)
	}
	return all
}

func runName(seed uint64, what string) string {
	return fmt.Sprintf("VACATE_SEED=%d%s", seed, what)
}

// TestL4Zeros: requests of every kind and alignment from three connections at
// once, over leases that follow each other on the same space, each ended while
// requests are in flight. Every byte that is read was written by this lease, or
// is zero.
func TestL4Zeros(t *testing.T) {
	for _, seed := range seeds(t, 60) {
		w := newWorld(t, runName(seed, ""), seed)
		for range 4 {
			w.verify() // a new lease reads as zeros
			for range 150 {
				w.step()
			}
			w.verify()
			for range 10 {
				w.step()
			}
			w.moveOut()
			w.moveIn()
		}
		w.verify()
		w.moveOut()
	}
}

// script is the run that faults and crashes strike. It stops when a crash is
// due.
func (w *world) script() (crashed bool) {
	for range 60 {
		if w.crashAt > 0 && w.drive.Ops() >= w.crashAt {
			return true
		}
		w.step()
	}
	return false
}

// TestL4Faults strikes each operation of a run with each fault: the request
// that it belongs to fails, is done or not, and nothing else is different.
func TestL4Faults(t *testing.T) {
	for _, seed := range seeds(t, 2) {
		clean := newWorld(t, runName(seed, ""), seed)
		clean.script()
		clean.verify()
		for n := int64(1); n <= clean.drive.Ops(); n++ {
			for _, kind := range []sim.Kind{sim.Lost, sim.Done, sim.Short} {
				w := newWorld(t, runName(seed, fmt.Sprintf(", fault %d at operation %d", kind, n)), seed)
				w.faulty = true
				w.drive.At(n, sim.Fault{Kind: kind})
				w.script()
				w.drain()
				w.drive.Heal()
				w.faulty = false
				w.verify()
				w.moveOut()
				w.moveIn()
				w.verify()
				w.moveOut()
			}
		}
	}
}

// TestL4Crashes ends a run at each operation. Once the engine alone dies, and
// its successor goes on with the same key and the same map (both are the
// keeper's): what was acknowledged is there, and what was in flight is done or
// not. Once power is lost, and with it the lease: the next one reads zeros.
func TestL4Crashes(t *testing.T) {
	for _, seed := range seeds(t, 3) {
		for n := int64(1); ; n++ {
			w := newWorld(t, runName(seed, fmt.Sprintf(", engine killed at operation %d", n)), seed)
			w.crashAt = n
			crashed := w.script()
			w.kill()
			w.lease.stack(w.drive)
			w.connect()
			w.verify()
			w.crashAt = 0
			w.script()
			w.verify()
			w.moveOut()

			w = newWorld(t, runName(seed, fmt.Sprintf(", power lost at operation %d", n)), seed)
			w.crashAt = n
			w.script()
			w.abandon()
			w.drive.Crash()
			w.moveIn()
			w.verify()
			w.script()
			w.verify()
			w.moveOut()
			if !crashed {
				break
			}
		}
	}
}
