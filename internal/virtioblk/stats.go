package virtioblk

import "sync/atomic"

// Stats is what workers have done so far.
type Stats struct {
	Reads, Writes, Flushes, Discards, Zeroes, IDs uint64 // requests, the failed ones included
	ReadBytes, WriteBytes                         uint64 // of requests that were carried out
	Errors                                        uint64 // requests answered with an error, those of unknown types included
	Kicks                                         uint64 // notifications of drivers that woke a thread
	Calls                                         uint64 // notifications to drivers
	Resubmitted                                   uint64 // requests that were in flight when a worker took their ring over
	Broken                                        uint64 // rings that are served no more
}

// Counters is the shared form of Stats. Workers add to it once a round. The zero
// value is ready for use.
type Counters struct {
	requests              [kinds]atomic.Uint64
	readBytes, writeBytes atomic.Uint64
	errors, kicks, calls  atomic.Uint64
	resubmitted, broken   atomic.Uint64
}

// Stats returns the counts so far. It may be called from any goroutine.
func (c *Counters) Stats() Stats {
	return Stats{
		Reads:       c.requests[kindRead].Load(),
		Writes:      c.requests[kindWrite].Load(),
		Flushes:     c.requests[kindFlush].Load(),
		Discards:    c.requests[kindDiscard].Load(),
		Zeroes:      c.requests[kindZeroes].Load(),
		IDs:         c.requests[kindID].Load(),
		ReadBytes:   c.readBytes.Load(),
		WriteBytes:  c.writeBytes.Load(),
		Errors:      c.errors.Load(),
		Kicks:       c.kicks.Load(),
		Calls:       c.calls.Load(),
		Resubmitted: c.resubmitted.Load(),
		Broken:      c.broken.Load(),
	}
}

// A tally is what one worker has done since it last added it up.
type tally struct {
	requests              [kinds]uint32
	readBytes, writeBytes uint64
	errors, kicks, calls  uint32
	resubmitted, broken   uint32
}

// tell moves the tally into the counters.
func (t *tally) tell(c *Counters) {
	for i, n := range t.requests {
		if n > 0 {
			c.requests[i].Add(uint64(n))
		}
	}
	for _, x := range [...]struct {
		n  uint64
		to *atomic.Uint64
	}{
		{t.readBytes, &c.readBytes}, {t.writeBytes, &c.writeBytes},
		{uint64(t.errors), &c.errors}, {uint64(t.kicks), &c.kicks}, {uint64(t.calls), &c.calls},
		{uint64(t.resubmitted), &c.resubmitted}, {uint64(t.broken), &c.broken},
	} {
		if x.n > 0 {
			x.to.Add(x.n)
		}
	}
	*t = tally{}
}
