package sim

import (
	"fmt"
	"syscall"

	"vacate/internal/blk"
)

// A queue keeps what was submitted until Reap picks it.
type queue struct {
	d      *Drive
	depth  int
	flight []pending // in the order of Submit; under d.mu
	dead   bool      // the drive has crashed; under d.mu
}

// A pending is a request that has not completed.
type pending struct {
	r     *blk.Request
	fault Fault
	bad   syscall.Errno // refused: outside the drive, not aligned, not supported, dead
	gen   int           // a hung request is ready when the drive's generation is past it
}

// A result is what a request came to.
type result struct {
	r     *blk.Request
	n     int64
	errno syscall.Errno
}

// NewQueue implements [blk.Device].
func (d *Drive) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a queue of depth %d: %w", depth, syscall.EINVAL)
	}
	q := &queue{d: d, depth: depth, flight: make([]pending, 0, depth)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[q] = struct{}{}
	return q, nil
}

func (q *queue) Submit(batch []*blk.Request) {
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	for _, r := range batch {
		if len(q.flight) == q.depth {
			panic("sim: more requests submitted than the queue's depth")
		}
		p := pending{r: r, gen: q.d.released}
		switch {
		case q.dead:
			p.bad = syscall.ENODEV
		case r.Op == blk.OpDiscard || r.Op == blk.OpWriteZeroes:
			p.bad = syscall.EOPNOTSUPP
		case !r.InRange(q.d.cfg.Size) || (r.Off|r.Len)&int64(q.d.cfg.Logical-1) != 0:
			p.bad = syscall.EINVAL
		default:
			p.fault = q.d.strike()
		}
		q.flight = append(q.flight, p)
	}
}

// Reap picks one request that is ready, and then perhaps more.
func (q *queue) Reap(wait bool) int {
	n := 0
	for {
		res, ok := q.pick(wait && n == 0)
		if !ok {
			return n
		}
		n++
		res.r.Finish(res.n, res.errno) // without the lock: rule B3
		if q.toss() {
			return n
		}
	}
}

// toss says whether a Reap that has delivered something stops here.
func (q *queue) toss() bool {
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	return q.d.rng.IntN(3) == 0
}

// pick takes one ready request, at random, and carries it out. With wait it
// waits for one, unless nothing is in flight.
func (q *queue) pick(wait bool) (result, bool) {
	d := q.d
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		ready := 0
		for i := range q.flight {
			if q.ready(i) {
				ready++
			}
		}
		if ready > 0 {
			nth := d.rng.IntN(ready)
			for i := range q.flight {
				if !q.ready(i) {
					continue
				}
				if nth == 0 {
					p := q.flight[i]
					last := len(q.flight) - 1
					q.flight[i] = q.flight[last]
					q.flight = q.flight[:last]
					return d.carryOut(p), true
				}
				nth--
			}
		}
		if !wait || len(q.flight) == 0 {
			return result{}, false
		}
		d.wake.Wait()
	}
}

func (q *queue) ready(i int) bool {
	p := &q.flight[i]
	return p.fault.Kind != Hang || q.d.released > p.gen
}

// carryOut does what p asks for, as far as its fault lets it.
func (d *Drive) carryOut(p pending) (res result) {
	r := p.r
	defer foreignFault(r, &res)
	if p.bad != 0 {
		return result{r, 0, p.bad}
	}
	n := r.Len
	switch p.fault.Kind {
	case Lost:
		return result{r, 0, p.fault.Errno}
	case Short:
		if r.Op != blk.OpFlush {
			n = d.rng.Int64N(r.Len/int64(d.cfg.Logical)) * int64(d.cfg.Logical)
		}
	}
	switch r.Op {
	case blk.OpRead:
		copy(r.Buf[:n], d.now[r.Off:])
	case blk.OpWrite:
		d.write(r.Off, r.Buf[:n])
		if r.Flags&blk.FUA != 0 {
			d.flush(r.Off, n)
		}
	case blk.OpFlush:
		d.flush(0, d.cfg.Size)
	}
	switch p.fault.Kind {
	case Done:
		return result{r, 0, p.fault.Errno}
	case Short:
		return result{r, n, syscall.EIO}
	}
	return result{r, n, 0}
}

// Close implements [blk.Queue].
func (q *queue) Close() error {
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	if len(q.flight) != 0 {
		panic("sim: queue closed with requests in flight")
	}
	delete(q.d.queues, q)
	return nil
}

// foreignFault makes a fault on foreign memory the result of r. It is deferred.
func foreignFault(r *blk.Request, res *result) {
	if p := recover(); p != nil {
		if _, ok := p.(interface{ Addr() uintptr }); !ok || r.Flags&blk.Foreign == 0 {
			panic(p)
		}
		*res = result{r, 0, syscall.EFAULT}
	}
}
