package blk

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"syscall"
)

// revoked is added to a gate's state when it is shut: the state is negative from
// then on, and exactly revoked when nothing admitted is in flight.
const revoked = math.MinInt64

// A Gate admits one queue's work while its lease is open.
//
// Invariants:
//
//	G1: once Drained of its Gates is closed, no admitted work is in flight.
//	G2: once Shut of its Gates has been called, Enter fails for ever.
//
// A lease has two Gates: one around cipher calls (closing waits for it before
// the key is destroyed, and it never spans device I/O) and one around device
// requests (space is freed only after it has drained). Each queue has a Gate of
// its own in either, alone on its cache lines: on the path of a request nothing
// is shared. Enter and Leave may be called from any goroutine.
//
//	open ──Shut──> shut, n in flight ──Leave × n──> shut, drained
type Gate struct {
	// state is the amount of work in flight, plus revoked after Shut. A
	// failed Enter never changes it, so it reaches revoked exactly once.
	state atomic.Int64
	set   *Gates
	_     [112]byte // 128 in all: a size class, and two cache lines (adjacent-line prefetch)
}

// Enter admits a piece of work. When it reports false the gate is shut, and
// Leave must not be called.
func (g *Gate) Enter() bool {
	for {
		s := g.state.Load()
		if s < 0 {
			return false
		}
		if g.state.CompareAndSwap(s, s+1) {
			return true
		}
	}
}

// Leave ends a piece of work that Enter admitted.
func (g *Gate) Leave() {
	switch s := g.state.Add(-1); {
	case s == revoked:
		g.set.drain()
	case s == -1, s == math.MaxInt64: // from 0, from revoked
		panic("blk: Leave without Enter")
	}
}

// IsShut reports whether the gate has been shut. Only true is lasting.
func (g *Gate) IsShut() bool { return g.state.Load() < 0 }

// Gates are the gates of all queues of a layer, shut together.
type Gates struct {
	drained chan struct{} // closed when shut, and every gate has drained

	mu   sync.Mutex
	shut bool
	open map[*Gate]struct{} // one a queue
	busy int                // gates that were shut with work in flight, and have not drained
}

// NewGates returns an open set without gates.
func NewGates() *Gates {
	return &Gates{drained: make(chan struct{}), open: make(map[*Gate]struct{})}
}

// New returns a gate for a new queue. After Shut it is refused with an error
// that wraps ESHUTDOWN.
func (s *Gates) New() (*Gate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return nil, fmt.Errorf("admitting a new queue: %w", syscall.ESHUTDOWN)
	}
	g := &Gate{set: s}
	s.open[g] = struct{}{}
	return g, nil
}

// Drop forgets the gate of a queue that is closed.
//
// REQUIRES: nothing in flight through g.
func (s *Gates) Drop(g *Gate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := g.state.Load(); n != 0 && n != revoked {
		panic("blk: queue closed with work in flight")
	}
	delete(s.open, g)
}

// Shut shuts every gate, and refuses new ones. It waits for nothing, and may be
// called again.
func (s *Gates) Shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return
	}
	s.shut = true
	for g := range s.open {
		if g.state.Add(revoked) != revoked {
			s.busy++
		}
	}
	if s.busy == 0 {
		close(s.drained)
	}
}

// drain is called by the Leave that takes a shut gate to its end. It waits for
// a Shut that is still counting.
func (s *Gates) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy--; s.busy == 0 {
		close(s.drained)
	}
}

// IsShut reports whether Shut has been called.
func (s *Gates) IsShut() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shut
}

// Idle reports whether no admitted work is in flight now. More may come.
func (s *Gates) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range s.open {
		if n := g.state.Load(); n != 0 && n != revoked {
			return false
		}
	}
	return true
}

// Drained is closed when Shut has been called and no admitted work is in
// flight (G1).
func (s *Gates) Drained() <-chan struct{} { return s.drained }

// Revoke shuts every gate and waits until no admitted work is in flight. When
// ctx ends first its error is returned; the gates stay shut all the same.
func (s *Gates) Revoke(ctx context.Context) error {
	s.Shut()
	select {
	case <-s.drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for work in flight: %w", context.Cause(ctx))
	}
}
