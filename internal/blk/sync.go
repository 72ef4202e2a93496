package blk

// Do carries out one request and waits for it. It is for control paths, tools
// and tests: an export submits batches.
//
// REQUIRES: nothing else in flight on q.
func Do(q Queue, r *Request) error {
	var w waiter
	r.Done = &w
	q.Submit([]*Request{r})
	for !w.done {
		if q.Reap(true) == 0 && !w.done {
			panic("blk: Reap returned with a request in flight")
		}
	}
	return r.Err()
}

type waiter struct{ done bool }

func (w *waiter) Complete(*Request) {
	if w.done {
		panic("blk: request completed twice")
	}
	w.done = true
}
