package node

import (
	"context"
	"errors"
	"fmt"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
)

// This file ends leases, whoever asked: a tenant, the time to live, an opening
// that failed, recovery. One goroutine a lease:
//
//	1. endKey: the engine destroys the key, or the key is found gone. That is the
//	   erasure; nothing before it waits for journal or device.
//	2. quiet: nothing is in flight any more, or the drain deadline passes.
//	3. record: the CLOSE record is durable; the extents are free, or cleaning.
//	4. The sockets are removed. Callers of Close have their answer.
//	5. If the deadline had passed: quiet without one, and the extents are freed.
//
// A step that fails is tried again, with back-off, until the node ends; then the
// next node takes it up. Callers get their answer early where step 3 fails: the
// key is gone, and that is what they asked for.

// Close closes a lease and returns it when it is closed, or erased with its
// space withheld (its Text says why). Closing a lease that has ended returns it.
func (n *Node) Close(ctx context.Context, id string) (lease.Lease, error) {
	n.mu.Lock()
	e := n.leases[id]
	if e == nil {
		l, ok := n.past.byID[id]
		n.mu.Unlock()
		if !ok {
			return l, noLease(id)
		}
		return l, nil
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CloseWait)
	defer cancel()
	select {
	case <-e.opened: // an opening is not cut off: it is over in a moment
	case <-ctx.Done():
		return n.unfinished(ctx, e)
	}
	n.mu.Lock()
	n.startClose(e)
	n.mu.Unlock()
	select {
	case <-e.settled:
	case <-ctx.Done():
		return n.unfinished(ctx, e)
	case <-n.ctx.Done():
		return n.unfinished(n.ctx, e)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return e.view(), nil
}

// unfinished is what a caller gets who does not see the key's end.
func (n *Node) unfinished(ctx context.Context, e *entry) (lease.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := e.view()
	if l.State.Ended() {
		return l, nil
	}
	text := fmt.Sprintf("lease %s is %s; closing goes on", l.ID, l.State)
	if e.trouble != "" {
		text += " (" + e.trouble + ")"
	}
	return l, &Error{Kind: Unavailable, Object: l.ID, Text: text, Err: ctx.Err(), Next: "close it again to wait for the end"}
}

// startClose begins to close e, once. REQUIRES: n.mu is held, e's opening has
// ended.
func (n *Node) startClose(e *entry) {
	if e.closing {
		return
	}
	e.closing = true
	e.disarm()
	if e.l.State != lease.Closing { // an opening that failed is closing already
		n.move(e, lease.CloseAsked)
	}
	n.goLocked(func() { n.runClose(e) })
}

func (n *Node) runClose(e *entry) {
	if !n.endKey(e) {
		return
	}
	fail.At(fail.ControlErased)
	reason := n.quietSoon(e)
	n.mu.Lock()
	never := e.unwritten
	n.mu.Unlock()
	if never {
		n.discard(e, reason)
		return
	}
	if !n.record(e, reason) {
		return
	}
	fail.At(fail.ControlRecorded)
	n.removeSockets(e)
	if reason == nil {
		n.finish(e)
		return
	}
	n.stuck(e, "its space is withheld: "+reason.Error())
	n.settle(e)
	n.awaitQuiet(e)
}

// endKey returns true when no key of e exists: destroyed, or lost.
func (n *Node) endKey(e *entry) bool {
	var b backoff
	for {
		changed := n.kicked()
		er, err := n.cfg.Engine.CloseLease(n.ctx, e.l.ID) // ID never changes
		switch {
		case err == nil && er.ReadBack && er.KeyDestroyedNs != 0:
			n.erased(e, er)
			return true
		case err == nil:
			err = errors.New("the key was overwritten, but not read back as zeros")
		case codeOf(err) == ipc.CodeNotFound:
			if err = n.missing(e); err == nil {
				return true
			}
		}
		if n.ctx.Err() != nil {
			return false
		}
		n.stuck(e, "destroying the key: "+err.Error())
		if !b.wait(n, changed) {
			return false
		}
	}
}

// erased notes the erasure.
func (n *Node) erased(e *entry, er ipc.Erasure) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.trouble = ""
	e.l.Erasure = &lease.Erasure{BootID: n.hello.BootID, KeyGeneratedNs: e.madeNs(n.hello.BootID), GateClosedNs: er.GateClosedNs,
		CiphersDoneNs: er.CiphersDoneNs, KeyDestroyedNs: er.KeyDestroyedNs, ReadBack: er.ReadBack}
	result, text := n.verdict(e)
	n.over(e, result, text, lease.KeyGone)
}

// over notes that no key exists any more. REQUIRES: n.mu is held.
func (n *Node) over(e *entry, result lease.Result, text string, ev lease.Event) {
	if e.l.Result == "" { // an opening that failed has its result already
		e.l.Result, e.l.Text = result, text
	}
	e.l.ClosedAt = n.cfg.Clock().UTC().Round(0)
	e.trouble = ""
	n.cfg.Log.Info("lease ended", "lease_id", e.l.ID, "result", e.l.Result)
	n.move(e, ev)
}

// missing decides what became of a lease of which the engine says that it is
// neither open nor ended, and notes it: law L6, a record claims only what was
// observed. It returns an error while nothing can be said yet.
//
// Engines hand on both leases and endings (E2), in the memory of their keeper. So
// a keeper whose engine does not know a lease has undone its opening, of which
// nobody was told, or has given up its engines and destroyed every key. Which of
// the two it was, the engine tells.
func (n *Node) missing(e *entry) error {
	hello, err := n.cfg.Engine.Hello(n.ctx)
	if err != nil {
		return err
	}
	o := e.l.Origin // never changes
	var alive error // what keeps a lease of another keeper from being lost
	if o.BootID == hello.BootID && o.KeeperID != hello.KeeperID {
		alive = n.predecessorGone()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.l.Result == lease.Failed {
		n.over(e, lease.Failed, "", lease.KeyGone)
		return nil
	}
	_, pending := n.fence(e, hello.EngineID)
	switch {
	case o.BootID != hello.BootID:
		n.over(e, lease.LostBoot, "the host has restarted since it was opened", lease.KeyLost)
	case o.EngineID == hello.EngineID:
		// This engine would remember a lease that it had closed.
		n.over(e, lease.Failed, "its opening was cut off: the engine that it was opened with has no key of it", lease.KeyGone)
	case pending != "":
		return fmt.Errorf("an earlier engine may still write to drive %s, its fence is not held yet", pending)
	case o.KeeperID == hello.KeeperID && o.Generation > hello.Emptied:
		// Else the engines since would have handed it on.
		n.over(e, lease.Failed, "its opening was cut off by the end of the engine, and undone", lease.KeyGone)
	case o.KeeperID == hello.KeeperID:
		n.over(e, lease.LostEngine, "no engine could take it over, and the keeper destroyed its key", lease.KeyLost)
	case alive != nil:
		return alive
	default:
		n.over(e, lease.LostKeeper, "the keeper that held its key ended", lease.KeyLost)
	}
	return nil
}

// predecessorGone returns nil when no process of an earlier keeper is alive.
func (n *Node) predecessorGone() error {
	if n.cfg.PredecessorGone == nil {
		return errors.New("an earlier engine may still be alive: nobody can tell")
	}
	if err := n.cfg.PredecessorGone(); err != nil {
		return fmt.Errorf("an earlier engine may still be alive: %w", err)
	}
	return nil
}

// record makes the CLOSE record durable, with the extents free if nothing is in
// flight (pending is nil), else cleaning. It returns false when the node ends
// first, or when there is nothing to record.
func (n *Node) record(e *entry, pending error) bool {
	var b backoff
	l, te := n.lastWords(e, pending == nil) // once: whoever asks again must say the same
	for {
		stored, err := n.cfg.Store.CloseLease(l, pending == nil, te)
		switch {
		case err == nil:
			n.mu.Lock()
			defer n.mu.Unlock()
			e.l, e.trouble = stored, ""
			n.unbindFailed(stored)
			if stored.Space != lease.Free { // finish tells of its end
				n.publish(e.view())
			}
			return true
		case errors.Is(err, journal.ErrNotFound) && l.OpenSeq == 0:
			n.discard(e, pending)
			return false
		case errors.Is(err, journal.ErrStale): // a resize or a release came to its end meanwhile
			n.mu.Lock()
			e.l.SizeBytes, e.l.OpenBytes, e.l.Pieces, e.l.Proof.Released = stored.SizeBytes, stored.OpenBytes, stored.Pieces, stored.Proof.Released
			n.mu.Unlock()
			l, te = n.lastWords(e, pending == nil)
			continue
		}
		n.stuck(e, "the key is destroyed; the CLOSE record could not be written yet, and until then the space is withheld: "+
			n.storeFailed(err).Error())
		n.settle(e)
		if !b.wait(n, nil) {
			return false
		}
	}
}

// unbindFailed gives back the idempotency key of an opening that failed.
func (n *Node) unbindFailed(l lease.Lease) {
	if l.Result == lease.Failed {
		n.unbindKey(l)
	}
}

// discard drops a lease that is not in the journal: its opening failed before, or
// there.
func (n *Node) discard(e *entry, pending error) {
	if pending != nil && !n.waitQuiet(e) {
		return
	}
	n.removeSockets(e)
	n.mu.Lock()
	defer n.mu.Unlock()
	e.l.Space = lease.Free
	n.move(e, lease.Freed)
	n.unbindKey(e.l)
	n.forget(e)
}

// removeSockets removes the lease's folder. What cannot be removed is said, and
// removed at the next start.
func (n *Node) removeSockets(e *entry) {
	if err := n.cfg.Sockets.Remove(e.l.ID); err != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		e.l.Text = fmt.Sprintf("its socket could not be removed: %v", err)
		n.cfg.Log.Warn("removing sockets", "lease_id", e.l.ID, "error", err)
	}
}

// settle lets callers of Close have their answer.
func (n *Node) settle(e *entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	closeOnce(e.settled)
}

// awaitQuiet is step 5.
func (n *Node) awaitQuiet(e *entry) {
	if !n.waitQuiet(e) {
		return
	}
	var b backoff
	for {
		stored, err := n.cfg.Store.FreeSpace(e.l.ID)
		if err == nil {
			n.mu.Lock()
			e.l = stored
			n.mu.Unlock()
			break
		}
		n.stuck(e, "its space could not be freed yet: "+n.storeFailed(err).Error())
		if !b.wait(n, nil) {
			return
		}
	}
	n.removeSockets(e)
	n.finish(e)
}

// finish frees what e had: the journal has done so durably.
func (n *Node) finish(e *entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.trouble = ""
	if old := n.past.add(e.l); old != nil {
		n.unbindKey(*old)
	}
	n.publish(e.l)
	n.forget(e)
}
