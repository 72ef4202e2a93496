package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/fail"
	"vacate/internal/nbdclient"
	"vacate/internal/vhostclient"
	"vacate/test/search"
)

// The kill hunt ends the engine, and at times control, at random moments and at
// every named point, while clients that reconnect write, read and verify on
// leases that stay open all the time, and other leases come and go. Over vhost-user
// (-export) one frontend reconnects and another cannot: neither may see more than a
// pause.

type killHunt struct {
	*world
	leases  int
	bytes   int64
	control int // every how-manieth kill at a random moment is control's
	export  string
	only    string

	steady  []*vacatev1.Lease
	loads   []load
	kills   atomic.Int64
	struck  map[fail.Point]int // how often a process ended there
	tried   map[fail.Point]int // how often one was to
	churned []*vacatev1.Lease  // that were closed, and said to be; churn's until it has ended

	mu    sync.Mutex
	found []error
}

func kill(args []string) (err error) {
	o := options{n: 1000, size: 1 << 30}
	h := &killHunt{struck: map[fail.Point]int{}, tried: map[fail.Point]int{}}
	if err := parse("kill", args, &o, func(f *flag.FlagSet) {
		f.IntVar(&h.leases, "leases", 5, "leases that stay open under load")
		f.StringVar(&h.export, "export", nbd, "how they are reached: "+nbd+" or "+vhostUser)
		f.StringVar(&h.only, "point", "", "of the points, take those only whose name contains this")
		f.Int64Var(&h.bytes, "bytes", 64<<20, "size of each")
		f.IntVar(&h.control, "control", 8, "every how-manieth kill at a random moment is control's; 0: none")
	}); err != nil {
		return err
	}
	if h.world, err = newWorld(o); err != nil {
		return errors.Join(err, closeWorld(h.world))
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if h.export != vhostUser {
		h.points = slices.DeleteFunc(h.points, ofVhostUser)
	}
	h.points = slices.DeleteFunc(h.points, func(p fail.Point) bool { return !strings.Contains(string(p), h.only) })
	if len(h.points) == 0 {
		return fmt.Errorf("no point's name contains %q", h.only)
	}
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
		l, v, err := h.openUnderLoad(i, h.export, h.bytes, key(h.seed, -i-1))
		if err != nil {
			return err
		}
		h.steady = append(h.steady, l)
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
		l, err := h.open(4<<20, 512, key(h.seed, n), both(h.export)...)
		if err != nil {
			h.report(ignoreEnd(ctx, err))
			return
		}
		if c, err := h.dial(l); err == nil {
			h.report(untouched(c, l))                            // it may be cut off
			_, _ = c.WriteAt(bytes.Repeat([]byte{1}, 64<<10), 0) //nolint:errcheck // likewise: something to drain
			c.Abort()                                            //nolint:errcheck // the lease is closed next
		}
		session, err := h.session(l)
		h.report(ignoreEnd(ctx, err))
		if err == nil && n%2 == 1 {
			h.report(ignoreEnd(ctx, h.grow(l, session, 8<<20)))
		}
		l, err = h.closeLease(l.GetId())
		if err != nil {
			h.report(ignoreEnd(ctx, errors.Join(err, session.Close())))
			return
		}
		h.report(errors.Join(session.ended(), h.gone(l)))
		h.churned = append(h.churned, l)
	}
}

// untouched demands zeros of what nobody has written.
func untouched(c *nbdclient.Client, l *vacatev1.Lease) error {
	b := make([]byte, 64<<10)
	_, err := c.ReadAt(b, 0)
	if i := bytes.IndexFunc(b, func(r rune) bool { return r != 0 }); err == nil && i >= 0 {
		return fmt.Errorf("lease %s reads %#x at %d before anything was written", l.GetId(), b[i], i)
	}
	return nil
}

// gone demands of a lease, of which a close has said that it is over, that it is:
// it is not lost, no key is left but those of the steady leases, and nobody
// answers where it was reached.
func (h *killHunt) gone(l *vacatev1.Lease) error {
	switch l.GetState() {
	case vacatev1.LeaseState_LEASE_STATE_CLOSED, vacatev1.LeaseState_LEASE_STATE_ERASED:
	default:
		return fmt.Errorf("lease %s, which was open, ended as %v (%s %s)", l.GetId(), l.GetState(), l.GetResult(), l.GetText())
	}
	held, err := h.keysHeld()
	if err == nil && held > len(h.steady) {
		err = fmt.Errorf("lease %s was closed, and %d slots hold a key: %d leases are open", l.GetId(), held, len(h.steady))
	}
	return errors.Join(err, h.unreachable(l))
}

func (h *killHunt) unreachable(l *vacatev1.Lease) error {
	for _, e := range l.GetExports() {
		if e.GetKind() == vhostUser {
			if c, err := vhostclient.Connect(e.GetSocket(), 0); err == nil {
				c.Close() //nolint:errcheck // it ought not to be there
				return fmt.Errorf("lease %s, which was closed, takes a session again", l.GetId())
			}
			continue
		}
		c, err := nbdclient.Dial(e.GetUri(), nbdclient.Options{NoBlockSize: true, Timeout: 10 * time.Second})
		if err == nil {
			c.Abort() //nolint:errcheck // it ought not to be there
			return fmt.Errorf("lease %s, which was closed, answers again", l.GetId())
		}
	}
	return nil
}

// keysHeld counts the slots of the volatile memory that hold a key. Only root may
// look; for others there are none.
func (h *killHunt) keysHeld() (held int, err error) {
	if os.Geteuid() != 0 {
		return 0, nil
	}
	s, err := search.Keys(h.d.PID())
	for range 100 { // it may be replacing itself
		if err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
		s, err = search.Keys(h.d.PID())
	}
	if err != nil {
		return 0, err
	}
	zero := make([]byte, search.SlotSize)
	for slot := range slices.Chunk(s.Bytes(), search.SlotSize) {
		if !bytes.Equal(slot, zero) {
			held++
		}
	}
	return held, s.Close()
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the hunt is over
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
			if h.at(p) {
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
func (h *killHunt) at(p fail.Point) bool {
	h.tried[p]++
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
	// Some are come to once in two lives, which take seconds on a busy machine.
	for begun := time.Now(); time.Since(begun) < 20*time.Second && h.armed() && !h.over(); {
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

// account demands that the steady leases are open and no others, that none was
// lost, that what was closed has stayed so, and that no process ended but by a
// kill.
func (h *killHunt) account() {
	var all []*vacatev1.Lease
	h.report(h.retry("listing leases", func(ctx context.Context) error {
		resp, err := h.api.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{IncludeEnded: true})
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
	steady := func(id string) bool {
		return slices.ContainsFunc(h.steady, func(o *vacatev1.Lease) bool { return o.GetId() == id })
	}
	for _, l := range all {
		switch l.GetState() {
		case vacatev1.LeaseState_LEASE_STATE_CLOSED, vacatev1.LeaseState_LEASE_STATE_ERASED:
		case vacatev1.LeaseState_LEASE_STATE_LOST:
			h.report(fmt.Errorf("lease %s is lost: %s", l.GetId(), l.GetResult()))
		default:
			if !steady(l.GetId()) {
				h.report(fmt.Errorf("lease %s, which was closed, is %v", l.GetId(), l.GetState()))
			}
		}
	}
	for _, l := range h.churned {
		h.report(h.unreachable(l))
	}
	held, err := h.keysHeld()
	if err == nil && os.Geteuid() == 0 && held != len(h.steady) {
		err = fmt.Errorf("at the end %d slots hold a key, and %d leases are open", held, len(h.steady))
	}
	h.report(err)
	h.report(h.accidents())
}

// summary prints what the kills cost. Stalls are of connections and queues: from the
// last answer before one broke, or had to wait, until the next.
func (h *killHunt) summary() {
	var stalls []time.Duration
	var total nbdclient.Report
	for _, v := range h.loads {
		r := v.Snapshot()
		fmt.Printf("  %s\n", r.String())
		total.Reconnects += r.Reconnects
		for _, s := range r.Stalls {
			stalls = append(stalls, s.Duration)
		}
	}
	fences := h.d.FenceTimes()
	fmt.Printf("  %d kills, %d of them at points, %d leases came and went, %d reconnects\n",
		h.kills.Load(), sum(h.struck), len(h.churned), total.Reconnects)
	fmt.Printf("  stall until I/O flows again: %s\n", spread(stalls))
	fmt.Printf("  of it in the fence:          %s\n", spread(fences))
	var never []string
	for _, p := range h.points {
		if h.struck[p] == 0 && h.tried[p] > 1 { // once may be bad luck
			never = append(never, string(p))
		}
	}
	if len(never) > 0 {
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
