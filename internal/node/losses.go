package node

import (
	"fmt"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
)

// A drive that may have lost completed writes, of which the engine tells
// ([ipc.Losses]), is lost to its leases:
//
//  1. No lease is placed on it any more, and those that are open are closed, with
//     the result lost_drive (law L6: the key was destroyed as ever, and that is
//     recorded too).
//  2. When no lease has space on it, the engine closes it, and opens it anew with
//     whatever is at its path then.
//
// Nothing of this is in the journal: an engine says it again to whoever asks, and
// the next engine finds it out by itself.

// watchLosses notes what the engine tells, until the node ends.
func (n *Node) watchLosses() {
	var b backoff
	seen := uint64(0)
	for {
		changed := n.kicked()
		l, err := n.cfg.Engine.Losses(n.ctx, seen)
		if err == nil {
			n.noteLosses(l)
			seen, b = l.Seen, backoff{}
			continue
		}
		if n.ctx.Err() != nil || !b.wait(n, changed) {
			return
		}
		seen = 0
	}
}

func (n *Node) noteLosses(l ipc.Losses) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, loss := range l.Drives {
		// What has come late may be of a drive that was opened anew since.
		if d := n.drives[loss.UUID]; d != nil && loss.Opening >= d.info.Opening {
			n.lose(d, loss.Why)
		}
	}
}

// lose notes that d is lost, and closes its leases. REQUIRES: n.mu is held.
func (n *Node) lose(d *drive, why string) {
	if d.lost == "" {
		n.cfg.Log.Error("a drive may have lost completed writes: its leases are closed", "drive", d.j.Path, "error", why)
	}
	d.state, d.why, d.lost = DriveLost, why, why
	d.told++
	n.endLost()
	n.kickLocked()
}

// endLost closes the open leases on drives that are lost. REQUIRES: n.mu is held.
func (n *Node) endLost() {
	for _, e := range sortedEntries(n.leases) {
		if e.l.State == lease.Open && !e.closing && n.lostDrive(e) != nil {
			n.startClose(e)
		}
	}
}

// lostDrive returns a drive of e's that is lost, or nil. REQUIRES: n.mu is held.
func (n *Node) lostDrive(e *entry) *drive {
	for _, p := range e.l.Pieces {
		if d := n.drives[p.Drive]; d.lost != "" {
			return d
		}
	}
	return nil
}

// verdict is how a lease ends whose key was destroyed just now. REQUIRES: n.mu is
// held.
func (n *Node) verdict(e *entry) (lease.Result, string) {
	if d := n.lostDrive(e); d != nil {
		return lease.LostDrive, fmt.Sprintf("drive %s may have lost completed writes: %s", d.j.Path, d.lost)
	}
	return lease.OK, ""
}

// retireLost has the engine close the lost drives on which no lease has space any
// more, so that they are opened anew. It is called by who opens drives.
func (n *Node) retireLost() {
	n.mu.Lock()
	n.endLost() // those whose opening was under way
	var done []*drive
	for _, d := range n.drives {
		used := slices.ContainsFunc(sortedEntries(n.leases), func(e *entry) bool {
			return slices.ContainsFunc(e.l.Pieces, func(p extent.Piece) bool { return p.Drive == d.j.UUID })
		})
		if d.lost != "" && d.state == DriveLost && !used {
			done = append(done, d)
		}
	}
	n.mu.Unlock()
	slices.SortFunc(done, compareUUID)
	for _, d := range done {
		err := n.cfg.Engine.CloseDrive(n.ctx, ipc.DriveCloseRequest{UUID: d.j.UUID})
		if err != nil && codeOf(err) != ipc.CodeNotFound {
			n.cfg.Log.Debug("closing a lost drive", "drive", d.j.Path, "error", err) // it is tried again
			continue
		}
		n.mu.Lock()
		d.state, d.why, d.fence, d.lost = DriveMissing, "it was lost, and is opened anew: "+d.lost, "", ""
		n.mu.Unlock()
	}
}
