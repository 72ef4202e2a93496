package volume

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/plant"
	"vacate/internal/sys"
)

// bouncePages bounds the pages of a queue: an op holds at most two, so eight
// sub-block requests a queue run side by side, and others wait in the backlog.
const bouncePages = 16

// A queue is one goroutine's way into a volume. Its wait points are that of the
// queue below and, when all that is left waits for other queues' requests or for
// a time, exclusion.sleep.
//
// Invariants:
//
//	Q1: a parent is in the backlog or has an op; never more than depth.
//	Q2: an op is in line (it waits for its turn), or has kids below.
//	Q3: pages are held by ops only, so the backlog is always looked at again.
//	Q4: while an op runs, the queue is inside of its gate: it enters with the
//	    first, and leaves when Submit or Reap finds none left. A request is
//	    admitted when the gate is seen open from there.
type queue struct {
	v       *Volume
	size    int64 // bytes
	gate    *blk.Gate
	below   blk.Queue
	feed    blk.Feeder
	backlog blk.FIFO // parents that have not been started
	pages   *mem.Pool
	flights *flights

	ops  []op
	free []*op
	line []*op // wait for their turn, oldest first

	inside  bool // of the gate
	running int  // ops that are in use; their parents have not been told
	tally   tally
	count   counters // what of tally was told

	// Of the oldest request in the backlog; see pay.
	payer    *limiter    // where it has reserved its share, or nil
	share    share       // that
	reserved int64       // when it is due there, CLOCK_MONOTONIC in ns
	due      int64       // reserved, if it waits for that time; else 0
	late     bool        // it has stood behind one that waited
	alarm    *time.Timer // rings the bell at due; nil until it is needed

	quit      bool // nothing is begun any more
	delivered int  // completions since the queue was made
}

// NewQueue returns a queue with bounce pages of its own. After Shut the error
// wraps ESHUTDOWN.
func (v *Volume) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a volume queue of depth %d: %w", depth, syscall.EINVAL)
	}
	gate, err := v.gates.New()
	if err != nil {
		return nil, fmt.Errorf("making a volume queue: %w", err)
	}
	pages, err := mem.NewPool(blk.BlockSize, min(bouncePages, 2*depth), v.lock)
	if err != nil {
		v.gates.Drop(gate)
		return nil, fmt.Errorf("making a volume queue: %w", err)
	}
	kids := depth + min(bouncePages, 2*depth) // an op has a kid for each page, and one more
	below, err := v.below.NewQueue(kids)
	if err != nil {
		v.gates.Drop(gate)
		return nil, errors.Join(err, pages.Close())
	}
	q := &queue{
		v: v, size: v.geo.Size, gate: gate, below: below, pages: pages,
		feed:    blk.NewFeeder(below, kids),
		backlog: blk.NewFIFO(depth),
		flights: v.excl.join(depth),
		ops:     make([]op, depth),
		free:    make([]*op, 0, depth),
		line:    make([]*op, 0, depth),
	}
	for i := range q.ops {
		o := &q.ops[depth-1-i] // so that the first slots of flights are used first
		o.init(q, depth-1-i)
		q.free = append(q.free, o)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.queues[q] = struct{}{}
	return q, nil
}

// Close gives up the queue. REQUIRES: nothing in flight.
func (q *queue) Close() error {
	if q.backlog.Len() > 0 || len(q.free) < len(q.ops) {
		panic("volume: queue closed with requests in flight")
	}
	if q.alarm != nil {
		q.alarm.Stop()
	}
	q.v.excl.part(q.flights)
	q.v.gates.Drop(q.gate)
	q.v.mu.Lock()
	delete(q.v.queues, q)
	q.count.addTo(&q.v.past)
	q.v.mu.Unlock()
	return errors.Join(q.below.Close(), q.pages.Close())
}

// Submit starts requests, or puts them in the backlog.
func (q *queue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		q.backlog.Push(r)
	}
	q.run()
}

// run moves what can be moved. Then, unless it is further up the stack, it leaves
// the gate if nothing runs, and tells what was counted.
func (q *queue) run() {
	q.feed.Run(q)
	if q.feed.Running() {
		return
	}
	if q.running == 0 && q.inside {
		q.inside = false
		q.gate.Leave()
	}
	if q.tally != (tally{}) {
		q.tally.tell(&q.count)
	}
}

// enter reports whether a request is admitted (Q4).
func (q *queue) enter() bool {
	if q.inside {
		return !q.gate.IsShut()
	}
	q.inside = q.gate.Enter()
	return q.inside
}

// Reap delivers completions. With wait it blocks below as long as something of
// this queue is in flight there; a request whose turn or time comes meanwhile is
// started after that.
func (q *queue) Reap(wait bool) int {
	before := q.delivered
	for {
		q.below.Reap(wait && q.delivered == before && q.feed.InFlight() > 0)
		q.run()
		if !wait || q.delivered != before || q.feed.Running() {
			break
		}
		if q.feed.InFlight() == 0 {
			if len(q.line) == 0 && q.due == 0 {
				break
			}
			q.sleep()
		}
	}
	return q.delivered - before
}

// sleep waits for other queues or until the backlog is due, unless a last look
// shows that there is no need.
func (q *queue) sleep() {
	x, before := &q.v.excl, q.delivered
	since := x.drowse()
	q.run()
	if q.delivered == before && q.feed.InFlight() == 0 {
		if q.due != 0 {
			q.wakeMe(time.Duration(q.due - sys.MonotonicNs()))
		}
		x.sleep(since)
	}
	x.wake()
}

// wakeMe has the bell rung after d.
func (q *queue) wakeMe(d time.Duration) {
	if q.alarm == nil {
		q.alarm = time.AfterFunc(d, q.v.excl.ring)
	} else {
		q.alarm.Reset(d)
	}
}

// glance is the longest that Pending lets an owner wait for the backlog to be
// due, in ns: new limits, and the end of the lease, are seen by then.
const glance = 20e6

// Pending implements [blk.Waiter]. Only Reap(true) waits for other queues.
func (q *queue) Pending(w *blk.Wait) {
	if q.feed.InFlight() > 0 {
		blk.Pending(q.below, w)
	}
	if len(q.line) > 0 {
		w.Blind = true
	}
	if q.due != 0 {
		w.Until(min(q.due, sys.MonotonicNs()+glance))
	}
}

// Fill starts the ops whose turn it is, and then what is in the backlog, oldest
// first, until pages run out or the limits are reached.
func (q *queue) Fill() {
	if len(q.line) > 0 {
		q.advance()
	}
	for r := q.backlog.Peek(); r != nil; r = q.backlog.Peek() {
		if !q.start(r) {
			return
		}
	}
}

// Quit implements [blk.Quitter].
func (q *queue) Quit() { q.quit = true }

// advance looks at every op in line. V1: after Shut none is started any more.
func (q *queue) advance() {
	rest := q.line[:0]
	for _, o := range q.line {
		switch {
		case q.quit:
			o.finish(0, syscall.ECANCELED)
		case q.gate.IsShut() && !plant.Is(plant.GateSkipped):
			o.finish(0, syscall.ESHUTDOWN)
		case o.turn():
			o.run()
		default:
			rest = append(rest, o)
		}
	}
	clear(q.line[len(rest):])
	q.line = rest
}

// start begins r. It reports false when there are no pages for its edges, or it
// is over the limits.
func (q *queue) start(r *blk.Request) bool {
	if !r.InRange(q.size) {
		q.refuse(r, syscall.EINVAL)
		return true
	}
	if q.quit {
		q.forgo()
		q.refuse(r, syscall.ECANCELED)
		return true
	}
	whole := r.Op == blk.OpFlush || aligned(r)
	var p parts
	if !whole {
		if p = cut(r.Off, r.Len); p.count > q.pages.Free() {
			return false
		}
	}
	if (q.due != 0 || q.v.limiter.Load() != nil) && !q.pay(r) {
		return false
	}
	if !q.enter() && !plant.Is(plant.GateSkipped) {
		q.refuse(r, syscall.ESHUTDOWN)
		return true
	}
	q.backlog.Pop()
	q.running++
	last := len(q.free) - 1 // Q1: there is one
	o := q.free[last]
	q.free = q.free[:last]
	o.parent = r
	if whole {
		o.startWhole()
	} else {
		o.startCut(p)
	}
	return true
}

// refuse completes the oldest request of the backlog without an op.
func (q *queue) refuse(r *blk.Request, errno syscall.Errno) {
	q.backlog.Pop()
	q.delivered++
	q.tally.add(r, errno)
	r.Finish(0, errno)
}
