package devices

import (
	"context"
	"fmt"
	"sync"
)

// holds let one call at a time do something about a lease.
type holds struct {
	mu  sync.Mutex
	all map[string]*hold
}

type hold struct {
	free   chan struct{} // capacity 1: whoever puts something in has it
	users  int           // that have it or wait for it; under holds.mu
	urgent int           // of them that must have it now and wait; under holds.mu
	cancel func()        // of who has it, nil if nobody; under holds.mu
}

// take waits until nobody else does anything about the lease. With now, who does is
// told to give up, and who comes first all the same: its context ends. The context that it returns is the caller's.
func (h *holds) take(ctx context.Context, lease string, now bool) (held context.Context, release func(), err error) {
	h.mu.Lock()
	if h.all == nil {
		h.all = map[string]*hold{}
	}
	o := h.all[lease]
	if o == nil {
		o = &hold{free: make(chan struct{}, 1)}
		h.all[lease] = o
	}
	o.users++
	if now {
		o.urgent++
		if o.cancel != nil {
			o.cancel()
		}
	}
	h.mu.Unlock()
	select {
	case o.free <- struct{}{}:
	case <-ctx.Done():
		if now {
			h.mu.Lock()
			o.urgent--
			h.mu.Unlock()
		}
		h.drop(lease, o)
		return nil, nil, fmt.Errorf("waiting for another call about lease %s: %w", lease, ctx.Err())
	}
	held, cancel := context.WithCancel(ctx)
	h.mu.Lock()
	o.cancel = cancel
	if now {
		o.urgent--
	} else if o.urgent > 0 { // it came between, or had waited from before
		cancel()
	}
	h.mu.Unlock()
	return held, func() {
		cancel()
		h.mu.Lock()
		o.cancel = nil
		h.mu.Unlock()
		<-o.free
		h.drop(lease, o)
	}, nil
}

// drop forgets one user.
func (h *holds) drop(lease string, o *hold) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o.users--; o.users == 0 {
		delete(h.all, lease)
	}
}
