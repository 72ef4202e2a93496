package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/nbdclient"
	"vacate/test/slow"
)

// Rounds through the daemon, on a drive that is so slow that writes outlive an
// engine's start, and so small that it has room for one lease:
//
//  1. A lease is written at random, many requests at a time.
//  2. Then the engine is killed; or the engine is killed, and the lease closed at
//     once; or the other way round.
//  3. In the first case the lease is written anew, all of it. In the others the
//     next lease gets the same extents; it must read as zeros, and is written.
//  4. For longer than the slowest write takes, it must read as it was written.
const (
	lateDriveBytes = 16 << 20 // the smallest that there is
	lateLeaseBytes = 14 << 20
	lateLoads      = 3 // connections that write at random
	lateWriters    = 8 // connections that write and read what is verified
	latePiece      = 256 << 10
	lateSlowest    = 150 * time.Millisecond
	lateVerify     = 220 * time.Millisecond
)

type leaseHunt struct {
	*world
	slow    *slow.File
	lease   *vacatev1.Lease
	opened  int
	pending []int // writes that had not landed when the engine was dead
	ways    [3]int
}

// throughDaemon kills the daemon's engine, and returns how often a fence was held
// by what it had in flight.
func (h *lateHunt) throughDaemon() (held int, err error) {
	o := h.options
	o.dir, o.n, o.size = filepath.Join(h.dir, "lease"), h.daemon, lateDriveBytes
	shown := filepath.Join(o.dir, "drives", "drive") // where newWorld wants it
	if err := os.MkdirAll(filepath.Dir(shown), 0o700); err != nil {
		return 0, err
	}
	back := filepath.Join(o.dir, "back")
	if err := errors.Join(os.WriteFile(back, nil, 0o600), os.Truncate(back, o.size)); err != nil {
		return 0, err
	}
	l := &leaseHunt{}
	if l.slow, err = slow.Open(shown, back, lateSlowest, h.seed); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.slow.Close()) }()
	if l.world, err = newWorld(o); err != nil {
		return 0, errors.Join(err, closeWorld(l.world))
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if l.drive != shown {
		return 0, fmt.Errorf("the daemon's drive is %s, and not the slow one, %s", l.drive, shown)
	}
	if err := l.run(); err != nil {
		return 0, err
	}
	return l.summary(), nil
}

func (l *leaseHunt) run() (err error) {
	rng := rand.New(rand.NewPCG(l.seed, 1))
	round := 0
	defer progress(l.n, func() int { return round })()
	if l.lease, err = l.reopen(); err != nil {
		return err
	}
	for round < l.n {
		round++
		if err := l.round(rng, uint64(round)); err != nil {
			return fmt.Errorf("round %d through the daemon: %w", round, err)
		}
	}
	return l.accidents()
}

func (l *leaseHunt) round(rng *rand.Rand, gen uint64) error {
	load, err := l.write(rng.Uint64())
	if err != nil {
		return err
	}
	time.Sleep(time.Duration(5+rng.IntN(45)) * time.Millisecond)
	way := rng.IntN(3)
	l.ways[way]++
	gone := l.lease.GetId()
	closed := make(chan error, 1)
	shut := func() {
		lease, err := l.closeLease(gone)
		if err == nil && lease.GetState() == vacatev1.LeaseState_LEASE_STATE_LOST {
			err = fmt.Errorf("lease %s, which was open, ended as lost: %s %s", gone, lease.GetResult(), lease.GetText())
		}
		closed <- err
	}
	if way == 2 {
		go shut()
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
	}
	if err := l.kill("engine"); err != nil {
		return err
	}
	if way == 1 {
		go shut()
	}
	if err := <-load; err != nil { // its connection has ended: the engine is dead
		return err
	}
	l.pending = append(l.pending, l.slow.Pending())
	if way != 0 {
		if err := <-closed; err != nil {
			return err
		}
		if l.lease, err = l.reopen(); err != nil {
			return err
		}
	}
	return l.verify(gen, way != 0)
}

// write keeps random writes on the lease in flight, on several connections, until
// all of them have ended.
func (l *leaseHunt) write(seed uint64) (<-chan error, error) {
	ended := make(chan error, 1)
	errs := make([]error, lateLoads)
	var wg sync.WaitGroup
	for i := range errs {
		c, err := l.dial(l.lease)
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			r, err := nbdclient.Load{Pattern: nbdclient.RandomWrite, BlockSize: 16 << 10, Depth: 32, Duration: time.Minute, Seed: seed + uint64(i)}.Run(c)
			if err == nil {
				errs[i] = fmt.Errorf("a killed engine goes on serving: %v", r)
			}
			_ = c.Abort() // it is broken
		})
	}
	go func() {
		wg.Wait()
		ended <- errors.Join(errs...)
	}()
	return ended, nil
}

// reopen opens a lease on all of the drive, as soon as that is free.
func (l *leaseHunt) reopen() (*vacatev1.Lease, error) {
	l.opened++
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		lease, err := l.open(lateLeaseBytes, 4096, key(l.seed, l.opened))
		if connect.CodeOf(errors.Unwrap(err)) == connect.CodeResourceExhausted && time.Since(start) < time.Minute {
			continue
		}
		return lease, err
	}
}

// verify writes all of the lease, and reads it for a while. A fresh one must read
// as zeros before.
func (l *leaseHunt) verify(gen uint64, fresh bool) error {
	err := l.each(func(c *nbdclient.Client, off int64) error {
		if fresh {
			if err := expectPiece(c, off, make([]byte, latePiece), "was not written in this lease"); err != nil {
				return err
			}
		}
		return c.WriteFlags(latePattern(gen, off), off, 0)
	})
	for start := time.Now(); err == nil && time.Since(start) < lateVerify; {
		err = l.each(func(c *nbdclient.Client, off int64) error {
			return expectPiece(c, off, latePattern(gen, off), fmt.Sprintf("was written in round %d", gen))
		})
	}
	return err
}

// each calls do for each piece of the lease, on several connections.
func (l *leaseHunt) each(do func(c *nbdclient.Client, off int64) error) error {
	errs := make([]error, lateWriters)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			c, err := l.dial(l.lease)
			for off := int64(i) * latePiece; err == nil && off < lateLeaseBytes; off += lateWriters * latePiece {
				err = do(c, off)
			}
			if c != nil {
				_ = c.Abort() // everything was answered
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func latePattern(gen uint64, off int64) []byte {
	p := make([]byte, latePiece)
	for at := 0; at < len(p); at += 8 {
		binary.LittleEndian.PutUint64(p[at:], gen<<40|uint64(off)+uint64(at))
	}
	return p
}

func expectPiece(c *nbdclient.Client, off int64, want []byte, what string) error {
	got := make([]byte, len(want))
	if err := c.ReadFlags(got, off, 0); err != nil {
		return err
	}
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	at &^= 4095
	return fmt.Errorf(lateMark+"the block at %d %s, and reads %x… instead of %x…", off+int64(at), what, got[at:at+16], want[at:at+16])
}

var fenceRefused = regexp.MustCompile(`fence_waited=(\S+) fence_refused=(\d+)`)

func (l *leaseHunt) summary() (held int) {
	var waits []time.Duration
	for line := range strings.Lines(l.d.Log()) {
		m := fenceRefused.FindStringSubmatch(line)
		if m == nil || !strings.Contains(line, "drive="+l.drive+" ") {
			continue
		}
		if d, err := time.ParseDuration(m[1]); err == nil {
			waits = append(waits, d)
		}
		if m[2] != "0" {
			held++
		}
	}
	fmt.Printf("  through the daemon: %d kills (%d with the lease open, %d before its close, %d after), %d leases on the same extents\n",
		l.n, l.ways[0], l.ways[1], l.ways[2], l.opened)
	fmt.Printf("  writes on their way to the drive when the engine was dead: %s\n", counts(l.pending))
	fmt.Printf("  in %d take-overs the fence was held by them; in the fence: %s\n", held, spread(waits))
	return held
}
