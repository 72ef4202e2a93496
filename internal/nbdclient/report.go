package nbdclient

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Bounds of a [Report]: beyond them it only counts.
const (
	maxWrong  = 64
	maxStalls = 1 << 16
)

// A Report is what a [Verify] has seen.
type Report struct {
	Seed    uint64
	Elapsed time.Duration // of the load, without the last pass

	Requests                              int64 // answered, with or without an error
	Reads, Writes, Zeroes, Trims, Flushes int64 // of these
	ReadBytes, WrittenBytes               int64 // of requests that succeeded
	Verified                              int64 // bytes read by the last pass
	Connections, Reconnects, Attempts     int64 // asked for; made after the first ones; dialled in vain
	Resent, GivenUp                       int64 // requests without an answer when their connection broke
	Errors                                int64 // requests that the server answered with an error
	FirstError                            error
	Errnos                                map[syscall.Errno]int64
	Nonsense                              int64 // connections ended for an answer that made no sense: also a second one to one request
	FirstNonsense                         error
	LastBreak                             error // why a connection broke last
	WrongBytes                            int64 // in sectors that were wrong, each counted once until it was written again
	WrongByClass                          [classes]int64
	Wrong                                 []Wrong // the first ones
	Stalls                                []Stall // in order of their ends
	StallsLost                            int64   // beyond those
	StallP50, StallP99, StallMax          time.Duration
}

// A Wrong is a sector that does not hold what it should.
type Wrong struct {
	Off      int64 // bytes, in the export
	Class    Class
	Expected string // all that would have been right
	Found    string
	Last     bool // found by the last pass
}

func (w Wrong) String() string {
	return fmt.Sprintf("sector at %d is %v: expected %s, found %s", w.Off, w.Class, w.Expected, w.Found)
}

// A Stall is a time in which a connection waited for an answer: because it broke,
// or, if it did not, for longer than [Verify.Gap]. It begins at the last answer
// before (or when the first request after that was sent, or if there was none, at
// the failure), and ends with the next answer.
type Stall struct {
	Connection int
	Start      time.Time
	Duration   time.Duration
	Broken     bool
	Reconnect  time.Duration // of Duration: from the failure until it was in transmission again
	Attempts   int           // to connect
}

// Err returns an error that sums up what must not be: wrong bytes, answers that
// make no sense, requests answered with an error. nil if there was nothing.
func (r *Report) Err() error {
	var errs []error
	if r.WrongBytes > 0 {
		errs = append(errs, fmt.Errorf("%d wrong bytes (%s); the first: %v", r.WrongBytes, r.wrongs(), r.Wrong[0]))
	}
	if r.Nonsense > 0 {
		errs = append(errs, fmt.Errorf("%d answers made no sense; the first: %w", r.Nonsense, r.FirstNonsense))
	}
	if r.Errors > 0 {
		errs = append(errs, fmt.Errorf("%d requests failed; the first: %w", r.Errors, r.FirstError))
	}
	return errors.Join(errs...)
}

func (r *Report) wrongs() string {
	var all []string
	for c, n := range r.WrongByClass {
		if n > 0 {
			all = append(all, fmt.Sprintf("%d sectors %v", n, Class(c)))
		}
	}
	return strings.Join(all, ", ")
}

func (r *Report) String() string {
	return fmt.Sprintf("seed %d: %d requests (%d reads, %d writes, %d zeroes, %d trims, %d flushes), %.2f GB read, %.2f GB written in %v, "+
		"%d reconnects, %d requests resent, %d given up, %d errors, %d wrong bytes, %d stalls: p50 %v, p99 %v, max %v",
		r.Seed, r.Requests, r.Reads, r.Writes, r.Zeroes, r.Trims, r.Flushes, float64(r.ReadBytes)/1e9, float64(r.WrittenBytes)/1e9,
		r.Elapsed.Round(time.Millisecond), r.Reconnects, r.Resent, r.GivenUp, r.Errors, r.WrongBytes,
		int64(len(r.Stalls))+r.StallsLost, r.StallP50.Round(time.Microsecond), r.StallP99.Round(time.Microsecond), r.StallMax.Round(time.Microsecond))
}

// count notes an answered request.
func (r *Report) count(o *op, err error) {
	r.Requests++
	switch o.cmd {
	case cmdRead:
		r.Reads++
	case cmdWrite:
		r.Writes++
	case cmdWriteZeroes:
		r.Zeroes++
	case cmdTrim:
		r.Trims++
	case cmdFlush:
		r.Flushes++
	}
	var failed syscall.Errno
	switch {
	case errors.As(err, &failed):
		r.Errors++
		if r.FirstError == nil {
			r.FirstError = err
			r.Errnos = make(map[syscall.Errno]int64)
		}
		r.Errnos[failed]++
	case o.cmd == cmdRead:
		r.ReadBytes += int64(o.length())
	case o.cmd == cmdWrite:
		r.WrittenBytes += int64(o.length())
	}
}

func (r *Report) addWrong(wrong []Wrong, last bool) {
	for _, w := range wrong {
		w.Last = last
		r.WrongBytes += sectorSize
		r.WrongByClass[w.Class]++
		if len(r.Wrong) < maxWrong {
			r.Wrong = append(r.Wrong, w)
		}
	}
}

func (r *Report) addStall(s Stall) {
	if len(r.Stalls) == maxStalls {
		r.StallsLost++
		return
	}
	r.Stalls = append(r.Stalls, s)
}

// snapshot returns a copy that is whole by itself.
func (r *Report) snapshot() Report {
	c := *r
	c.Wrong, c.Stalls = slices.Clone(r.Wrong), slices.Clone(r.Stalls)
	if r.Errnos != nil {
		c.Errnos = make(map[syscall.Errno]int64, len(r.Errnos))
		for k, v := range r.Errnos {
			c.Errnos[k] = v
		}
	}
	c.StallP50, c.StallP99, c.StallMax = quantiles(c.Stalls)
	return c
}

// quantiles returns the median, the 99th percentile (nearest rank) and the maximum.
func quantiles(stalls []Stall) (p50, p99, longest time.Duration) {
	if len(stalls) == 0 {
		return 0, 0, 0
	}
	all := make([]time.Duration, len(stalls))
	for i, s := range stalls {
		all[i] = s.Duration
	}
	slices.Sort(all)
	rank := func(q int) time.Duration { return all[(len(all)*q+99)/100-1] }
	return rank(50), rank(99), all[len(all)-1]
}
