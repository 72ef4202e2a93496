package nbd

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Polling: a thread that has just been active looks for more to do for a short
// while before it sleeps, because waking it up costs more than the wait is long
// where the client, or the drive, is fast.
//
//	Y1: no longer than the budget, Config.Poll, at a time, and only after activity:
//	    a connection that is idle costs nothing.
//	Y2: no more threads of this process at once than half of its processors, and
//	    at least one; others sleep at once.
//	Y3: only while it pays. Each time in vain halves the budget, down to none; then
//	    it is tried again after 16 sleeps, and after twice as many each time that
//	    was in vain, up to 1,024. One success restores it.

// MaxPoll is the most that Config.Poll may be.
const MaxPoll = 50 * time.Microsecond

const (
	leastPolls = 16   // sleeps between two trials, at first
	mostPolls  = 1024 // and at last
	leastPoll  = 4    // the budget ends below a quarter of Config.Poll
)

// A polling is how much one connection polls.
type polling struct {
	max    time.Duration // 0: never
	budget time.Duration // what it is now; 0: not until sleeps is 0
	begun  bool          // budget was set
	sleeps int           // to go until the next trial
	pause  int           // sleeps between this trial and the next
}

// begin returns for how long to poll before this sleep; 0: not at all.
func (p *polling) begin() time.Duration {
	switch {
	case p.max == 0:
		return 0
	case !p.begun:
		p.begun, p.budget, p.pause = true, p.max, leastPolls
	case p.budget == 0:
		if p.sleeps--; p.sleeps > 0 {
			return 0
		}
		return p.max // a trial
	}
	return p.budget
}

// end takes note of whether something was found.
func (p *polling) end(found bool) {
	switch {
	case found:
		p.budget, p.pause = p.max, leastPolls
	case p.budget == 0: // the trial
		p.pause = min(2*p.pause, mostPolls)
		p.sleeps = p.pause
	default:
		if p.budget /= 2; p.budget < p.max/leastPoll {
			p.budget, p.sleeps = 0, p.pause
		}
	}
}

// pollers is how many threads of the process poll.
var pollers atomic.Int32

// maxPollers bounds pollers (Y2).
var maxPollers = int32(max(1, runtime.NumCPU()/2))

// poll looks for something to do, as long as that has paid lately: a completion, or
// more from the client, for which window is the room, if there is any. It reports
// whether something was found; if not, Reap(false) has just found nothing (E2).
func (c *conn) poll(window []byte) bool {
	budget := c.polling.begin()
	if budget == 0 {
		return false
	}
	found := false
	if pollers.Add(1) <= maxPollers {
		for start := time.Now(); !found; {
			found = c.inflight > 0 && c.queue.Reap(false) > 0 || window != nil && c.receive(window)
			if time.Since(start) >= budget || c.server.leaving.Load() {
				break
			}
		}
		c.polling.end(found)
	}
	pollers.Add(-1)
	return found
}
