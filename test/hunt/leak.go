package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/nbdclient"
)

// The leak hunt lives many leases on a drive that is much smaller than all of
// them together, so that each extent is leased over and over, while engine and
// control are killed. A lease reads all of its blocks before it writes, and
// compares all that it reads with what it wrote. Every so many lives the hunt
// holds still and searches memory, registers, core dumps, descriptors, drive and
// state folder (leaksearch.go).

type leakHunt struct {
	*world
	workers, every int
	chaos          time.Duration

	still      sync.RWMutex // a request is made under it; the search takes it whole
	magic      [16]byte     // how every canary of this run begins
	lives      atomic.Int64
	openLeases atomic.Int64 // at most
	kills      atomic.Int64
	read       atomic.Int64 // blocks compared
	keys       keyring

	mu    sync.Mutex
	found error // the first
	stop  chan struct{}
}

func leak(args []string) (err error) {
	// State in memory: the hunt is for lives, and each life is two transactions.
	o := options{n: 100_000, size: 256 << 20, state: "/dev/shm"}
	h := &leakHunt{stop: make(chan struct{})}
	if err := parse("leak", args, &o, func(f *flag.FlagSet) {
		f.IntVar(&h.workers, "workers", 8, "leases that live at once")
		f.IntVar(&h.every, "every", 5000, "search memory and media after so many lives")
		f.StringVar(&o.state, "state", o.state, "where the daemon's folder is made")
		f.DurationVar(&h.chaos, "chaos", 2*time.Second, "mean time between kills of engine or control; 0 for none")
	}); err != nil {
		return err
	}
	if h.world, err = newWorld(o); err != nil {
		return errors.Join(err, closeWorld(h.world))
	}
	defer func() { err = errors.Join(err, h.close()) }()
	rng := rand.New(rand.NewPCG(o.seed, 0))
	binary.LittleEndian.PutUint64(h.magic[:], rng.Uint64())
	binary.LittleEndian.PutUint64(h.magic[8:], rng.Uint64())
	found := h.run()
	fmt.Printf("  %d lives, %d kills, %d blocks compared, drive of %d MiB, %d keys and %d MiB searched for and through\n",
		h.lives.Load(), h.kills.Load(), h.read.Load(), o.size>>20, h.keys.total, h.keys.searched>>20)
	return verdict(o.planted, found)
}

func closeWorld(w *world) error {
	if w == nil {
		return nil
	}
	return w.close()
}

// run lives all lives, and returns what was found.
func (h *leakHunt) run() error {
	defer progress(h.n, func() int { return int(h.lives.Load()) })()
	var wg, chaos sync.WaitGroup
	quit := make(chan struct{})
	if h.chaos > 0 {
		chaos.Go(func() { h.storm(quit) })
	}
	var next atomic.Int64
	for w := range h.workers {
		rng := rand.New(rand.NewPCG(h.seed, uint64(w)+1))
		wg.Go(func() {
			for n := next.Add(1); n <= int64(h.n) && !h.over(); n = next.Add(1) {
				if err := h.life(rng, int(n)); err != nil {
					h.report(fmt.Errorf("life %d: %w", n, err))
				}
				if done := h.lives.Add(1); done%int64(h.every) == 0 || done == int64(h.n) {
					h.report(h.search())
				}
			}
		})
	}
	wg.Wait()
	close(quit)
	chaos.Wait()
	return h.found
}

// report keeps the first error, and ends the hunt.
func (h *leakHunt) report(err error) {
	if err == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.found == nil {
		h.found = err
		close(h.stop)
	}
}

func (h *leakHunt) over() bool {
	select {
	case <-h.stop:
		return true
	case <-h.ctx.Done():
		h.report(h.ctx.Err())
		return true
	default:
		return false
	}
}

// storm kills the engine, and at times control, at random moments and points.
func (h *leakHunt) storm(quit chan struct{}) {
	rng := rand.New(rand.NewPCG(h.seed, 1<<32))
	for {
		select {
		case <-quit:
			return
		case <-time.After(time.Duration(rng.ExpFloat64() * float64(h.chaos))):
		}
		h.still.RLock() // not while the hunt searches
		switch n := rng.IntN(10); {
		case n < 5:
			h.arm(h.points[rng.IntN(len(h.points))])
		case n < 9:
			h.report(h.kill("engine"))
		default:
			h.report(h.kill("control"))
		}
		h.kills.Add(1)
		h.still.RUnlock()
	}
}

// A tenant is one life's lease, and what it expects to read.
type tenant struct {
	h      *leakHunt
	rng    *rand.Rand
	lease  *vacatev1.Lease
	conn   *nbdclient.Client
	mark   uint64 // in its canaries
	want   []byte
	writes uint64
}

// maxVolume is the size of the largest volume, in bytes: a life compares all of it.
const maxVolume = 256 << 10

// life opens a lease, uses it, and ends it in one of several ways.
func (h *leakHunt) life(rng *rand.Rand, n int) error {
	t := &tenant{h: h, rng: rng, mark: rng.Uint64() | 1}
	t.want = make([]byte, 4096*(1+rng.IntN(maxVolume/4096)))
	logical := []uint32{512, 4096}[rng.IntN(2)]
	h.openLeases.Add(1)
	var err error
	if t.lease, err = h.open(int64(len(t.want)), logical, key(h.seed, n)); err != nil {
		return err
	}
	if err := t.use(int(logical)); err != nil {
		return fmt.Errorf("lease %s: %w", t.lease.GetId(), err)
	}
	if rng.IntN(50) == 0 {
		h.keys.sample(h.d.PID(), h.report)
	}
	return t.leave()
}

// use reads everything, then writes, discards and reads at random.
func (t *tenant) use(logical int) (err error) {
	defer func() {
		if t.conn != nil && err != nil {
			t.conn.Abort() //nolint:errcheck // the finding matters
		}
	}()
	if err := t.compare(0, len(t.want)); err != nil {
		return fmt.Errorf("before it wrote anything: %w", err)
	}
	last := 0
	for range 1 + t.rng.IntN(6) {
		at := t.rng.IntN(len(t.want)/logical) * logical
		n := min(logical*(1+t.rng.IntN(64)), len(t.want)-at)
		switch t.rng.IntN(8) {
		case 0:
			err = t.change(at, make([]byte, n), func() error { return t.conn.Trim(int64(at), int64(n), 0) })
		case 1:
			err = t.change(at, make([]byte, n), func() error { return t.conn.Zero(int64(at), int64(n), 0) })
		case 2:
			err = t.compare(at, n)
		case 3: // what it wrote last, from the second logical block on
			if at = last + logical; at < len(t.want) {
				err = t.compare(at, min(n, len(t.want)-at))
			}
		default:
			b := t.canary(n)
			last = at
			err = t.change(at, b, func() error { _, err := t.conn.WriteAt(b, int64(at)); return err })
		}
		if err != nil {
			return err
		}
	}
	return t.compare(0, len(t.want))
}

// canary makes n bytes that no other write of this run has.
func (t *tenant) canary(n int) []byte {
	t.writes++
	b := make([]byte, 0, n+32)
	for len(b) < n {
		b = append(b, t.h.magic[:]...)
		b = binary.LittleEndian.AppendUint64(b, t.mark)
		b = binary.LittleEndian.AppendUint64(b, t.writes)
	}
	return b[:n]
}

// request carries out one request, on a new connection when the last one broke:
// then it reports that the request may have been done, or not.
func (t *tenant) request(do func() error) (broke bool, err error) {
	t.h.still.RLock()
	defer t.h.still.RUnlock()
	if t.conn == nil {
		if t.conn, err = t.h.dial(t.lease); err != nil {
			return false, fmt.Errorf("connecting: %w", err)
		}
	}
	err = do()
	var answer *nbdclient.Error
	switch {
	case err == nil:
		return false, nil
	case errors.As(err, &answer):
		return false, fmt.Errorf("the server answered: %w", err)
	}
	t.conn.Abort() //nolint:errcheck // it is broken
	t.conn = nil
	return true, nil
}

// change makes a range read as b. Of a change that broke off, each block of 4096
// bytes must read as before or after; then it is made again.
func (t *tenant) change(at int, b []byte, do func() error) error {
	for {
		broke, err := t.request(do)
		if err != nil {
			return err
		}
		if !broke {
			copy(t.want[at:], b)
			return nil
		}
		got, err := t.fetch(at, len(b))
		if err != nil {
			return err
		}
		const sector = 512
		for i := 0; i < len(b); i += sector {
			g, was, is := got[i:i+sector], t.want[at+i:at+i+sector], b[i:i+sector]
			if !bytes.Equal(g, was) && !bytes.Equal(g, is) {
				return fmt.Errorf("after a write that a crash cut off, byte %d is neither as before nor as written: %s", at+i, t.describe(g))
			}
		}
	}
}

func (t *tenant) fetch(at, n int) (got []byte, err error) {
	got = make([]byte, n)
	for {
		broke, err := t.request(func() error { _, err := t.conn.ReadAt(got, int64(at)); return err })
		if err != nil || !broke {
			return got, err
		}
	}
}

// compare reads a range and holds it against what was written.
func (t *tenant) compare(at, n int) error {
	got, err := t.fetch(at, n)
	if err != nil {
		return err
	}
	t.h.read.Add(int64(n+4095) / 4096)
	if bytes.Equal(got, t.want[at:at+n]) {
		return nil
	}
	i, sector := differ(got, t.want[at:at+n])
	return fmt.Errorf("byte %d of %d is wrong: %s", at+i, len(t.want), t.describe(sector))
}

// differ returns the first sector of got that is not as wanted, and where.
func differ(got, want []byte) (at int, sector []byte) {
	for at+512 < len(got) && bytes.Equal(got[at:at+512], want[at:at+512]) {
		at += 512
	}
	return at, got[at:min(at+512, len(got))]
}

// olderMark is how a block reads that was trimmed, or never written, and shows what its
// drive has there.
const olderMark = "reads as an older write of the same lease"

// describe says what was read in place of what was wanted.
func (t *tenant) describe(got []byte) string {
	mark := make([]byte, 8)
	binary.LittleEndian.PutUint64(mark, t.mark)
	switch {
	case bytes.Equal(got, make([]byte, len(got))):
		return "it reads as zeros"
	case bytes.Contains(got, append(bytes.Clone(t.h.magic[:]), mark...)):
		return "it " + olderMark
	case bytes.Contains(got, t.h.magic[:]):
		return fmt.Sprintf("IT READS AS ANOTHER LEASE'S CANARY: % x…", got[:48])
	default:
		return fmt.Sprintf("it reads as noise: % x…", got[:32])
	}
}

// lateAnswers is how long a close may take to cut connections off.
const lateAnswers = 10 * time.Second

// late writes b and reads it until the close cuts it off. What is answered with
// success must be right.
func (t *tenant) late(b []byte) error {
	got := make([]byte, len(b))
	for t.conn != nil {
		if _, err := t.conn.WriteAt(b, 0); err != nil {
			return nil //nolint:nilerr // the close, or a kill, has cut it off
		}
		if _, err := t.conn.ReadAt(got, 0); err != nil {
			return nil //nolint:nilerr // likewise
		}
		if !bytes.Equal(got, b) {
			i, sector := differ(got, b)
			return fmt.Errorf("byte %d of a read that was let in after its gate was shut, or while it was: %s", i, t.describe(sector))
		}
	}
	return nil
}

// leave ends the lease: in peace, with its connection open, or with a request in
// flight; and sees that no connection serves it afterwards.
func (t *tenant) leave() error {
	late := make(chan error, 1)
	t.h.still.RLock() // the search waits until the late requests have ended, too
	defer t.h.still.RUnlock()
	switch t.rng.IntN(3) {
	case 0:
		if t.conn != nil {
			t.conn.Close() //nolint:errcheck // its requests have ended
		}
		late <- nil
	case 1:
		late <- nil
	default:
		go func() { late <- t.late(t.canary(min(64<<10, len(t.want)))) }()
	}
	l, err := t.h.closeLease(t.lease.GetId())
	if err != nil && t.conn != nil {
		t.conn.Abort() //nolint:errcheck // nothing else ends the late requests
	}
	select {
	case lerr := <-late:
		err = errors.Join(err, lerr)
	case <-time.After(lateAnswers):
		t.conn.Abort() //nolint:errcheck // the finding matters
		err = errors.Join(err, fmt.Errorf("lease %s still answers %v after its close", t.lease.GetId(), lateAnswers), <-late)
	}
	if t.conn != nil {
		if _, rerr := t.conn.ReadAt(make([]byte, 512), 0); rerr == nil {
			err = errors.Join(err, fmt.Errorf("lease %s still answers after its close", t.lease.GetId()))
		}
		t.conn.Abort() //nolint:errcheck // it has ended
	}
	if err == nil {
		t.h.openLeases.Add(-1)
	}
	switch l.GetState() {
	case vacatev1.LeaseState_LEASE_STATE_CLOSED, vacatev1.LeaseState_LEASE_STATE_ERASED:
	default:
		err = errors.Join(err, fmt.Errorf("lease %s ended as %v (%s)", t.lease.GetId(), l.GetState(), l.GetResult()))
	}
	return err
}
