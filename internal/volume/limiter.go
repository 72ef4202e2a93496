package volume

import (
	"math"
	"math/bits"
	"sync/atomic"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// A limiter grants requests their times, for all queues of a volume (GCRA,
// ITU-T I.371, annex A).
//
// A request that comes first in its queue reserves its share at once, and learns
// when it is due. So shares are granted in the order of arrival: queues that
// wait take turns, one request each, and a long request is not overtaken for
// ever by short ones. Nothing is locked.
//
// A limiter is never changed. New limits make a new one, and who waits reserves
// again there.
type limiter struct {
	limits   Limits
	requests bucket
	bytes    bucket
}

// newLimiter returns a limiter that goes on, at now, where old (or nil) was; or
// nil, if nothing is limited.
func newLimiter(l Limits, old *limiter, now int64) *limiter {
	if l.IOPS == 0 && l.Bytes == 0 {
		return nil
	}
	n := &limiter{limits: l}
	n.requests.init(l.IOPS, l.IOPSBurst, 1)
	n.bytes.init(l.Bytes, l.BytesBurst, blk.MaxTransfer)
	if old != nil {
		n.requests.follow(&old.requests, now)
		n.bytes.follow(&old.bytes, now)
	}
	return n
}

// reserve takes r's share, as if r had come at the time since, and returns when
// r is due (both CLOCK_MONOTONIC, ns). A flush takes none, and is due at once.
func (l *limiter) reserve(r *blk.Request, since int64) (due int64) {
	due = math.MinInt64
	switch r.Op {
	case blk.OpFlush:
		return due
	case blk.OpRead, blk.OpWrite:
		if l.bytes.rate != 0 {
			due = l.bytes.reserve(uint64(r.Len), since)
		}
	}
	if l.requests.rate != 0 {
		due = max(due, l.requests.reserve(1, since))
	}
	return due
}

// A bucket holds burst units (requests, bytes) when it is full, and gains rate
// units a second until it is. What is reserved may be more than what it holds:
// it is then due when the bucket has gained the rest, and what is more than burst
// is due when the bucket is full.
type bucket struct {
	rate, burst uint64 // rate 0: no bucket
	depth       int64  // ns: what it takes to fill it

	full atomic.Int64 // CLOCK_MONOTONIC, ns: when it will be full, if nothing more is taken
	_    [64]byte
}

// init makes a bucket that is full. A burst of 0 is one second's worth, at least
// least.
func (b *bucket) init(rate, burst, least uint64) {
	if burst == 0 {
		burst = max(rate, least)
	}
	b.rate, b.burst = rate, burst
	if rate != 0 {
		b.depth = b.time(burst)
	}
	b.full.Store(math.MinInt64 / 2)
}

// follow makes b hold what old holds at now, as far as there is room for it.
// Where old had no limit, b stays full.
func (b *bucket) follow(old *bucket, now int64) {
	if b.rate == 0 || old.rate == 0 {
		return
	}
	lacks := min(max(old.full.Load()-now, 0), old.depth)
	hi, lo := bits.Mul64(uint64(lacks), old.rate)
	units, _ := bits.Div64(hi, lo, second) // hi < second: it is at most burst × second
	b.full.Store(now + b.time(min(units, b.burst)))
}

const second = 1e9 // ns

// forever is longer than any wait, and far from overflow.
const forever = 1 << 60

// time returns how long it takes to gain units, in ns, at most forever.
func (b *bucket) time(units uint64) int64 {
	hi, lo := bits.Mul64(units, second)
	if hi >= b.rate {
		return forever
	}
	ns, _ := bits.Div64(hi, lo, b.rate)
	return int64(min(ns, forever))
}

func (b *bucket) reserve(units uint64, since int64) (due int64) {
	takes := b.time(units)
	for {
		old := b.full.Load()
		full := max(old, since) + takes
		if b.full.CompareAndSwap(old, full) {
			return full - max(b.depth, takes)
		}
	}
}

// slack is how far a queue that is late may catch up with its share, in ns: who
// waits is woken late, and would lose a little of it each time.
const slack = 10e6

// pay reports whether r, the oldest request of the backlog, has its share by
// now. If not, q.due says when to ask again. Once the gate is shut there is
// nothing to wait for: r will be refused.
func (q *queue) pay(r *blk.Request) bool {
	l := q.v.limiter.Load()
	if l == nil || q.gate.IsShut() {
		q.payer, q.due, q.late = nil, 0, false
		return true
	}
	now := sys.MonotonicNs()
	waited := q.late
	if q.payer != l { // it has not reserved, or under limits that are no more
		since := now
		if q.late {
			since -= slack
		}
		q.payer, q.reserved = l, l.reserve(r, since)
	} else {
		waited = true
	}
	if q.reserved > now {
		q.due = q.reserved
		return false
	}
	// What stands behind one that was woken late has been waiting too.
	q.payer, q.due, q.late = nil, 0, waited && q.backlog.Len() > 1
	return true
}
