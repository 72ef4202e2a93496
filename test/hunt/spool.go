package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/fail"
	"vacate/proof"
)

// The spool hunt ends control, which signs records and brings them into its log, at
// random moments and at the points between two of its steps, while leases come and
// go. Then the log must have every record of the node, each once and in order: the
// OPEN and the CLOSE of every lease of which a client was told. And each of these
// must get its certificate.

// lostMark is in what the hunt says of a record that the log does not have.
const lostMark = "is not in the log"

// settleTime is how long the daemon may take, once it is left alone, to bring what waits
// into its log, and again to publish it.
const settleTime = 30 * time.Second

type spoolHunt struct {
	*world
	workers int

	mu     sync.Mutex
	opened map[string]bool // that a client was told of: whether it was told of the end, too
	found  error
	kills  atomic.Int64
}

func spool(args []string) (err error) {
	o := options{n: 100, size: 256 << 20}
	h := &spoolHunt{opened: map[string]bool{}}
	if err := parse("spool", args, &o, func(f *flag.FlagSet) {
		f.IntVar(&h.workers, "workers", 3, "clients that open and close leases")
	}); err != nil {
		return err
	}
	if h.world, err = newWorld(o); err != nil {
		return errors.Join(err, closeWorld(h.world))
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return verdict(o.planted, h.run())
}

func (h *spoolHunt) report(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.found = errors.Join(h.found, err)
}

func (h *spoolHunt) run() error {
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	var wg sync.WaitGroup
	for worker := range h.workers {
		wg.Go(func() { h.report(h.live(ctx, worker)) })
	}
	done := progress(h.n, func() int { return int(h.kills.Load()) })
	rng := rand.New(rand.NewPCG(h.seed, 1))
	points := []fail.Point{fail.ControlSigned, fail.ControlLogged, fail.ControlCertified}
	for n := range h.n {
		if err := h.ready(); err != nil {
			h.report(err)
			break
		}
		if n%4 == 3 { // leases come and go: control comes there by itself
			h.arm(points[n/4%len(points)])
			for start := time.Now(); h.armed() && time.Since(start) < 2*time.Second && ctx.Err() == nil; {
				time.Sleep(time.Millisecond)
			}
			h.disarm()
		} else {
			time.Sleep(time.Duration(rng.IntN(120_000)) * time.Microsecond)
			h.report(h.kill("control"))
		}
		h.kills.Add(1)
	}
	done()
	stop()
	wg.Wait()
	if h.found != nil || h.ctx.Err() != nil {
		return errors.Join(h.found, h.ctx.Err())
	}
	return errors.Join(h.settle(), h.accidents())
}

// live opens leases and closes them.
func (h *spoolHunt) live(ctx context.Context, worker int) error {
	for n := 0; ctx.Err() == nil; n++ {
		l, err := h.open(4<<20, 512, key(h.seed, worker*1_000_000+n))
		if err != nil {
			return ignoreEnd(ctx, err)
		}
		h.mu.Lock()
		h.opened[l.GetId()] = false
		h.mu.Unlock()
		if l, err = h.closeLease(l.GetId()); err != nil {
			return ignoreEnd(ctx, err)
		}
		h.mu.Lock()
		h.opened[l.GetId()] = true
		h.mu.Unlock()
	}
	return nil
}

// settle waits until nothing waits for the log any more, and reads the log.
func (h *spoolHunt) settle() error {
	var st *vacatev1.LogServiceStatusResponse
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		err := h.retry("asking for the log", func(ctx context.Context) (err error) {
			st, err = h.api.Log.Status(ctx, &vacatev1.LogServiceStatusRequest{})
			return err
		})
		if err != nil {
			return err
		}
		if st.GetSpool() == 0 {
			break
		}
		if time.Since(start) > settleTime {
			return fmt.Errorf("a record %s: %d wait for it, and the daemon says: %s", lostMark, st.GetSpool(), st.GetLastError())
		}
	}
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) { // for a checkpoint that has all of it
		records, err := h.records()
		if err != nil {
			return err
		}
		if err = h.account(records); err == nil {
			return h.certified()
		}
		if time.Since(start) > settleTime {
			return err
		}
	}
}

// certified waits for the certificate of every lease that has ended.
func (h *spoolHunt) certified() error {
	for id, ended := range h.opened {
		if !ended {
			continue
		}
		err := h.retry("waiting for the certificate of lease "+id, func(ctx context.Context) error {
			_, err := h.api.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: id, Wait: true})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// records reads all that the log has published.
func (h *spoolHunt) records() (payloads [][]byte, err error) {
	for {
		var res *vacatev1.LogServiceRecordsResponse
		err := h.retry("reading the log", func(ctx context.Context) (err error) {
			res, err = h.api.Log.Records(ctx, &vacatev1.LogServiceRecordsRequest{From: uint64(len(payloads))})
			return err
		})
		if err != nil || len(res.GetLeaves()) == 0 {
			return payloads, err
		}
		for _, l := range res.GetLeaves() {
			e, err := proof.ParseEnvelope(l.GetEnvelope())
			if err != nil {
				return nil, fmt.Errorf("leaf %d of the log: %w", l.GetIndex(), err)
			}
			payloads = append(payloads, e.Payload)
		}
	}
}

// account demands that the log has each record once, and both of each lease.
func (h *spoolHunt) account(payloads [][]byte) error {
	have := map[string]map[proof.Type]int{}
	previous := proof.ZeroHash
	for i, b := range payloads {
		r, err := proof.ParsePayload(b)
		if err != nil {
			return fmt.Errorf("leaf %d of the log: %w", i, err)
		}
		switch {
		case r.NodeSeq <= uint64(i):
			return fmt.Errorf("leaf %d of the log is record %d, which it has already", i, r.NodeSeq)
		case r.NodeSeq > uint64(i)+1 || r.PrevHash != previous:
			return fmt.Errorf("record %d %s: leaf %d is record %d", i+1, lostMark, i, r.NodeSeq)
		}
		previous = proof.PayloadHash(b)
		if r.LeaseID != "" {
			if have[r.LeaseID] == nil {
				have[r.LeaseID] = map[proof.Type]int{}
			}
			have[r.LeaseID][r.Type]++
		}
	}
	closed := 0
	for id, ended := range h.opened {
		if n := have[id][proof.OPEN]; n != 1 {
			return fmt.Errorf("the OPEN of lease %s %s once, but %d times", id, lostMark, n)
		}
		if ended {
			closed++
			if n := have[id][proof.CLOSE]; n != 1 {
				return fmt.Errorf("the CLOSE of lease %s %s once, but %d times", id, lostMark, n)
			}
		}
	}
	fmt.Printf("  %d kills of control; %d records in the log, each once and in order; %d leases, %d of them closed\n",
		h.kills.Load(), len(payloads), len(h.opened), closed)
	if closed == 0 {
		return errors.New("no lease was closed: nothing was tried")
	}
	if strings.TrimSpace(previous) == proof.ZeroHash {
		return errors.New("the log has no records: nothing was tried")
	}
	return nil
}
