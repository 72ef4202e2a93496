package volume

import (
	"math"
	"math/rand/v2"
	"testing"

	"vacate/internal/blk"
)

// slowBucket is the token bucket as it is drawn on blackboards.
type slowBucket struct {
	rate, burst, tokens float64
	at                  int64
}

func (s *slowBucket) advance(to int64) {
	s.tokens = min(s.burst, s.tokens+float64(to-s.at)*s.rate/second)
	s.at = to
}

// TestBucketModel: requests that wait until they are due never find the slow
// bucket short of what they take, and none waits longer than it must.
func TestBucketModel(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		rate := 1 + rng.Uint64N(1<<rng.IntN(34))
		burst := 1 + rng.Uint64N(min(1<<rng.IntN(30), 1000*rate))
		var b bucket
		b.init(rate, burst, 0)
		model := slowBucket{rate: float64(rate), burst: float64(burst), tokens: float64(burst)}
		now := rng.Int64N(1 << 50)
		model.at = now
		for range 300 {
			if rng.IntN(4) == 0 { // a pause
				now += rng.Int64N(2*b.depth + 2)
			}
			units := 1 + rng.Uint64N(2*burst)
			due := b.reserve(b.time(units), now)
			// Times are whole nanoseconds: what one is worth, for each request so far.
			slip := 1e-6*float64(units+burst) + 600*float64(rate)/second
			if late := due - now; late > 0 {
				model.advance(due - 2)
				if model.tokens > min(float64(units), float64(burst))+slip {
					t.Fatalf("seed %d: %d of %d/s, burst %d, waits %d ns, but the bucket held %g before", seed, units, rate, burst, late, model.tokens)
				}
				now = due
			}
			model.advance(now)
			if model.tokens < min(float64(units), float64(burst))-slip {
				t.Fatalf("seed %d: %d of %d/s, burst %d, is let go with %g in the bucket", seed, units, rate, burst, model.tokens)
			}
			model.tokens -= float64(units)
		}
	}
}

// TestLimiterTurns: of two queues that always wait, one with long requests and
// one with short ones, each has as many turns, and the sum is the limit.
func TestLimiterTurns(t *testing.T) {
	const rate = 100 << 20
	l := newLimiter(Limits{Bytes: rate, BytesBurst: blk.MaxTransfer}, nil, 0)
	long, short := &blk.Request{Op: blk.OpWrite, Len: blk.MaxTransfer}, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize}
	due := map[*blk.Request]int64{long: l.reserve(l.share(long), 0), short: l.reserve(l.share(short), 0)}
	turns := make(map[*blk.Request]int64)
	now := int64(0)
	for now < 10*second {
		r := long
		if due[short] < due[long] {
			r = short
		}
		now = max(now, due[r])
		turns[r]++
		due[r] = l.reserve(l.share(r), now)
	}
	if d := turns[long] - turns[short]; d < -1 || d > 1 {
		t.Errorf("%d turns of long requests, %d of short ones", turns[long], turns[short])
	}
	bytes := turns[long]*long.Len + turns[short]*short.Len
	if got := float64(bytes) / (10 * rate); got < 0.995 || got > 1.005 {
		t.Errorf("%.3f of the limit was used", got)
	}
}

// TestLimiterCounts: what each request takes.
func TestLimiterCounts(t *testing.T) {
	for _, tt := range []struct {
		r                  blk.Request
		requests, bytes100 int64 // of 1/s and 100/s, in ns
	}{
		{blk.Request{Op: blk.OpRead, Len: 4000}, second, 40 * second},
		{blk.Request{Op: blk.OpWrite, Len: 4000}, second, 40 * second},
		{blk.Request{Op: blk.OpDiscard, Len: 4000}, second, 0},
		{blk.Request{Op: blk.OpWriteZeroes, Len: 4000}, second, 0},
		{blk.Request{Op: blk.OpFlush}, 0, 0},
		{blk.Request{Op: blk.OpRead, Len: 4000, Flags: blk.Continued}, 0, 40 * second},
		{blk.Request{Op: blk.OpDiscard, Len: 4000, Flags: blk.Continued}, 0, 0},
	} {
		const now = 5
		l := newLimiter(Limits{IOPS: 1, Bytes: 100}, nil, now)
		l.reserve(l.share(&tt.r), now)
		for what, b := range map[string]struct {
			*bucket
			takes int64
		}{"requests": {&l.requests, tt.requests}, "bytes": {&l.bytes, tt.bytes100}} {
			if got := max(b.full.Load()-now, 0); got != b.takes {
				t.Errorf("a %v takes %d ns of %s, want %d", tt.r.Op, got, what, b.takes)
			}
		}
	}
}

// TestLimiterFollows: new limits do not refill what was used, nor do they owe
// what nobody waits for any more.
func TestLimiterFollows(t *testing.T) {
	const now = 7 * second
	r := &blk.Request{Op: blk.OpRead, Len: blk.BlockSize}
	for _, tt := range []struct {
		name     string
		old      Limits
		used     int
		next     Limits
		requests int // that the next has at once
	}{
		{"the same rate", Limits{IOPS: 100, IOPSBurst: 10}, 4, Limits{IOPS: 100, IOPSBurst: 10, Bytes: 1 << 40}, 6},
		{"twice the rate", Limits{IOPS: 100, IOPSBurst: 10}, 4, Limits{IOPS: 200, IOPSBurst: 10}, 6},
		{"a larger bucket", Limits{IOPS: 100, IOPSBurst: 10}, 4, Limits{IOPS: 100, IOPSBurst: 20}, 16},
		{"a smaller bucket", Limits{IOPS: 100, IOPSBurst: 10}, 4, Limits{IOPS: 100, IOPSBurst: 3}, 0},
		{"overdrawn", Limits{IOPS: 1, IOPSBurst: 10}, 500, Limits{IOPS: 100, IOPSBurst: 10}, 0},
		{"from no limit", Limits{}, 0, Limits{IOPS: 100, IOPSBurst: 10}, 10},
		{"from another limit", Limits{Bytes: 1 << 30}, 500, Limits{IOPS: 100, IOPSBurst: 10}, 10},
	} {
		old := newLimiter(tt.old, nil, now)
		for range tt.used {
			old.reserve(old.share(r), now)
		}
		l := newLimiter(tt.next, old, now)
		got := 0
		for l.reserve(l.share(r), now) <= now {
			got++
		}
		if got != tt.requests {
			t.Errorf("%s: %d requests at once, want %d", tt.name, got, tt.requests)
		}
	}
}

// TestLimiterExtremes: nothing overflows.
func TestLimiterExtremes(t *testing.T) {
	const most = math.MaxUint64
	r := &blk.Request{Op: blk.OpWrite, Len: blk.MaxTransfer}
	for _, rate := range []uint64{1, 4096, 1 << 32, 1 << 50, most} {
		for _, burst := range []uint64{0, 1, 1 << 50, most} {
			limits := Limits{IOPS: rate, IOPSBurst: burst, Bytes: rate, BytesBurst: burst}
			l := newLimiter(limits, newLimiter(limits, nil, 1<<50), 1<<50)
			last := int64(math.MinInt64)
			for i := range 1000 {
				due := l.reserve(l.share(r), 1<<50)
				if due < last || due > 1<<50+int64(i+1)*blk.MaxTransfer*second {
					t.Fatalf("%+v: request %d is due at %d, the one before at %d", limits, i, due, last)
				}
				last = due
			}
		}
	}
}
