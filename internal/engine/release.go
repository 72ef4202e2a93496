package engine

import (
	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/secret"
)

// releaseKey seals the key of an open lease to a key of its tenant's, and the node's
// half with it, if there is one. Control has made durable that it does (law L6); who
// has the key can read the drive from now on, and whoever it is told to.
func (e *Engine) releaseKey(req *ipc.LeaseReleaseRequest) (*ipc.LeaseReleased, error) {
	if err := e.guarded(); err != nil {
		return nil, err
	}
	if len(req.Recipient) != keyshare.RecipientSize {
		return nil, invalid("lease %s: a recipient key of %d bytes, want %d", req.Lease, len(req.Recipient), keyshare.RecipientSize)
	}
	t, ended, err := e.lease(req.Lease)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		return nil, notFound("lease %s has ended: its key is destroyed", req.Lease)
	}
	defer secret.Forget()
	// Under t.mu, so that the key stays; a close waits for it, for processor time.
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.standing(t); err != nil {
		return nil, err
	}
	slot := e.keys.Slot(t.slot)
	var node *[keyshare.ShareSize]byte
	if isSplit(slot) {
		node = nodeHalf(slot)
	}
	sealed, err := keyshare.SealRelease(req.Recipient, t.id, (*[keyshare.KeySize]byte)(slot), node)
	if err != nil {
		return nil, invalid("%v", err)
	}
	return &ipc.LeaseReleased{Sealed: sealed}, nil
}
