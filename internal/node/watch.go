package node

import (
	"context"
	"fmt"
	"sync"

	"vacate/internal/lease"
)

// watchBuffer is how many changes a watcher may lag behind.
const watchBuffer = 256

// A Change is a lease as it stood after something happened to it, or, when
// Missed is not 0, word that so many changes came too fast: whoever needs all
// leases lists them again.
type Change struct {
	Lease  lease.Lease
	Missed int
}

// A Watch receives changes of leases, in order. It never holds up the node: the
// oldest changes are dropped when a watcher does not keep up, and it is told.
type Watch struct {
	n    *Node
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	queue  []Change // at most watchBuffer
	missed int
}

// Watch begins to watch. Whoever lists the leases after that, and then follows
// the changes, misses none. The caller must call Close.
func (n *Node) Watch() (*Watch, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.watches) >= n.cfg.MaxWatches {
		return nil, &Error{Kind: Full, Text: fmt.Sprintf("%d callers watch leases already, that is the most", n.cfg.MaxWatches),
			Next: "end one of them"}
	}
	w := &Watch{n: n, wake: make(chan struct{}, 1)}
	n.watches[w] = struct{}{}
	return w, nil
}

// Next waits for the next change. It returns ctx's error when ctx is done, and
// an [*Error] of kind Unavailable when the node has ended.
func (w *Watch) Next(ctx context.Context) (Change, error) {
	for {
		if c, ok := w.pop(); ok {
			return c, nil
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Change{}, ctx.Err()
		case <-w.n.ctx.Done():
			return Change{}, errEnded
		}
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	delete(w.n.watches, w)
}

func (w *Watch) pop() (Change, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.missed > 0 {
		c := Change{Missed: w.missed}
		w.missed = 0
		return c, true
	}
	if len(w.queue) == 0 {
		return Change{}, false
	}
	c := w.queue[0]
	w.queue = w.queue[1:]
	return c, true
}

func (w *Watch) push(c Change) {
	w.mu.Lock()
	if len(w.queue) == watchBuffer {
		w.queue = w.queue[1:]
		w.missed++
	}
	w.queue = append(w.queue, c)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// publish tells all watchers. REQUIRES: n.mu is held.
func (n *Node) publish(l lease.Lease) {
	for w := range n.watches {
		w.push(Change{Lease: l})
	}
}
