package ublk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sim"
	"vacate/internal/ublkcmd"
)

// TestOrders: whatever is ordered in whatever order, of a drive that hangs at times,
// under load, every request is answered once (U1), and fails only once the lease is
// closed. In the end nothing of the volume is held.
func TestOrders(t *testing.T) {
	rounds := 30
	if testing.Short() {
		rounds = 8
	}
	for range rounds {
		orders(t, rand.Uint64())
	}
}

func orders(t *testing.T, seed uint64) {
	t.Helper()
	const queues, length = 2, 8192
	rng := rand.New(rand.NewPCG(seed, 1))
	d, s, disk := begin(t, queues)
	v := on(disk)
	c := count(v, 1<<30)
	var closing atomic.Bool
	var load sync.WaitGroup
	for q := range queues {
		for tag := range depth {
			load.Go(func() {
				off, n := (q*depth+tag)*length, byte(tag)
				for {
					want := bytes.Repeat([]byte{n}, length)
					for _, op := range []uint32{ublkcmd.OpWrite, ublkcmd.OpRead} {
						data := want
						if op == ublkcmd.OpRead {
							data = make([]byte, length)
						}
						got := answer(t, d.ask(q, tag, desc(op, off, length), data))
						if got == -int32(syscall.EIO) && closing.Load() {
							return
						}
						if got != length || op == ublkcmd.OpRead && !bytes.Equal(d.data(q, tag, length), want) {
							t.Errorf("seed %d: operation %d is answered %d, or reads other bytes", seed, op, got)
							return
						}
					}
					n += depth
				}
			})
		}
	}
	hangs := false
	for range 5 + rng.IntN(30) {
		switch rng.IntN(4) {
		case 0, 1:
			if err := s.Resume(c); err != nil && !errors.Is(err, ErrServed) {
				t.Errorf("seed %d: resuming: %v", seed, err)
			}
		case 2:
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+rng.IntN(4))*time.Millisecond)
			if err := s.Pause(ctx); err == nil && c.open.Load() != 0 {
				t.Errorf("seed %d: a device that is paused has %d queues of the volume", seed, c.open.Load())
			}
			cancel()
		case 3:
			if hangs = !hangs; hangs {
				disk.From(disk.Ops()+int64(1+rng.IntN(20)), sim.Fault{Kind: sim.Hang})
			} else {
				disk.Heal()
				disk.Release()
			}
		}
		time.Sleep(time.Duration(rng.IntN(2)) * time.Millisecond)
	}
	closing.Store(true)
	v.Shut()
	s.Hurry()
	s.Close()
	load.Wait() // though the drive hangs
	d.stop()
	disk.Heal()
	disk.Release()
	s.Wait()
	<-v.Drained()
	gone(t, s)
	if n := c.open.Load(); n != 0 {
		t.Errorf("seed %d: at the end there are %d queues of the volume", seed, n)
	}
}
