package measure

import (
	"slices"
	"syscall"
	"time"

	"vacate/internal/bench"
	"vacate/internal/nbdclient"
)

// A side adds up the slices of time that one side had under one workload.
type side struct {
	requests, bytes, errors int64
	first                   syscall.Errno
	elapsed                 time.Duration
	p50, p99                []time.Duration // by slice
}

func (s *side) slice(requests, bytes, errors int64, first syscall.Errno, elapsed, p50, p99 time.Duration) {
	s.requests += requests
	s.bytes += bytes
	s.errors += errors
	if s.first == 0 {
		s.first = first
	}
	s.elapsed += elapsed
	if requests > 0 {
		s.p50, s.p99 = append(s.p50, p50), append(s.p99, p99)
	}
}

func (s *side) raw(t *tally) {
	s.slice(t.requests, t.bytes, t.errors, t.first, t.elapsed, t.times.Quantile(0.50), t.times.Quantile(0.99))
}

func (s *side) volume(r nbdclient.Result) {
	s.slice(r.Requests, r.Bytes, r.Errors, r.FirstError, r.Elapsed, r.P50, r.P99)
}

// figure is the side's result: the mean of all its time, and of the quantiles the
// median of the slices.
func (s *side) figure() bench.Figure {
	f := bench.Figure{Requests: s.requests, Errors: s.errors, P50Ns: median(s.p50).Nanoseconds(), P99Ns: median(s.p99).Nanoseconds()}
	if sec := s.elapsed.Seconds(); sec > 0 {
		f.PerSecond, f.BytesPerSecond = float64(s.requests)/sec, float64(s.bytes)/sec
	}
	if s.first != 0 {
		f.FirstError = s.first.Error()
	}
	return f
}

// median sorts all; 0 if there are none.
func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}
