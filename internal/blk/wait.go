package blk

// A Wait collects what the owner of a queue may wait for, beside descriptors of
// its own, instead of blocking in Reap.
type Wait struct {
	FDs   []int32 // one that becomes readable: Reap has something to do
	Due   int64   // CLOCK_MONOTONIC in ns: Reap has something to do then; 0: no such time
	Blind bool    // nothing announces what is waited for: only Reap(true) waits for it
}

// Reset empties w, and keeps its memory.
func (w *Wait) Reset() { *w = Wait{FDs: w.FDs[:0]} }

// Until adds a time.
func (w *Wait) Until(due int64) {
	if w.Due == 0 || due < w.Due {
		w.Due = due
	}
}

// Now says that Reap has something to do at once.
func (w *Wait) Now() { w.Due = 1 }

// A Waiter is a [Queue] that says what it waits for.
type Waiter interface {
	Queue

	// Pending adds to w what lets Reap(false) deliver something, or start
	// something that waits. It is called by the queue's owner when Reap(false)
	// has just returned 0. It adds nothing if nothing is in flight.
	Pending(w *Wait)
}

// Pending asks q, or says that only Reap(true) knows. REQUIRES: something is in
// flight in q.
func Pending(q Queue, w *Wait) {
	if p, ok := q.(Waiter); ok {
		p.Pending(w)
	} else {
		w.Blind = true
	}
}
