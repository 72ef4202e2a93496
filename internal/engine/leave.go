package engine

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"vacate/internal/export/nbd"
	"vacate/internal/fail"
	"vacate/internal/volume"
)

// leaveWithin is how long connections may take to come to a message boundary.
// Those that do not, since their client or their drive hangs, are cut off.
const leaveWithin = 2 * time.Second

// leave is the planned end: no connection is served any more, and each stands
// with the keeper, between two messages, for the next engine. What is being
// closed goes on there. The process ends right after, and the fences with it.
//
// REQUIRES: no call of control's is under way, or comes.
func (e *Engine) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveWithin)
	defer cancel()
	e.mu.Lock()
	e.leaving = true
	e.cancel()
	e.mu.Unlock()
	e.prepared.clear() // what this process held goes back to the kernel as it is
	e.returning.Wait()
	e.watching.Wait()
	var passed, lost atomic.Int64
	var wg sync.WaitGroup
	for _, t := range e.tenancies() {
		wg.Go(func() {
			for _, c := range e.part(ctx, t) {
				err := errors.Join(e.keeper.Pass(t.slot, c.File, c.Terms), c.File.Close())
				if err != nil {
					lost.Add(1)
					e.cfg.Log.Error("a connection is not passed on, its client has to connect again", "lease_id", t.id, "error", err)
					continue
				}
				passed.Add(1)
				e.at(fail.EngineLeaving)
			}
		})
	}
	wg.Wait()
	e.cfg.Log.Info("leaving", "connections_passed", passed.Load(), "connections_lost", lost.Load())
}

// part ends the service of t and returns its connections, also those that were
// passed to this engine and not served yet.
func (e *Engine) part(ctx context.Context, t *tenancy) []nbd.Passed {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.erasure != nil:
		return nil
	case t.waits != nil:
		conns := t.waits.conns
		t.waits.conns = nil
		return conns
	case t.server != nil:
		// What waits for its share would have to wait before its connection can be
		// passed on. The next engine limits it again.
		t.path.volume.SetLimits(volume.Limits{})
		rested := make(chan error, 1)
		go func(d blockDevice) { rested <- pauseDevice(ctx, d) }(t.device) // beside: a connection may take all the time
		conns := t.server.Leave(ctx)
		if err := <-rested; err != nil {
			e.cfg.Log.Warn("a block device did not come to rest; it is taken over as after a crash", "lease_id", t.id, "error", err)
		}
		return conns
	}
	return nil
}
