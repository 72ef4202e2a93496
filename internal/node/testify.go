package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/plant"
	"vacate/proof"
)

// This file says what records of leases claim and commit to, and gives keys away.
// Control never sees a key: what commits to one comes from the engine.

// DriveFacts are what is known of a drive that holds space of a lease.
type DriveFacts struct {
	UUID   string
	Salt   string // of the records' driveCommit; empty where they have none
	Kind   string // this and the next two as the driveCommit has them
	Model  string
	Serial string
	Path   string // as it was enrolled
}

// identity returns the id of a lease that is to be opened, and the salt of its
// tenant's name; none where there is no name.
func (n *Node) identity(req OpenRequest) (id, salt string, err error) {
	if id = req.Prepared; id == "" {
		if id, err = lease.NewID(n.cfg.Rand); err != nil {
			return "", "", err
		}
	}
	if req.Tenant != "" {
		salt, err = n.salt()
	}
	return id, salt, err
}

// salt is fresh, in hexadecimal digits.
func (n *Node) salt() (string, error) {
	var b [proof.SaltLen]byte
	if _, err := io.ReadFull(n.cfg.Rand, b[:]); err != nil {
		return "", fmt.Errorf("reading randomness for a salt: %w", err)
	}
	return hex.EncodeToString(b[:]), nil
}

// commitments adds to p what the engine said of a key.
func commitments(p lease.Proof, o ipc.LeaseOpened) lease.Proof {
	p.KeyMode, p.KeyCommit, p.KeySalt, p.KeyGeneratedNs = o.KeyMode, o.KeyCommit, o.KeySalt, o.KeyGeneratedNs
	p.NodeCommit, p.NodeSalt, p.ShareCommit, p.ShareSalt = o.NodeCommit, o.NodeSalt, o.ShareCommit, o.ShareSalt
	return p
}

// guestMemory is claimed of no lease: what a guest held in its own memory is its
// host's matter. The annex has what was observed of that.
const guestMemory = "guest_memory"

// testimony is what a record of l claims, and what it says that it does not. Whether
// a boot was measured, and whether witnesses saw a record, is not the record's to
// say.
func (n *Node) testimony(t proof.Type, l lease.Lease) journal.Testimony {
	te := journal.Testimony{Claims: []string{proof.ClaimAsserted}, NotClaimed: []string{proof.ClaimDevicePurged, guestMemory, proof.ClaimScanned}}
	claim := func(name string, is bool) {
		if is {
			te.Claims = append(te.Claims, name)
		} else {
			te.NotClaimed = append(te.NotClaimed, name)
		}
	}
	switch t {
	case proof.OPEN, proof.CLOSE:
		claim(proof.ClaimKeyCommitted, l.Proof.KeyCommit != "" && !l.Proof.Released)
		claim(proof.ClaimTenantShare, l.Proof.KeyMode == ipc.KeyModeSplit)
	case proof.ENROL:
		te.NotClaimed = []string{proof.ClaimDevicePurged}
	default:
		te.NotClaimed = nil
	}
	if n.cfg.Beacon != nil {
		te.Beacon = n.cfg.Beacon()
	}
	return te
}

// lastWords is e as it ends, and the testimony of its CLOSE, annex included.
func (n *Node) lastWords(e *entry, drained bool) (lease.Lease, journal.Testimony) {
	n.mu.Lock()
	l := e.l
	n.mu.Unlock()
	te := n.testimony(proof.CLOSE, l)
	if n.cfg.Annex == nil {
		return l, te
	}
	told := l
	if l.Erasure != nil {
		er := *l.Erasure
		er.Drained = drained
		told.Erasure = &er
	}
	annex, err := n.cfg.Annex(told, n.driveFacts(l))
	if err == nil && len(annex) > journal.MaxAnnex {
		err = fmt.Errorf("the annex has %d bytes, at most %d are kept", len(annex), journal.MaxAnnex)
	}
	if err != nil {
		n.cfg.Log.Error("a lease ends without an annex", "lease_id", l.ID, "error", err)
		return l, te
	}
	te.Annex = annex
	return l, te
}

// driveFacts are those of the drives of l, each once.
func (n *Node) driveFacts(l lease.Lease) []DriveFacts {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []DriveFacts
	seen := map[string]bool{}
	for _, p := range l.Pieces {
		if d := n.drives[p.Drive]; d != nil && !seen[p.Drive] {
			seen[p.Drive] = true
			all = append(all, DriveFacts{UUID: d.j.UUID, Salt: d.j.Salt, Kind: d.j.Kind, Model: d.j.Model, Serial: d.j.Serial, Path: d.j.Path})
		}
	}
	return all
}

// recipientLen is the length of the public key that a key is released to, in bytes
// (ipc.LeaseReleaseRequest).
const recipientLen = 1216

// ReleaseKey gives the key of an open lease to its tenant, sealed to recipient: it
// is for an audit of the ciphertext. The KEY_RELEASED record is durable before the
// engine is asked, whatever comes of that: from then on nobody can be convicted by a
// key that turns up, and the certificate does not claim that it can. It may be asked
// again, for any recipient.
func (n *Node) ReleaseKey(ctx context.Context, id string, recipient []byte) ([]byte, error) {
	if len(recipient) != recipientLen {
		return nil, invalid(id, "the key to seal to has %d bytes, it must have %d", len(recipient), recipientLen)
	}
	e, err := n.onceOpened(ctx, id, cannotRelease)
	if err != nil {
		return nil, err
	}
	l, boot, err := n.releasable(e)
	if err != nil {
		return nil, err
	}
	if plant.Is(plant.ReleasedEarly) {
		_, _ = n.cfg.Engine.ReleaseLease(ctx, ipc.LeaseReleaseRequest{Lease: id, Recipient: recipient}) //nolint:errcheck // a planted bug
	}
	ev := proof.Event{Type: proof.EventKeyReleased, MonotonicNs: n.cfg.Boottime(), BootID: boot}
	switch _, err := n.cfg.Store.ReleaseLease(id, ev, n.testimony(proof.KeyReleased, l)); {
	case errors.Is(err, journal.ErrNotFound):
		return nil, &Error{Kind: Refused, Object: id, Text: fmt.Sprintf("lease %s has just ended: only an open lease has a key to release", id)}
	case err != nil:
		return nil, &Error{Kind: Unavailable, Object: id, Text: "the record of the release could not be written, so the key was not released",
			Err: n.storeFailed(err), Next: journalNext}
	}
	n.mu.Lock()
	e.l.Proof.Released = true
	n.mu.Unlock()
	n.cfg.Log.Warn("the key of a lease is released to its tenant", "lease_id", id)
	out, err := n.cfg.Engine.ReleaseLease(ctx, ipc.LeaseReleaseRequest{Lease: id, Recipient: recipient})
	if err != nil {
		return nil, fmt.Errorf("releasing the key of lease %s, which its records have as released: %w", id, err)
	}
	return out.Sealed, nil
}

// releasable says whether the key of e can be given away now.
func (n *Node) releasable(e *entry) (l lease.Lease, boot string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.ended:
		return l, "", errEnded
	case n.unwritable() != nil:
		return l, "", &Error{Kind: Unavailable, Object: e.l.ID, Text: "the journal cannot be written, so no key can be released", Err: n.unwritable(), Next: journalNext}
	case !n.ready:
		return l, "", errRecovering
	case e.l.State != lease.Open || e.closing:
		return l, "", cannotRelease(e.view())
	case n.hello.Shares != "":
		return l, "", &Error{Kind: Refused, Object: e.l.ID, Text: "keys are not released here: " + n.hello.Shares}
	}
	return e.l, n.hello.BootID, nil
}

func cannotRelease(l lease.Lease) error {
	return &Error{Kind: Refused, Object: l.ID, Text: fmt.Sprintf("lease %s is %s: only an open lease has a key to release", l.ID, l.State)}
}
