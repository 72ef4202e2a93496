package node

import (
	"time"

	"vacate/internal/lease"
)

// This file ends leases when their time is over: that to live, and that by which
// the key has to be destroyed, which the OPEN record promises.
//
// The time to live is the node's own: it passes as the machine's clock ticks,
// however the wall clock is put. The other is a promise to somebody else, in his
// time: the wall clock is looked at again and again, and a lease ends when either
// clock says so.

// leastPromise is how far away the time to erase a lease by must be when it is
// opened: closing it is begun before, and has to find the time.
const leastPromise = time.Minute

// wallLook is how often the wall clock is asked whether a promise falls due.
const wallLook = 10 * time.Second

// ends is when a lease that is opened now ends by itself; zero: never.
func (n *Node) ends(req OpenRequest, now time.Time) (end time.Time, err error) {
	if req.TTL > 0 {
		end = now.Add(req.TTL)
	}
	if req.EraseBy.IsZero() {
		return end, nil
	}
	left := req.EraseBy.Sub(now)
	if left < leastPromise {
		at := req.EraseBy.Format(time.RFC3339)
		return end, invalid(at, "the time by which the lease must be erased, %s, is %v away: a minute is the least", at, left.Round(time.Second))
	}
	if by := req.EraseBy.Add(-min(n.cfg.EraseMargin, left/2)); end.IsZero() || by.Before(end) {
		end = by
	}
	return end, nil
}

// arm starts the time that an open lease has. It never gets more than its whole
// time, however far the wall clock was put back since it was opened, and however often
// control was started anew: how long ago the key was made, on this boot, is known.
// REQUIRES: n.mu is held.
func (n *Node) arm(e *entry) {
	if e.l.ExpiresAt.IsZero() {
		return
	}
	whole := e.l.ExpiresAt.Sub(e.l.OpenedAt)
	if made := e.madeNs(n.hello.BootID); made != 0 {
		whole -= time.Duration(n.cfg.Boottime() - made)
	}
	e.end = time.Now().Add(max(0, min(whole, e.l.ExpiresAt.Sub(n.cfg.Clock()))))
	n.await(e)
}

// left is how long e may still be open. REQUIRES: n.mu is held.
func (n *Node) left(e *entry) time.Duration {
	d := time.Until(e.end)
	if !e.l.Proof.EraseBy.IsZero() {
		d = min(d, e.l.ExpiresAt.Sub(n.cfg.Clock()))
	}
	return d
}

// await looks again when e may have to end. REQUIRES: n.mu is held.
func (n *Node) await(e *entry) {
	d := max(0, n.left(e))
	if !e.l.Proof.EraseBy.IsZero() {
		d = min(d, wallLook)
	}
	e.ttl = time.AfterFunc(d, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		switch {
		case n.ended || e.l.State != lease.Open:
		case n.left(e) > 0:
			n.await(e)
		default:
			n.cfg.Log.Info("the time of a lease is over", "lease_id", e.l.ID)
			n.startClose(e)
		}
	})
}
