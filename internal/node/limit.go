package node

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/limit"
)

// This file changes the limits of leases that are open:
//
//	1. The journal holds the new ones, durably.
//	2. The engine holds the volume to them, and hands them on to the next one.
//
// Where 2 fails the caller is told, and it is tried again until it is done, or
// the lease is closed. Control may have ended between the two: when journal and
// engine are brought together (recover.go), the journal is right.

// Limit holds an open lease's volume to limits, in place of those that it had. It
// may be asked again. After an error of kind Recovering the limits are noted, or
// will be when it is asked again; any other error leaves them as they were, where
// it does not say otherwise.
func (n *Node) Limit(ctx context.Context, id string, limits limit.Limits) (lease.Lease, error) {
	if err := checkLimits(limits); err != nil {
		return lease.Lease{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CloseWait)
	defer cancel()
	e, err := n.startLimit(ctx, id)
	if err != nil {
		return lease.Lease{}, err
	}
	stored, err := n.cfg.Store.LimitLease(id, limits)
	if err != nil {
		<-e.limiting
		return lease.Lease{}, n.notLimited(id, err)
	}
	n.mu.Lock()
	e.l.Limits = stored.Limits
	if e.l.State == lease.Open {
		n.publish(e.view())
	}
	n.mu.Unlock()
	if err := n.holdTo(n.ctx, e); err != nil {
		return lease.Lease{}, n.heldLater(e, err)
	}
	<-e.limiting
	n.mu.Lock()
	defer n.mu.Unlock()
	return e.view(), nil
}

// checkLimits says what is wrong with limits.
func checkLimits(l limit.Limits) error {
	if err := l.Check(); err != nil {
		return invalid("limits", "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

// startLimit returns lease id, open, with its limiting taken.
func (n *Node) startLimit(ctx context.Context, id string) (*entry, error) {
	e, err := n.onceOpened(ctx, id, notOpen)
	if err != nil {
		return nil, err
	}
	select {
	case e.limiting <- struct{}{}:
	case <-n.ctx.Done():
		return nil, errEnded
	case <-ctx.Done():
		return nil, &Error{Kind: Unavailable, Object: id, Text: fmt.Sprintf("limits of lease %s are being set, and the engine has not answered yet", id),
			Err: ctx.Err(), Next: "see `vacate status`, and try again"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.limiting(e); err != nil {
		<-e.limiting
		return nil, err
	}
	return e, nil
}

// limiting says why the limits of e cannot be changed now. REQUIRES: n.mu is held.
func (n *Node) limiting(e *entry) error {
	switch {
	case n.ended:
		return errEnded
	case n.unwritable() != nil:
		return &Error{Kind: Unavailable, Object: e.l.ID, Text: "the journal cannot be written, so limits cannot be changed", Err: n.unwritable(),
			Next: journalNext}
	case !n.ready:
		return errRecovering
	case e.l.State != lease.Open:
		return notOpen(e.view())
	}
	return nil
}

func notOpen(l lease.Lease) error {
	return &Error{Kind: Refused, Object: l.ID, Text: fmt.Sprintf("lease %s is %s: only an open lease can be limited", l.ID, l.State)}
}

// notLimited is what the caller gets when the journal failed.
func (n *Node) notLimited(id string, err error) error {
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return &Error{Kind: Refused, Object: id, Text: fmt.Sprintf("lease %s has just ended: only an open lease can be limited", id)}
	case errors.Is(n.storeFailed(err), journal.ErrUnchanged):
		return &Error{Kind: Unavailable, Object: id, Text: "the journal could not be written, so the limits are as they were", Err: err,
			Next: journalNext}
	}
	return fmt.Errorf("setting the limits of lease %s: %w", id, err)
}

// holdTo has the engine hold e to its limits. REQUIRES: e.limiting is the caller's.
func (n *Node) holdTo(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CloseWait)
	defer cancel()
	n.mu.Lock()
	req := ipc.LeaseLimitRequest{Lease: e.l.ID, Limits: e.l.Limits}
	n.mu.Unlock()
	return n.cfg.Engine.LimitLease(ctx, req)
}

// heldLater is what the caller gets when the engine did not answer, or refused.
// REQUIRES: e.limiting is the caller's, which it gives up.
func (n *Node) heldLater(e *entry, err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closing {
		<-e.limiting
		return notOpen(e.view())
	}
	n.cfg.Log.Warn("the engine does not hold a lease to its limits yet", "lease_id", e.l.ID, "error", err)
	n.goLocked(func() { n.insist(e) })
	return &Error{Kind: Recovering, Object: e.l.ID,
		Text: fmt.Sprintf("the limits of lease %s are noted, and its volume is held to them as soon as the engine answers", e.l.ID), Err: err,
		Next: "try again in a moment"}
}

// align holds e to its limits in the background. REQUIRES: n.mu is held.
func (n *Node) align(e *entry) {
	n.goLocked(func() {
		select {
		case e.limiting <- struct{}{}:
			n.insist(e)
		case <-n.ctx.Done():
		}
	})
}

// insist holds e to its limits, until that is done or nothing is left to hold.
// REQUIRES: e.limiting is the caller's, which it gives up.
func (n *Node) insist(e *entry) {
	defer func() { <-e.limiting }()
	var b backoff
	for {
		changed := n.kicked()
		n.mu.Lock()
		over := e.closing
		n.mu.Unlock()
		if over {
			return
		}
		err := n.holdTo(n.ctx, e)
		if err == nil || codeOf(err) == ipc.CodeNotFound || !b.wait(n, changed) {
			return
		}
	}
}
