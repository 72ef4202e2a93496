package attach

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// This file looks after devices that are there already: one goroutine a device, while
// there is something to do about it.
//
//	lease             device
//	open              made, served and started again, unless this engine serves it
//	opening, closing  looked at again in a moment
//	ended, unknown    removed by force
//
// A device that is said to be served, by an engine that nobody here has seen taking
// it, is watched for Config.Settle: the kernel learns of an engine's end some seconds
// later.

// Run does what is to be done when leases end and engines change, until ctx is done,
// and then ends the connection.
func (a *Attacher) Run(ctx context.Context) {
	a.mu.Lock()
	a.run = ctx
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.run = nil // no goroutine is started from here on
		a.mu.Unlock()
		a.link.close()
		a.wg.Wait()
	}()
	a.Recovered()
	for {
		select {
		case <-a.kick:
		case <-ctx.Done():
			return
		}
		b := a.backoff()
		for {
			all, err := a.list(ctx)
			if err == nil {
				for id := range all {
					a.look(id, false)
				}
				break
			}
			if errors.Is(err, errAbsent) {
				break // who comes is asked
			}
			if !passes(err) && ctx.Err() == nil {
				a.cfg.Log.Warn("looking for block devices", "error", err)
			}
			if !b.wait(ctx) {
				return
			}
		}
	}
}

// Recovered has all devices looked at: an engine has taken over and knows its leases,
// or the devices process came back. It does not wait.
func (a *Attacher) Recovered() {
	select {
	case a.kick <- struct{}{}:
	default: // they will be
	}
}

// Ended has the device of a lease removed by force that has ended, where it may have
// one. It does not wait.
func (a *Attacher) Ended(id string) {
	a.mu.Lock()
	may := a.touched[id]
	a.mu.Unlock()
	if may {
		a.look(id, false)
	}
}

// EndedSince does what Ended does for all leases that have ended: for who cannot tell
// which did.
func (a *Attacher) EndedSince() {
	a.mu.Lock()
	ids := make([]string, 0, len(a.touched))
	for id := range a.touched {
		ids = append(ids, id)
	}
	a.mu.Unlock()
	for _, id := range ids {
		if l, err := a.cfg.Lease(id); err != nil || l.State.Ended() {
			a.look(id, false)
		}
	}
}

// A look is a device that somebody looks after.
type look struct {
	again    bool          // once more: things have changed
	unwanted bool          // the device shall go, whatever its lease
	wake     chan struct{} // capacity 1: again was set, which does not wait for a back-off
}

// look has a device looked after. unwanted: it is to be removed, whatever its lease.
func (a *Attacher) look(id string, unwanted bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.looks[id]; l != nil {
		l.again, l.unwanted = true, l.unwanted || unwanted
		select {
		case l.wake <- struct{}{}:
		default:
		}
		return
	}
	if a.run == nil || a.run.Err() != nil {
		return // whoever runs next looks at all
	}
	l, ctx := &look{unwanted: unwanted, wake: make(chan struct{}, 1)}, a.run
	a.looks[id] = l
	a.wg.Go(func() { a.lookAfter(ctx, id, l) })
}

func (a *Attacher) lookAfter(ctx context.Context, id string, l *look) {
	began, b, said := time.Now(), a.backoff(), ""
	for {
		a.mu.Lock()
		l.again = false
		a.mu.Unlock()
		err := a.settle(ctx, id, time.Since(began) >= a.cfg.Settle)
		if err != nil && !passes(err) && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			a.cfg.Log.Warn("a block device is not as it should be", "lease_id", id, "error", err)
		}
		a.mu.Lock()
		if ctx.Err() != nil || err == nil && !l.again {
			delete(a.looks, id)
			a.mu.Unlock()
			return
		}
		again := l.again
		a.mu.Unlock()
		if !again {
			again = b.waitOr(ctx, l.wake)
		}
		if again { // things have changed
			began, b = time.Now(), a.backoff()
		}
	}
}

// isUnwanted reports whether a lease's device is to be removed, whatever its lease.
func (a *Attacher) isUnwanted(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.looks[id]
	return l != nil && l.unwanted
}

// wanted takes back that a lease's device is to be removed: it was attached again.
//
// REQUIRES: the lease's lock is held.
func (a *Attacher) wanted(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.looks[id]; l != nil {
		l.unwanted = false
	}
}

// settle makes a device what it should be, or returns why it is not yet. sure: one that
// is said to be served is.
func (a *Attacher) settle(ctx context.Context, id string, sure bool) error {
	unlock, err := a.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	select {
	case a.free <- struct{}{}:
		defer func() { <-a.free }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Wait) // so that one that hangs holds up nobody for long
	defer cancel()
	l, err := a.cfg.Lease(id)
	var known *node.Error
	gone := errors.As(err, &known) && known.Kind == node.NotFound
	switch {
	case gone, err == nil && l.State.Ended(), a.isUnwanted(id):
		return a.remove(ctx, id, true)
	case err != nil:
		return err
	case l.State != lease.Open:
		return fmt.Errorf("%w: lease %s is %s", errAgain, id, l.State)
	}
	return a.reattach(ctx, l, sure)
}

// reattach has the engine that there is serve the device of an open lease.
func (a *Attacher) reattach(ctx context.Context, l lease.Lease, sure bool) error {
	if _, has := a.Device(l.ID); !has {
		return nil // it was detached meanwhile, or never came to be
	}
	d, err := a.steps(ctx, l, new(bool))
	if err != nil {
		return err
	}
	now, err := a.cfg.Lease(l.ID)
	if err != nil || !mayHave(now.State) {
		return fmt.Errorf("%w: lease %s has ended", errAgain, l.ID)
	}
	if !sure && d.Kind == ipc.DeviceUblk && a.servedBy(l.ID) == 0 {
		return fmt.Errorf("%w: who serves the block device of lease %s is not known yet", errAgain, l.ID)
	}
	return nil
}
