package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/fail"
	"vacate/internal/nbdclient"
)

// The kill hunt ends the engine, and at times control, at random moments and at
// every named point, while clients that reconnect write, read and verify on
// leases that stay open all the time, and other leases come and go.

type killHunt struct {
	*world
	leases  int
	bytes   int64
	control int // every how-manieth kill at a random moment is control's

	steady  []*vacatev1.Lease
	loads   []*nbdclient.Verify
	kills   atomic.Int64
	struck  map[fail.Point]int // how often a process ended there
	churned atomic.Int64

	mu    sync.Mutex
	found []error
}

func kill(args []string) (err error) {
	o := options{n: 1000, size: 1 << 30}
	h := &killHunt{struck: map[fail.Point]int{}}
	if err := parse("kill", args, &o, func(f *flag.FlagSet) {
		f.IntVar(&h.leases, "leases", 4, "leases that stay open under load")
		f.Int64Var(&h.bytes, "bytes", 64<<20, "size of each")
		f.IntVar(&h.control, "control", 8, "every how-manieth kill at a random moment is control's; 0: none")
	}); err != nil {
		return err
	}
	if h.world, err = newWorld(o); err != nil {
		return errors.Join(err, closeWorld(h.world))
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return verdict(o.planted, h.run())
}

func (h *killHunt) report(err error) {
	if err == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.found = append(h.found, err)
}

func (h *killHunt) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.found) > 0 || h.ctx.Err() != nil
}

func (h *killHunt) run() error {
	ctx, stop := context.WithCancel(h.ctx)
	defer stop()
	var loads, churn sync.WaitGroup
	for i := range h.leases {
		l, err := h.open(h.bytes, 512, key(h.seed, -i-1))
		if err != nil {
			return err
		}
		h.steady = append(h.steady, l)
		v := &nbdclient.Verify{
			Target: l.GetExports()[0].GetUri(), Options: nbdclient.Options{NoBlockSize: true},
			Lease: l.GetId(), Seed: h.seed + uint64(i), Connections: 2, Depth: 8, MaxRequest: 256 << 10,
			Pause: 200 * time.Microsecond, // the machine is for the daemon, not for its clients
		}
		h.loads = append(h.loads, v)
		loads.Go(func() {
			r, err := v.Run(ctx)
			h.report(errors.Join(err, r.Err()))
		})
	}
	churn.Go(func() { h.churn(ctx) })
	done := progress(h.n, func() int { return int(h.kills.Load()) })
	h.killAll()
	done()
	h.disarm()
	stop()
	churn.Wait()
	loads.Wait()
	h.account()
	h.summary()
	return errors.Join(h.found...)
}

// churn opens and closes small leases, so that every step of both is under way
// when something dies.
func (h *killHunt) churn(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		l, err := h.open(4<<20, 512, key(h.seed, n))
		if err != nil {
			h.report(ignoreEnd(ctx, err))
			return
		}
		if c, err := h.dial(l); err == nil { // something to drain
			_, _ = c.WriteAt(make([]byte, 64<<10), 0) //nolint:errcheck // it may be cut off
			c.Abort()                                 //nolint:errcheck // the lease is closed next
		}
		l, err = h.closeLease(l.GetId())
		if err != nil {
			h.report(ignoreEnd(ctx, err))
			return
		}
		if r := l.GetResult(); strings.HasPrefix(r, "lost") {
			h.report(fmt.Errorf("lease %s, which was open, was lost: %s", l.GetId(), r))
		}
		h.churned.Add(1)
	}
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// killAll kills until enough was killed: half of the time at a point, each of
// them in turn.
func (h *killHunt) killAll() {
	rng := rand.New(rand.NewPCG(h.seed, 1))
	order := rng.Perm(len(h.points))
	for n := 0; int(h.kills.Load()) < h.n && !h.over(); n++ {
		h.flowing()
		time.Sleep(time.Duration(rng.IntN(20_000)) * time.Microsecond)
		if n%2 == 1 {
			p := h.points[order[n/2%len(order)]]
			if h.at(p, rng) {
				h.struck[p]++
				h.kills.Add(1)
			}
			continue
		}
		name := "engine"
		if h.control > 0 && n/2%h.control == h.control-1 {
			name = "control"
		}
		h.report(h.kill(name))
		h.kills.Add(1)
	}
}

// at arms a point and waits until a process has ended there. Points on the way of
// a take-over are reached by killing an engine.
func (h *killHunt) at(p fail.Point, rng *rand.Rand) bool {
	h.arm(p)
	if takeover[p] {
		h.report(h.kill("engine"))
		h.kills.Add(1)
	}
	if p == fail.EngineLeaving { // what the upgrade comes to does not matter
		_, _ = h.d.Run("upgrade") //nolint:errcheck // its engine, or control, is killed
	}
	if p == fail.ControlStarted || p == fail.ControlRecovered {
		h.report(h.kill("control"))
		h.kills.Add(1)
	}
	for range 1000 + rng.IntN(10) {
		if !h.armed() || h.over() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return h.disarm()
}

// takeover holds the points that only a new engine comes to.
var takeover = map[fail.Point]bool{
	fail.EngineStarted: true, fail.EngineScanned: true, fail.EngineUp: true, fail.EngineFenced: true,
	fail.EngineServing: true, fail.DriveNoted: true,
}

// flowing waits until every load has had an answer since it was called.
func (h *killHunt) flowing() {
	before := make([]int64, len(h.loads))
	for i, v := range h.loads {
		before[i] = v.Snapshot().Requests
	}
	for start := time.Now(); !h.over(); time.Sleep(time.Millisecond) {
		flows := 0
		for i, v := range h.loads {
			if v.Snapshot().Requests > before[i] {
				flows++
			}
		}
		if flows == len(h.loads) {
			return
		}
		if time.Since(start) > 60*time.Second {
			h.report(fmt.Errorf("%d of %d loads have had no answer for a minute", len(h.loads)-flows, len(h.loads)))
			return
		}
	}
}

// account demands that the steady leases are open, and that none was lost.
func (h *killHunt) account() {
	var all []*vacatev1.Lease
	h.report(h.retry("listing leases", func(ctx context.Context) error {
		resp, err := h.api.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{})
		if err == nil {
			all = resp.GetLeases()
		}
		return err
	}))
	for _, l := range h.steady {
		i := slices.IndexFunc(all, func(o *vacatev1.Lease) bool { return o.GetId() == l.GetId() })
		if i < 0 || all[i].GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN {
			h.report(fmt.Errorf("lease %s, which nobody closed, is not open any more", l.GetId()))
		}
	}
	for _, l := range all {
		if l.GetState() == vacatev1.LeaseState_LEASE_STATE_LOST {
			h.report(fmt.Errorf("lease %s is lost: %s", l.GetId(), l.GetResult()))
		}
	}
}

var fenceWaited = regexp.MustCompile(`fence_waited=(\S+)`)

// summary prints what the kills cost. Stalls are of connections: from the last
// answer before one broke until the next.
func (h *killHunt) summary() {
	var stalls, fences []time.Duration
	var total nbdclient.Report
	for _, v := range h.loads {
		r := v.Snapshot()
		fmt.Printf("  %s\n", r.String())
		total.Reconnects += r.Reconnects
		for _, s := range r.Stalls {
			stalls = append(stalls, s.Duration)
		}
	}
	for _, m := range fenceWaited.FindAllStringSubmatch(h.d.Log(), -1) {
		if d, err := time.ParseDuration(m[1]); err == nil {
			fences = append(fences, d)
		}
	}
	fmt.Printf("  %d kills, %d of them at points, %d leases came and went, %d reconnects\n",
		h.kills.Load(), sum(h.struck), h.churned.Load(), total.Reconnects)
	fmt.Printf("  stall until I/O flows again: %s\n", spread(stalls))
	fmt.Printf("  of it in the fence:          %s\n", spread(fences))
	var never []string
	for _, p := range h.points {
		if h.struck[p] == 0 {
			never = append(never, string(p))
		}
	}
	if len(never) > 0 && h.n >= 4*len(h.points) {
		h.report(fmt.Errorf("no process ever came to these points, so nothing is known of them: %s", strings.Join(never, ", ")))
	}
	const bar = 100 * time.Millisecond
	if p99 := quantile(stalls, 0.99); p99 > bar {
		fmt.Printf("  NOT REACHED: the 99th percentile of the stalls is %v, the bar %v\n", p99.Round(time.Millisecond), bar)
	}
}

func sum(m map[fail.Point]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

func spread(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	r := func(q float64) time.Duration { return quantile(d, q).Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %v, p90 %v, p99 %v, max %v (%d)", r(0.5), r(0.9), r(0.99), r(1), len(d))
}

// quantile is the nearest rank.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Sorted(slices.Values(d))
	return d[min(len(d)-1, max(0, int(float64(len(d))*q+0.9999)-1))]
}
