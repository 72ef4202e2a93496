package engine

import (
	"context"
	"time"

	"vacate/internal/fail"
)

// A lease that was taken over comes back when this engine holds the fences of
// its drives, whatever other leases still wait for:
//
//  1. Each drive that is opened is taken off the leases that miss it (hasFence).
//  2. The last one brings the lease back (comeBack), on a goroutine of its own.
//  3. The path is built, clients are accepted, and connections that were passed
//     go on. A lease that was closed meanwhile is only let drain.
//  4. A while later its written blocks are counted, for its statistics.

// restored is the time after a take-over by which no client waits any more. What
// is not needed to serve is put off until then.
const restored = time.Second

// hasFence tells the leases that a drive is open. REQUIRES: e.mu is held.
func (e *Engine) hasFence(uuid string) {
	for _, t := range e.leases {
		if !t.missing[uuid] {
			continue
		}
		delete(t.missing, uuid)
		if len(t.missing) == 0 {
			e.comeBack(t)
		}
	}
}

// comeBack serves t again, as soon as everything is taken over. REQUIRES: e.mu
// is held, and t misses no drive.
func (e *Engine) comeBack(t *tenancy) {
	if e.leaving {
		return
	}
	e.returning.Go(func() {
		select {
		case <-e.up:
		case <-e.ctx.Done():
			return
		}
		if err := e.resume(t); err != nil {
			e.cfg.Log.Error("a lease that was taken over cannot be served; its key is kept until it is closed", "lease_id", t.id, "error", err)
		}
		close(t.fenced)
		e.at(fail.EngineServing)
	})
}

// resume builds the path of t and serves it, if it is still to be served. A close
// comes in between (launch).
func (e *Engine) resume(t *tenancy) error {
	e.mu.Lock()
	space, err := place(t.pieces, t.size, e.rooms())
	e.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waits == nil || t.shut.GateClosedNs != 0 {
		return nil
	}
	if err != nil {
		return err
	}
	// Another build's cipher may lay out its schedules in another way.
	sched, err := e.expand(t)
	if err != nil {
		return err
	}
	if t.path, err = e.build(t, space, sched); err != nil {
		return err
	}
	t.parting = false
	open, err := e.launch(t)
	if !open {
		return nil
	}
	if t.server == nil {
		t.path = nil
		return err
	}
	if err != nil {
		e.cfg.Log.Error("an export of a lease that was taken over cannot be served; the other one is", "lease_id", t.id, "error", err)
	}
	if err := t.server.Adopt(t.waits.conns); err != nil {
		e.cfg.Log.Error("connections were not taken over, their clients have to connect again", "lease_id", t.id, "error", err)
	}
	e.resumeDevice(t)
	e.cfg.Log.Debug("taking over: served again", "lease_id", t.id, "connections", len(t.waits.conns), "after", time.Since(e.started))
	t.disinherit()
	e.count(t)
	return nil
}

// count has the written blocks of t counted later. REQUIRES: t.mu is held, and t
// has a path.
func (e *Engine) count(t *tenancy) {
	ctx, cancel := context.WithCancel(e.ctx)
	t.stopCounting = cancel
	blocks := t.path.blocks
	t.counting.Go(func() {
		defer cancel()
		select {
		case <-time.After(restored):
			blocks.Count(ctx)
		case <-ctx.Done():
		}
	})
}
