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

// A share is what a request takes of either bucket, in ns.
type share struct{ requests, bytes int64 }

// share returns what r takes. A flush takes nothing.
func (l *limiter) share(r *blk.Request) (s share) {
	if l.requests.rate != 0 && r.Op != blk.OpFlush && r.Flags&blk.Continued == 0 {
		s.requests = l.requests.time(1)
	}
	if l.bytes.rate != 0 && (r.Op == blk.OpRead || r.Op == blk.OpWrite) {
		s.bytes = l.bytes.time(uint64(r.Len))
	}
	return s
}

// reserve takes a share, as if it were asked for at the time since, and returns
// when it is due (both CLOCK_MONOTONIC, ns). Nothing is due at once.
func (l *limiter) reserve(s share, since int64) (due int64) {
	due = math.MinInt64
	if s.requests != 0 {
		due = l.requests.reserve(s.requests, since)
	}
	if s.bytes != 0 {
		due = max(due, l.bytes.reserve(s.bytes, since))
	}
	return due
}

// await notes that a share was reserved and is not due yet.
func (l *limiter) await(s share) {
	l.requests.waiting.Add(s.requests)
	l.bytes.waiting.Add(s.bytes)
}

// awaited undoes await.
func (l *limiter) awaited(s share) { l.await(share{-s.requests, -s.bytes}) }

// forgo gives back a share that is not due yet. Who has reserved since waits no
// shorter for it; who comes does.
func (l *limiter) forgo(s share) {
	l.requests.full.Add(-s.requests)
	l.bytes.full.Add(-s.bytes)
	l.awaited(s)
}

// A bucket holds burst units (requests, bytes) when it is full, and gains rate
// units a second until it is. What is reserved may be more than what it holds:
// it is then due when the bucket has gained the rest, and what is more than burst
// is due when the bucket is full.
type bucket struct {
	rate  uint64 // 0: no bucket
	depth int64  // ns: what it takes to fill it

	full    atomic.Int64 // CLOCK_MONOTONIC, ns: when it will be full, if nothing more is taken
	waiting atomic.Int64 // ns: how much of that is of requests that are not due yet
	_       [64]byte
}

// init makes a bucket that is full. A burst of 0 is one second's worth, at least
// least.
func (b *bucket) init(rate, burst, least uint64) {
	if burst == 0 {
		burst = max(rate, least)
	}
	b.rate = rate
	if rate != 0 {
		b.depth = b.time(burst)
	}
	b.full.Store(math.MinInt64 / 2)
}

// follow makes b hold what old holds at now, as far as there is room for it. Who
// waits reserves again here: what was reserved for it there counts for nothing, or
// limits that change again and again would let nobody through. Where old had no
// limit, b stays full.
func (b *bucket) follow(old *bucket, now int64) {
	if b.rate == 0 || old.rate == 0 {
		return
	}
	waiting := old.waiting.Load() // first: what is reserved meanwhile was granted
	lacks := min(max(old.full.Load()-waiting-now, 0), old.depth)
	// In ns of either rate: a request or a byte is too much to round by.
	b.full.Store(now + min(scale(uint64(lacks), old.rate, b.rate), b.depth))
}

const second = 1e9 // ns

// forever is longer than any wait, and far from overflow.
const forever = 1 << 60

// time returns how long it takes to gain units, in ns, at most forever.
func (b *bucket) time(units uint64) int64 { return scale(units, second, b.rate) }

// scale returns n × by / per, at most forever. REQUIRES: per > 0.
func scale(n, by, per uint64) int64 {
	hi, lo := bits.Mul64(n, by)
	if hi >= per {
		return forever
	}
	q, _ := bits.Div64(hi, lo, per)
	return int64(min(q, forever))
}

// reserve takes what the bucket gains in takes ns, and returns when that is due.
func (b *bucket) reserve(takes, since int64) (due int64) {
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
		q.payer, q.due, q.share = l, 0, l.share(r)
		q.reserved = l.reserve(q.share, since)
	} else {
		waited = true
	}
	if q.reserved > now {
		if q.due == 0 {
			q.due = q.reserved
			l.await(q.share)
		}
		return false
	}
	if q.due != 0 {
		l.awaited(q.share)
	}
	// What stands behind one that was woken late has been waiting too.
	q.payer, q.due, q.late = nil, 0, waited && q.backlog.Len() > 1
	return true
}

// forgo gives up what the oldest request of the backlog has reserved, if it waits
// for that.
func (q *queue) forgo() {
	if q.due != 0 {
		q.payer.forgo(q.share)
		q.payer, q.due = nil, 0
	}
}
