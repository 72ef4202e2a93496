package node

import (
	"context"
	"errors"
	"fmt"

	"vacate/internal/ipc"
)

// This file says when no request of a lease can be in flight to a drive any more (N2).

// fence reports whether the engine holds the fences of all drives of e, and
// names one whose fence is still to be taken: one that is neither held nor known
// to be out of reach. REQUIRES: n.mu is held.
func (n *Node) fence(e *entry, engineID string) (held bool, pending string) {
	held = true
	for _, p := range e.l.Pieces {
		d := n.drives[p.Drive]
		if d.fence == engineID {
			continue
		}
		held = false
		if d.state == DriveReady || d.state == DriveBusy {
			pending = d.j.Path
		}
	}
	return held, pending
}

// errUnfenced is a fence that the engine may be about to take.
var errUnfenced = errors.New("an earlier engine's requests may be in flight to a drive whose fence is not held")

// quietSoon is quiet within the drain deadline. An engine that ends meanwhile is
// waited for, until the next one has the fence: it knows the lease.
func (n *Node) quietSoon(e *entry) error {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.DrainDeadline)
	defer cancel()
	var b backoff
	for {
		changed := n.kicked()
		err := n.quiet(ctx, e)
		again := errors.Is(err, ipc.ErrGone) || errors.Is(err, errUnfenced)
		if !again || ctx.Err() != nil || !b.wait(n, changed) {
			return err
		}
	}
}

// quiet returns nil when no I/O of e can be in flight (N2): the engine has
// drained it, or does not know it, and that engine holds the fences of its
// drives.
func (n *Node) quiet(ctx context.Context, e *entry) error {
	if err := n.cfg.Engine.Drain(ctx, e.l.ID); err != nil && codeOf(err) != ipc.CodeNotFound {
		return fmt.Errorf("requests are in flight to its drive: %w", err)
	}
	hello, err := n.cfg.Engine.Hello(ctx)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	held, pending := n.fence(e, hello.EngineID)
	switch {
	case held:
		return nil
	case pending != "":
		return errUnfenced
	}
	return errors.New("an earlier engine's requests may be in flight to a drive whose fence cannot be held")
}

// waitQuiet is quiet without a deadline; false when the node ends first.
func (n *Node) waitQuiet(e *entry) bool {
	var b backoff
	for {
		changed := n.kicked()
		err := n.quiet(n.ctx, e)
		if err == nil {
			return true
		}
		if n.ctx.Err() != nil {
			return false
		}
		n.stuck(e, "its space is withheld: "+err.Error())
		if !b.wait(n, changed) {
			return false
		}
	}
}
