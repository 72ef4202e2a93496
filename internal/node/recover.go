package node

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/lease"
)

// This file brings journal and engine together, at the start and when an engine
// took the place of another:
//
//	lease in          becomes
//	both, held        served: control ended after its record was durable. (What was
//	                  held when an engine ended, the next one does not have.)
//	both              open, as it was: control was restarted, or an engine took
//	                  over. It may still wait for the fence of its drives there,
//	                  which holds up its I/O and nothing else. It is held to the
//	                  limits that the journal has, and gets the size.
//	the journal only  closed, by close.go, which finds out how its key ended
//	the engine only   closed in the engine; nothing is recorded, it had no space
//	                  of this journal. No lease is opened until it has drained.
//
// Leases whose CLOSE record is durable, but whose space is not free, wait for
// their drives to be quiet, as they did before.

func (n *Node) recover(ctx context.Context, first bool) error {
	n.recoverMu.Lock()
	defer n.recoverMu.Unlock()
	n.mu.Lock()
	n.ready = false
	n.mu.Unlock()
	hello, err := n.cfg.Engine.Hello(ctx)
	if err != nil {
		return fmt.Errorf("asking the engine who it is: %w", err)
	}
	if hello.Slots <= 0 || hello.EngineID == "" || hello.KeeperID == "" || hello.BootID == "" {
		return fmt.Errorf("node: the engine does not say who it is: %+v", hello)
	}
	n.mu.Lock()
	n.hello = hello
	n.mu.Unlock()
	problem := n.openDrives(ctx, hello.EngineID)
	n.warn(problem)
	for {
		before := n.standing()
		list, err := n.cfg.Engine.Leases(ctx)
		if err != nil {
			return fmt.Errorf("asking the engine for its leases: %w", err)
		}
		if first {
			open := func(id string) bool {
				return slices.ContainsFunc(list.Leases, func(s ipc.LeaseStatus) bool { return s.Lease == id })
			}
			if err := n.cfg.Sockets.Clean(open); err != nil {
				return fmt.Errorf("cleaning up sockets: %w", err)
			}
		}
		if n.reconcile(list, before) {
			break
		}
	}
	fail.At(fail.ControlRecovered)
	return nil
}

// standing is the leases that there are, and whether their opening has ended:
// what the engine's list, asked for after that, can say something about.
func (n *Node) standing() map[string]bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := make(map[string]bool, len(n.leases))
	for id, e := range n.leases {
		all[id] = isClosed(e.opened)
	}
	return all
}

// reconcile decides about every lease, and starts what is to be done. Leases go
// on being closed meanwhile, and openings that were begun end: before is how they
// stood before the list was made. Where that is too old to decide by, nothing is
// done, and false returned: as no opening begins now, that ends.
func (n *Node) reconcile(list ipc.LeaseList, before map[string]bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	held := map[string]ipc.LeaseStatus{}
	for _, s := range list.Leases {
		held[s.Lease] = s
	}
	for id, e := range n.leases {
		if _, ok := held[id]; !ok && isClosed(e.opened) && !e.closing && !before[id] {
			return false // opened since
		}
	}
	for _, s := range list.Leases {
		_, known := before[s.Lease] // and perhaps closed since
		if n.leases[s.Lease] == nil && !known && !n.strangers[s.Lease] {
			n.strangers[s.Lease] = true
			n.cfg.Log.Warn("the engine holds a lease that the journal does not know", "lease_id", s.Lease)
			n.goLocked(func() { n.closeStranger(s.Lease) })
		}
	}
	for _, e := range sortedEntries(n.leases) {
		s, ok := held[e.l.ID]
		switch {
		case e.closing || e.l.State == lease.Opening && !isClosed(e.opened):
			// Whoever closes or opens it meets the new engine by itself.
		case e.l.CloseSeq != 0:
			e.closing = true
			closeOnce(e.settled)
			n.goLocked(func() { n.awaitQuiet(e) })
		case ok && s.Held && !s.Erased && s.Slot == e.l.Slot && e.l.State == lease.Opening:
			if !e.serving {
				e.serving = true
				n.goLocked(func() { n.serve(e) })
			}
		case ok && !s.Erased && s.Slot == e.l.Slot:
			if e.l.State == lease.Opening { // as the journal has it
				n.move(e, lease.Opened)
				n.arm(e)
			}
			e.unsure = false
			if s.Limits != e.l.Limits {
				n.align(e)
			}
			if s.SizeBytes < e.l.SizeBytes {
				n.alignSize(e)
			}
		default:
			n.startClose(e)
		}
	}
	n.ready = true
	n.kickLocked()
	return true
}

// serve has the engine serve a lease that it holds and whose OPEN record is durable,
// as the control that opened it had begun to.
func (n *Node) serve(e *entry) {
	var b backoff
	for {
		changed := n.kicked()
		err := n.cfg.Engine.ServeLease(n.ctx, e.l.ID) // ID never changes
		n.mu.Lock()
		// Closed meanwhile, or listed as open by the next engine: this one did serve it.
		over := e.closing || e.l.State != lease.Opening
		switch {
		case over:
		case err == nil:
			n.move(e, lease.Opened)
			n.arm(e)
			e.unsure = false
		case codeOf(err) != "":
			n.cfg.Log.Warn("a lease could not be served after a restart", "lease_id", e.l.ID, "error", err)
			n.startClose(e)
		}
		e.serving = !over && err != nil && codeOf(err) == ""
		again := e.serving
		n.mu.Unlock()
		if !again {
			return
		}
		if !b.wait(n, changed) {
			return
		}
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// sortedEntries are all entries by id, so that a run with the same faults does
// the same things.
func sortedEntries(m map[string]*entry) []*entry {
	all := make([]*entry, 0, len(m))
	for _, e := range m {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(a.l.ID, b.l.ID) })
	return all
}

// closeStranger closes a lease in the engine that is not the journal's.
func (n *Node) closeStranger(id string) {
	var b backoff
	for {
		_, err := n.cfg.Engine.CloseLease(n.ctx, id)
		if err == nil || codeOf(err) == ipc.CodeNotFound {
			err = n.cfg.Engine.Drain(n.ctx, id)
		}
		if err == nil || codeOf(err) == ipc.CodeNotFound {
			break
		}
		if !b.wait(n, nil) {
			return
		}
	}
	if err := n.cfg.Sockets.Remove(id); err != nil {
		n.cfg.Log.Warn("removing sockets", "lease_id", id, "error", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.strangers, id)
}
