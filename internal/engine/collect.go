package engine

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Go's collector stops all threads twice a cycle, wherever they next call a
// function, and marks on all processors that Go believes idle, of which there are
// more here than the machine has (processors). A thread that was stopped within a
// cipher call goes on when one of those has handed it a processor of Go's, and a
// close that came meanwhile waits for that: 10 to 100 ms on a busy machine. So the
// engine collects by itself, while nothing is being closed, and does it often
// enough that Go seldom sees a reason to.

const (
	// hasty is GOGC until everything is taken over. What is made then is made to
	// stay, and to look for garbage in it, as often as a heap of this size lets Go,
	// took more processor time than all else of a take-over.
	hasty = 800

	// backstop is GOGC after that: the heap is collected by Go where it grows to four
	// times of what lives, and to 12 MiB, without a moment at which nothing is closed.
	backstop = 300

	// garbage is how much there may be beside as much as half of what lives, in bytes.
	garbage = 2 << 20

	// collectEvery is when the engine looks, beside after a lease has gone: what
	// connections leave behind comes without one.
	collectEvery = time.Second
)

// collect collects until ctx ends, and gives the memory back when no lease has gone
// for a while.
func (e *Engine) collect(ctx context.Context) {
	debug.SetGCPercent(backstop)
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	calm := false // no lease has gone since the tick before
	kept := true  // there is memory to be given back
	for {
		left := false
		select {
		case <-ctx.Done():
			return
		case <-e.litter:
			left = true
		case <-tick.C:
		}
		switch {
		case e.erasing.Load() > 0:
		case littered():
			runtime.GC()
			kept = true
		case calm && kept && !left:
			debug.FreeOSMemory()
			kept = false
		}
		calm = !left
	}
}

// littered reports whether a collection is worth its while.
func littered() bool {
	now := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(now)
	objects, live := now[0].Value.Uint64(), now[1].Value.Uint64()
	return objects > live+max(garbage, live/2)
}

// leftLitter says that a lease has gone.
func (e *Engine) leftLitter() {
	select {
	case e.litter <- struct{}{}:
	default: // it is known
	}
}
