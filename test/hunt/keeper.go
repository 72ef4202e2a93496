package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/fail"
)

// The keeper hunt ends the keeper, at random moments and at its named points,
// while leases are open, being opened and being closed. The next start must
// record every lease that somebody was told to be open as lost_keeper, keep what
// was closed closed, free all of the space, and lease it again reading zeros.

// keeperTriggers says what brings the keeper to a point. Leases come and go all
// the time; the points that are not here are on their way.
var keeperTriggers = map[fail.Point]func(w *world){
	fail.KeeperEngineStarted:  func(w *world) { _ = w.kill("engine") },
	fail.KeeperEngineEnded:    func(w *world) { _ = w.kill("engine") },
	fail.KeeperUp:             func(w *world) { _ = w.kill("engine") },
	fail.KeeperControlStarted: func(w *world) { _ = w.kill("control") },
	fail.KeeperLeaving:        func(w *world) { _, _ = w.d.Run("upgrade") },         //nolint:errcheck // it is cut off
	fail.KeeperPassed:         func(w *world) { _, _ = w.d.Run("upgrade") },         //nolint:errcheck // likewise
	fail.KeeperExec:           func(w *world) { _, _ = w.d.Run("upgrade") },         //nolint:errcheck // likewise
	fail.KeeperAdopted:        func(w *world) { _, _ = w.d.Run("upgrade") },         //nolint:errcheck // likewise
	fail.KeeperDestroyed:      func(w *world) { _, _ = w.d.Run("stop", "--erase") }, //nolint:errcheck // likewise
	fail.KeeperRemapped:       (*world).growOne,
}

// growOne makes a lease larger: one that is open for long enough, whichever it is.
func (w *world) growOne() {
	var leases []struct {
		ID        string `json:"id"`
		SizeBytes int64  `json:"sizeBytes"`
	}
	if err := w.d.JSON(&leases, "lease", "list"); err != nil {
		return // the daemon is gone already, and the round says so
	}
	for _, l := range leases {
		if _, err := w.d.Run("lease", "resize", l.ID, "--size", fmt.Sprint(l.SizeBytes+4<<20)); err == nil {
			return
		}
	}
}

// keeperReset is reached only when ten engines in a row do not start.
const keeperReset = fail.KeeperReset

func keeperHunt(args []string) (err error) {
	o := options{n: 30, size: 256 << 20}
	if err := parse("keeper", args, &o, nil); err != nil {
		return err
	}
	w, err := newWorld(o)
	if err != nil {
		return errors.Join(err, closeWorld(w))
	}
	defer func() { err = errors.Join(err, w.close()) }()
	points, err := pointsOf("keeper.")
	if err != nil {
		return err
	}
	points = slices.DeleteFunc(points, func(p fail.Point) bool { return p == keeperReset })
	rng := rand.New(rand.NewPCG(o.seed, 1))
	struck, lost, closed := 0, 0, 0
	for n := range o.n {
		var p fail.Point // random moment
		if n%2 == 1 {
			p = points[n/2%len(points)]
		}
		began := time.Now()
		r, err := w.keeperRound(n, p, rng)
		if err != nil {
			return verdict(o.planted, fmt.Errorf("round %d (%s): %w", n, p, err))
		}
		lost, closed = lost+r.lost, closed+r.closed
		if o.verbose {
			fmt.Printf("  round %d (%s): came to it: %v, %d lost, %d closed, %v\n", n, p, r.struck, r.lost, r.closed, time.Since(began).Round(time.Millisecond))
		}
		if p != "" && r.struck {
			struck++
		}
	}
	fmt.Printf("  %d ends of the keeper, %d of them at points; %d leases were lost and recorded so, %d had been closed\n", o.n, struck, lost, closed)
	if o.n >= 2*len(points) && struck < o.n/2 {
		return fmt.Errorf("only %d of %d points were come to", struck, o.n/2)
	}
	return verdict(o.planted, nil)
}

type keeperResult struct {
	struck       bool
	lost, closed int
}

// keeperRound opens leases, ends the keeper, starts the daemon again, and takes
// stock.
func (w *world) keeperRound(n int, p fail.Point, rng *rand.Rand) (r keeperResult, err error) {
	var mu sync.Mutex
	open, closed := map[string]bool{}, map[string]bool{} // what somebody was told
	ctx, stop := context.WithCancel(w.ctx)
	defer stop()
	for i := range 3 { // with a client on each, for an upgrade to pass on
		l, err := w.open(4<<20, 512, fmt.Sprintf("%s-steady-%d", key(w.seed, n), i))
		if err != nil {
			return r, err
		}
		open[l.GetId()] = true
		c, err := w.dial(l)
		if err != nil {
			return r, err
		}
		if _, err := c.WriteAt(make([]byte, 4096), 0); err != nil {
			return r, err
		}
		defer c.Abort() //nolint:errcheck // its server has ended
	}
	var churn sync.WaitGroup
	churn.Go(func() { w.comeAndGo(ctx, fmt.Sprintf("%s-churn", key(w.seed, n)), &mu, open, closed) })
	time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
	old := w.d
	if p == "" {
		err = old.Signal(syscall.SIGKILL)
	} else {
		w.arm(p)
		if f := keeperTriggers[p]; f != nil {
			go f(w) // it may wait for a daemon that is gone, or for the next one: not waited for
		}
	}
	select {
	case <-old.Done():
	case <-time.After(30 * time.Second): // nobody came to the point
		err = errors.Join(err, old.Signal(syscall.SIGKILL))
		<-old.Done()
	}
	r.struck = w.disarm()
	stop()
	if err != nil {
		return r, err
	}
	if err := w.start(); err != nil {
		return r, fmt.Errorf("the next start: %w", err)
	}
	churn.Wait()
	r.lost, r.closed = len(open), len(closed)
	return r, w.takeStock(p, open, closed)
}

// comeAndGo opens and closes leases until the daemon is gone.
func (w *world) comeAndGo(ctx context.Context, name string, mu *sync.Mutex, open, closed map[string]bool) {
	for n := 0; ctx.Err() == nil; n++ {
		resp, err := w.api.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{
			SizeBytes: 1 << 20, Drive: w.drive, Tenant: "hunt", IdempotencyKey: fmt.Sprintf("%s-%d", name, n)})
		if err != nil {
			time.Sleep(2 * time.Millisecond)
			continue
		}
		id := resp.GetLease().GetId()
		mu.Lock()
		open[id] = true
		mu.Unlock()
		if n%3 == 0 {
			continue // stays
		}
		end, err := w.api.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id})
		mu.Lock()
		delete(open, id) // also where nobody knows: it may have been closed, or lost
		if err == nil && end.GetLease().GetState() == vacatev1.LeaseState_LEASE_STATE_CLOSED {
			closed[id] = true
		}
		mu.Unlock()
	}
}

// takeStock compares the leases with what somebody was told before the keeper's
// end, and leases all of the drive anew.
func (w *world) takeStock(p fail.Point, open, closed map[string]bool) error {
	get := func(id string) (l *vacatev1.Lease, err error) {
		err = w.retry("looking at lease "+id, func(ctx context.Context) error {
			resp, err := w.api.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: id})
			l = resp.GetLease()
			if err == nil && l.GetState() < vacatev1.LeaseState_LEASE_STATE_CLOSED { // recovery is at it
				err = connect.NewError(connect.CodeUnavailable, fmt.Errorf("it is %v: %s", l.GetState(), l.GetText()))
			}
			return err
		})
		return l, err
	}
	for id := range open {
		l, err := get(id)
		if err != nil {
			return err
		}
		stopped := p == fail.KeeperDestroyed && l.GetState() == vacatev1.LeaseState_LEASE_STATE_CLOSED // by stop --erase
		if !stopped && (l.GetState() != vacatev1.LeaseState_LEASE_STATE_LOST || l.GetResult() != "lost_keeper") {
			return fmt.Errorf("lease %s was open and is %v, %s: want lost_keeper", id, l.GetState(), l.GetResult())
		}
	}
	for id := range closed {
		l, err := get(id)
		if err != nil {
			return err
		}
		if l.GetState() != vacatev1.LeaseState_LEASE_STATE_CLOSED || l.GetResult() != "ok" {
			return fmt.Errorf("lease %s was closed and is %v, %s", id, l.GetState(), l.GetResult())
		}
	}
	return w.allZeros()
}

// allZeros leases all of the drive, and reads it.
func (w *world) allZeros() error {
	var d struct{ FreeBytes, DataBytes int64 }
	if err := w.d.JSON(&d, "drive", "show", w.drive); err != nil {
		return err
	}
	if d.FreeBytes < w.size*9/10 {
		return fmt.Errorf("only %d bytes of %s (%d) are free, and no lease is open", d.FreeBytes, filepath.Base(w.drive), w.size)
	}
	l, err := w.open(d.FreeBytes, 4096, key(rand.Uint64(), 0))
	if err != nil {
		return err
	}
	c, err := w.dial(l)
	if err != nil {
		return err
	}
	defer c.Abort() //nolint:errcheck // only read
	b := make([]byte, 1<<20)
	for off := int64(0); off < d.FreeBytes; off += int64(len(b)) {
		b := b[:min(int64(len(b)), d.FreeBytes-off)]
		if _, err := c.ReadAt(b, off); err != nil {
			return err
		}
		for i, v := range b {
			if v != 0 {
				return fmt.Errorf("byte %d of a new lease reads as %#x", off+int64(i), v)
			}
		}
	}
	_, err = w.closeLease(l.GetId())
	return err
}
