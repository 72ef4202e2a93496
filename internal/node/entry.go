package node

import (
	"context"
	"time"

	"vacate/internal/lease"
)

// An entry is a lease whose space is not free. Node.mu guards its fields; opened,
// settled and gone are closed under it, once.
type entry struct {
	opened  chan struct{} // its opening has ended, either way
	settled chan struct{} // callers of Close have waited enough
	gone    chan struct{} // its space is free; the entry is in no map any more

	limiting chan struct{} // capacity 1; full while somebody sets its limits (limit.go)
	resizing chan struct{} // likewise, while somebody resizes it (resize.go)

	l         lease.Lease
	openErr   error       // what its opening ended with
	abandoned bool        // who opened it has left without a way to find it again
	unsure    bool        // it is the journal's, and no engine has said yet what became of it
	unwritten bool        // its OPEN record is surely not in the journal
	serving   bool        // a goroutine has the engine serve it, after a restart of control
	closing   bool        // a goroutine is closing it, or waits for its space
	ttl       *time.Timer // nil without one
	end       time.Time   // monotonic: when its time is over; see arm
	trouble   string      // why closing does not get on
}

func newEntry(l lease.Lease) *entry {
	return &entry{l: l, opened: make(chan struct{}), settled: make(chan struct{}), gone: make(chan struct{}),
		limiting: make(chan struct{}, 1), resizing: make(chan struct{}, 1)}
}

// closeOnce closes a channel that is not closed yet. REQUIRES: Node.mu is held.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

func (e *entry) finishOpening(err error) {
	e.openErr = err
	closeOnce(e.opened)
}

func (e *entry) disarm() {
	if e.ttl != nil {
		e.ttl.Stop()
	}
}

// madeNs is when its key came to be, on the boot of that id; 0: nobody saw it.
func (e *entry) madeNs(bootID string) int64 {
	if e.l.Origin.BootID != bootID {
		return 0
	}
	return e.l.Proof.KeyGeneratedNs
}

// view is the lease as others see it.
func (e *entry) view() lease.Lease {
	l := e.l
	if e.trouble != "" {
		l.Text = e.trouble
	}
	return l
}

// move applies events to a lease. An event that cannot happen is a bug here.
// REQUIRES: n.mu is held.
func (n *Node) move(e *entry, events ...lease.Event) {
	for _, ev := range events {
		if err := e.l.Apply(ev); err != nil {
			panic("node: lease " + e.l.ID + ": " + err.Error())
		}
	}
	n.publish(e.view())
}

// forget takes the entry out of the maps: its space, slot and key are free.
// REQUIRES: n.mu is held; N2.
func (n *Node) forget(e *entry) {
	for _, p := range e.l.Pieces {
		n.drives[p.Drive].space.Free(p.Range)
	}
	n.slots[e.l.Slot] = false
	delete(n.leases, e.l.ID)
	closeOnce(e.opened)
	closeOnce(e.settled)
	closeOnce(e.gone)
	n.kickLocked()
}

// stuck notes why closing does not get on; the first time of a reason it is
// logged.
func (n *Node) stuck(e *entry, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.trouble != why {
		e.trouble = why
		n.cfg.Log.Warn("closing does not get on", "lease_id", e.l.ID, "state", e.l.State, "error", why)
		n.publish(e.view())
	}
}

// onceOpened returns lease id when its opening has come to an end. ended says why
// one that has ended will not do.
func (n *Node) onceOpened(ctx context.Context, id string, ended func(lease.Lease) error) (*entry, error) {
	n.mu.Lock()
	e := n.leases[id]
	past, over := n.past.byID[id]
	n.mu.Unlock()
	switch {
	case e != nil:
	case over:
		return nil, ended(past)
	default:
		return nil, noLease(id)
	}
	select {
	case <-e.opened:
		return e, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
