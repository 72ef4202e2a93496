package volume_test

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sim"
	"vacate/internal/volume"
)

// flap changes the limits of l all the time, also to ones that let nothing through,
// until stop is closed.
func flap(l *lease, stop <-chan struct{}) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := []volume.Limits{
		{}, {IOPS: 1, IOPSBurst: 1}, {IOPS: 50_000, IOPSBurst: 1}, {Bytes: 50 << 20, BytesBurst: 1},
		{Bytes: 1, BytesBurst: 1}, {IOPS: 1 << 40, Bytes: 1 << 60}, {IOPS: 20_000, IOPSBurst: 100, Bytes: 1 << 30},
	}
	for {
		select {
		case <-stop:
			l.SetLimits(volume.Limits{})
			return
		case <-time.After(time.Duration(rng.Int64N(int64(time.Millisecond)))):
			l.SetLimits(all[rng.IntN(len(all))])
		}
	}
}

// TestLimitsStress: exclusion holds, and no wake-up is lost, while limits change.
func TestLimitsStress(t *testing.T) {
	const workers = 4
	iterations := 2000
	if testing.Short() {
		iterations = 200
	}
	for name, open := range map[string]func() blk.Device{
		"sync": func() blk.Device { return yielding{newRAM(1 << 20)} },
		"sim":  func() blk.Device { return sim.New(sim.Config{Size: 1 << 20, Seed: 1, Fill: 0xA7}) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLease(t, open(), 1)
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() { flap(l, stop); close(stopped) }()
			stress(t, l, workers, sharedBlocks(iterations, workers))
			close(stop)
			<-stopped
		})
	}
}

// TestL1ShutStress: however limits change and requests wait for each other, Shut
// ends all of it, and the gate drains.
func TestL1ShutStress(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	for range rounds {
		l := newLease(t, yielding{newRAM(1 << 20)}, 1)
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() { flap(l, stop); close(stopped) }()
		shared := sharedBlocks(1<<30, 4)
		stress(t, l, 4, func(id int, q blk.Queue, rng *rand.Rand) error {
			if id == 3 { // all queues are there
				time.AfterFunc(5*time.Millisecond, func() {
					close(stop)
					<-stopped
					l.SetLimits(volume.Limits{Bytes: 1, BytesBurst: 1}) // for hours
					time.Sleep(time.Millisecond)
					l.Shut()
				})
			}
			err := shared(id, q, rng)
			if errors.Is(err, syscall.ESHUTDOWN) {
				return nil
			}
			return err
		})
		if !drained(l.Volume) {
			t.Fatal("everything has ended, and the gate has not drained")
		}
		if s := l.Stats(); s.Errors != 4 {
			t.Errorf("%+v, want one error for each queue, which ended it", s)
		}
	}
}
