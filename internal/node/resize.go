package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"vacate/internal/extent"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
)

// This file makes the volumes of open leases larger:
//
//	1. What space they need beside their own is taken in memory (grow.go).
//	2. The journal holds size, space and a RESIZE record, durably.
//	3. The engine gives the volume its size.
//
// When 2 surely did nothing, 1 is taken back. Where 2 or 3 fails otherwise the
// caller is told, and it is tried again until it is done, or the lease is closed.
// Control may have ended between the two: when journal and engine are brought
// together (recover.go), the journal is right. So the volume has its old size or
// its new one, and no space that the journal does not have.

// Resize makes an open lease's volume larger; its new blocks read as zeros. It may
// be asked again: to the size that it has it changes nothing. After an error of
// kind Recovering the new size is noted, or will be when it is asked again; any
// other error leaves the old one, where it does not say otherwise. With plan it
// returns the lease as it would be, and changes nothing.
func (n *Node) Resize(ctx context.Context, id string, sizeBytes int64, plan bool) (lease.Lease, error) {
	if err := checkSize(sizeBytes); err != nil {
		return lease.Lease{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CloseWait)
	defer cancel()
	e, err := n.startResize(ctx, id)
	if err != nil {
		return lease.Lease{}, err
	}
	g, err := n.plan(e, sizeBytes, plan)
	if err != nil || plan {
		<-e.resizing
		return n.planned(e, g), err
	}
	if g.size != g.was {
		known, err := n.storeSize(e, g)
		switch {
		case !known:
			return lease.Lease{}, n.resizedLater(e, g, err)
		case err != nil:
			<-e.resizing
			return lease.Lease{}, n.notResized(id, err)
		}
	}
	fail.At(fail.ControlResizing)
	if err := n.stretchTo(n.ctx, e); err != nil {
		return lease.Lease{}, n.resizedLater(e, nil, err)
	}
	fail.At(fail.ControlResized)
	<-e.resizing
	n.cfg.Log.Info("lease resized", "lease_id", id, "size_bytes", sizeBytes)
	n.mu.Lock()
	defer n.mu.Unlock()
	return e.view(), nil
}

// startResize returns lease id, open, with its resizing taken.
func (n *Node) startResize(ctx context.Context, id string) (*entry, error) {
	e, err := n.onceOpened(ctx, id, cannotGrow)
	if err != nil {
		return nil, err
	}
	select {
	case e.resizing <- struct{}{}:
		return e, nil
	case <-n.ctx.Done():
		return nil, errEnded
	case <-ctx.Done():
		return nil, &Error{Kind: Unavailable, Object: id, Text: fmt.Sprintf("lease %s is being resized, and the engine has not answered yet", id),
			Err: ctx.Err(), Next: "see `vacate status`, and try again"}
	}
}

// growing says why the volume of e cannot be made larger now. REQUIRES: n.mu is held.
func (n *Node) growing(e *entry) error {
	switch {
	case n.ended:
		return errEnded
	case n.unwritable() != nil:
		return &Error{Kind: Unavailable, Object: e.l.ID, Text: "the journal cannot be written, so no lease can be resized", Err: n.unwritable(),
			Next: journalNext}
	case !n.ready:
		return errRecovering
	case e.l.State != lease.Open || e.closing:
		return cannotGrow(e.view())
	}
	return nil
}

func cannotGrow(l lease.Lease) error {
	return &Error{Kind: Refused, Object: l.ID, Text: fmt.Sprintf("lease %s is %s: only an open lease can be resized", l.ID, l.State)}
}

// notResized is what the caller gets when the journal refused.
func (n *Node) notResized(id string, err error) error {
	if errors.Is(err, journal.ErrNotFound) {
		return &Error{Kind: Refused, Object: id, Text: fmt.Sprintf("lease %s has just ended: only an open lease can be resized", id)}
	}
	return &Error{Kind: Unavailable, Object: id, Text: "the journal could not be written, so the lease has its old size", Err: err,
		Next: journalNext}
}

// storeSize is step 2. Where it surely did nothing, step 1 is taken back. known
// says that it is settled what the journal has, and what belongs to whom.
// REQUIRES: e.resizing is the caller's.
func (n *Node) storeSize(e *entry, g *growth) (known bool, err error) {
	stored, err := n.cfg.Store.ResizeLease(g.id, g.size, g.pieces)
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil:
		e.l.SizeBytes, e.l.OpenBytes, e.l.Pieces = stored.SizeBytes, stored.OpenBytes, stored.Pieces
		if e.l.State == lease.Open {
			n.publish(e.view())
		}
		return true, nil
	case !errors.Is(n.storeFailed(err), journal.ErrUnchanged):
		g.unsure = true
	case !g.unsure:
		g.takeBack()
		return true, err
	case errors.Is(err, journal.ErrNotFound):
		// It has ended, with what an earlier try gave it, or without. (Where the
		// journal has forgotten it too, what was taken is free at the next start.)
		if stored.ID != "" && stored.SizeBytes < g.size {
			g.takeBack()
		}
		return true, err
	}
	return false, err
}

// stretchTo is step 3. REQUIRES: e.resizing is the caller's.
func (n *Node) stretchTo(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CloseWait)
	defer cancel()
	n.mu.Lock()
	req := ipc.LeaseResizeRequest{Lease: e.l.ID, SizeBytes: e.l.SizeBytes, Pieces: e.l.Pieces}
	n.mu.Unlock()
	return n.cfg.Engine.ResizeLease(ctx, req)
}

// resizedLater is what the caller gets when journal or engine did not answer. With
// g it was the journal. REQUIRES: e.resizing is the caller's, which it gives up.
func (n *Node) resizedLater(e *entry, g *growth, err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closing && g == nil {
		<-e.resizing
		return cannotGrow(e.view())
	}
	n.cfg.Log.Warn("a lease does not have its new size yet", "lease_id", e.l.ID, "error", err)
	n.goLocked(func() { n.persevere(e, g) })
	return &Error{Kind: Recovering, Object: e.l.ID,
		Text: fmt.Sprintf("the new size of lease %s is noted, and its volume has it as soon as the engine answers", e.l.ID), Err: err,
		Next: "try again in a moment"}
}

// alignSize gives the volume of e its size in the background. REQUIRES: n.mu is held.
func (n *Node) alignSize(e *entry) {
	n.goLocked(func() {
		select {
		case e.resizing <- struct{}{}:
			n.persevere(e, nil)
		case <-n.ctx.Done():
		}
	})
}

// persevere carries out what is left of a resize, until that is done or nothing is
// left to resize: with g step 2, and then step 3. REQUIRES: e.resizing is the
// caller's, which it gives up.
func (n *Node) persevere(e *entry, g *growth) {
	defer func() { <-e.resizing }()
	var b backoff
	for {
		changed := n.kicked()
		var err error
		if g != nil {
			var known bool
			if known, err = n.storeSize(e, g); known && err != nil {
				return
			}
		}
		if err == nil {
			g = nil
			n.mu.Lock()
			over := e.closing
			n.mu.Unlock()
			if over {
				return
			}
			err = n.stretchTo(n.ctx, e)
		}
		if err == nil || codeOf(err) == ipc.CodeNotFound || !b.wait(n, changed) {
			return
		}
	}
}

// A growth is what a lease gets.
type growth struct {
	id        string
	was, size int64
	pieces    []extent.Piece // all that it has from then on
	more      []extent.Piece // of them those that it did not have; taken
	rooms     []room
	unsure    bool // the journal may have it
}

// takeBack gives back what was taken. REQUIRES: n.mu is held.
func (g *growth) takeBack() { giveBack(g.rooms, g.more) }

// planned is e as it would be.
func (n *Node) planned(e *entry, g *growth) lease.Lease {
	if g == nil {
		return lease.Lease{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l := e.view()
	if l.SizeBytes != g.size {
		l.OpenBytes = cmp.Or(l.OpenBytes, l.SizeBytes)
	}
	l.SizeBytes, l.Pieces = g.size, g.pieces
	return l
}
