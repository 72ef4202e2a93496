// Package poll says for how long a thread of the data plane looks for more to do
// before it sleeps, because waking it up costs more than the wait is long where
// the client, or the drive, is fast. The exports share it, and so its bound on the
// whole process.
//
//	Y1: no longer than the budget at a time, and only after activity: what is idle
//	    costs nothing.
//	Y2: no more threads of this process at once than half of its processors, and
//	    at least one; others sleep at once.
//	Y3: only while it pays. Each time in vain halves the budget, down to none; then
//	    it is tried again after 16 sleeps, and after twice as many each time that
//	    was in vain, up to 1,024. One success restores it.
package poll

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Max is the longest budget.
const Max = 50 * time.Microsecond

const (
	leastPolls = 16   // sleeps between two trials, at first
	mostPolls  = 1024 // and at last
	leastPoll  = 4    // the budget ends below a quarter of the longest
)

// pollers is how many threads of the process poll.
var pollers atomic.Int32

// maxPollers bounds pollers (Y2).
var maxPollers = int32(max(1, runtime.NumCPU()/2))

// A Budget is how much one thread polls; the zero value never does. It belongs to
// that thread.
//
//	if d := b.Begin(); d > 0 {
//		found := …             // look for at most d
//		b.End(found)
//	}
type Budget struct {
	max    time.Duration // 0: never
	budget time.Duration // what it is now; 0: not until sleeps is 0
	begun  bool          // budget was set
	sleeps int           // to go until the next trial
	pause  int           // sleeps between this trial and the next
}

// New returns a budget of at most longest, 0 ≤ longest ≤ Max, at a time. 0: it
// never polls.
func New(longest time.Duration) Budget { return Budget{max: longest} }

// Begin is called before a sleep. It returns for how long to poll first, and then
// End is to be called; or 0: not at all.
func (b *Budget) Begin() time.Duration {
	d := b.begin()
	if d > 0 && pollers.Add(1) > maxPollers {
		pollers.Add(-1)
		return 0
	}
	return d
}

// End takes note of whether something was found.
func (b *Budget) End(found bool) {
	pollers.Add(-1)
	b.end(found)
}

func (b *Budget) begin() time.Duration {
	switch {
	case b.max == 0:
		return 0
	case !b.begun:
		b.begun, b.budget, b.pause = true, b.max, leastPolls
	case b.budget == 0:
		if b.sleeps--; b.sleeps > 0 {
			return 0
		}
		return b.max // a trial
	}
	return b.budget
}

func (b *Budget) end(found bool) {
	switch {
	case found:
		b.budget, b.pause = b.max, leastPolls
	case b.budget == 0: // the trial
		b.pause = min(2*b.pause, mostPolls)
		b.sleeps = b.pause
	default:
		if b.budget /= 2; b.budget < b.max/leastPoll {
			b.budget, b.sleeps = 0, b.pause
		}
	}
}
