package notary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"vacate/internal/fail"
	"vacate/internal/journal"
	"vacate/internal/keyring"
	"vacate/internal/plant"
	"vacate/proof"
)

// sign signs the oldest records that have no envelope.
func (n *Notary) sign(context.Context) (time.Duration, error) {
	n.signing.Lock()
	defer n.signing.Unlock()
	waiting, err := n.cfg.Spool.Unsigned(batch)
	if err != nil || len(waiting) == 0 {
		return 0, err
	}
	for i := range waiting {
		if waiting[i].Envelope, err = n.envelope(waiting[i]); err != nil {
			return 0, fmt.Errorf("record %d: %w", waiting[i].Seq, err)
		}
	}
	if err := n.cfg.Spool.StoreEnvelopes(waiting); err != nil {
		return 0, err
	}
	fail.At(fail.ControlSigned)
	n.mu.Lock()
	n.counts.Signed += uint64(len(waiting))
	n.mu.Unlock()
	wake(n.wakeSend)
	n.changed()
	rotated, err := n.cfg.Keys.Settle(waiting[len(waiting)-1].Seq)
	if err != nil {
		return 0, err
	}
	if len(rotated) > 0 {
		if err := n.renewPolicy(); err != nil {
			return 0, err
		}
	}
	return soon, nil
}

// envelope signs one record, and keeps what its certificate will need besides: the
// beacon that it names, and the TPM's quote.
func (n *Notary) envelope(s journal.Stored) ([]byte, error) {
	r, err := proof.ParsePayload(s.JSON)
	if err != nil {
		return nil, err
	}
	if r.NodeID != n.node || r.NodeSeq != s.Seq {
		return nil, fmt.Errorf("the journal holds record %d of node %s under this number", r.NodeSeq, r.NodeID)
	}
	if r.Beacon != nil {
		if err := n.holdBeacon(r); err != nil {
			return nil, err
		}
	}
	if n.cfg.Quoter != nil && n.quotes(r) {
		q, err := n.cfg.Quoter.Quote(s.JSON)
		if err != nil {
			return nil, err
		}
		b, err := proof.Encode(q)
		if err != nil {
			return nil, err
		}
		if err := n.keep(quoteName(s.Seq), b); err != nil {
			return nil, err
		}
	}
	return proof.Sign(s.JSON, n.cfg.Keys.Signers(s.Seq)...)
}

// quotes tells which records are quoted: those that say what became of a key, unless
// the machine was started anew since. Such a quote would speak of another boot, and
// its count of resets would deny a result that was true.
func (n *Notary) quotes(r proof.Record) bool {
	other := func(e proof.Event) bool { return e.BootID != n.cfg.BootID }
	return (r.Type == proof.OPEN || r.Type == proof.CLOSE) && !slices.ContainsFunc(r.Events, other)
}

// send adds the oldest records that the log does not have.
func (n *Notary) send(ctx context.Context) (time.Duration, error) {
	waiting, err := n.cfg.Spool.Unsent(batch)
	if err != nil || len(waiting) == 0 {
		return 0, err
	}
	leaves := make([]leaf, len(waiting))
	for i, s := range waiting {
		leaves[i] = leaf{NodeID: n.node, NodeSeq: s.Seq, Envelope: s.Envelope}
	}
	if plant.Is(plant.SentEarly) {
		if err := n.sentEarly(waiting); err != nil {
			return 0, err
		}
	}
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	indices, err := n.cfg.Log.Add(call, leaves)
	if err != nil {
		return 0, err
	}
	if len(indices) != len(leaves) {
		return 0, fmt.Errorf("the log answered with %d indices to %d records", len(indices), len(leaves))
	}
	fail.At(fail.ControlLogged)
	placed := make([]journal.Placed, len(waiting))
	for i, s := range waiting {
		placed[i] = journal.Placed{Seq: s.Seq, Index: indices[i]}
		if err := n.keepRotation(s, indices[i]); err != nil {
			return 0, err
		}
	}
	if err := n.cfg.Spool.Sent(placed); err != nil {
		return 0, err
	}
	n.mu.Lock()
	n.counts.Sent += uint64(len(placed))
	n.mu.Unlock()
	wake(n.wakeLook)
	n.changed()
	return soon, nil
}

// sentEarly is a planted bug: it notes the places that the log is about to give.
func (n *Notary) sentEarly(waiting []journal.Stored) error {
	next := uint64(0)
	if first := waiting[0].Seq; first > 1 {
		if last, _, err := n.cfg.Spool.Placed(first - 1); err == nil {
			next = last.Index + 1
		}
	}
	placed := make([]journal.Placed, len(waiting))
	for i, s := range waiting {
		placed[i] = journal.Placed{Seq: s.Seq, Index: next + uint64(i)}
	}
	err := n.cfg.Spool.Sent(placed)
	fail.At(fail.ControlLogged) // the crash that the order of the two is for
	return err
}

// A rotation is a KEYS record that certificates of leases need which were open
// then. The journal may forget it before these are written.
type rotation struct {
	Seq      uint64          `json:"seq"`
	Index    uint64          `json:"index"`
	Envelope json.RawMessage `json:"envelope"`
}

func (n *Notary) keepRotation(s journal.Stored, index uint64) error {
	r, err := proof.ParsePayload(s.JSON)
	if err != nil || r.Type != proof.KEYS {
		return err
	}
	b, err := proof.Encode(rotation{s.Seq, index, s.Envelope})
	if err != nil {
		return err
	}
	return n.keep(rotationName(s.Seq), b)
}

// Rotate makes a new key of a role, and has the journal's next record say so. It
// returns that record's number. The new key signs from then on.
func (n *Notary) Rotate(role keyring.Role) (proof.KeyChange, uint64, error) {
	n.signing.Lock()
	defer n.signing.Unlock()
	change, err := n.cfg.Keys.Stage(role)
	if err != nil {
		return change, 0, err
	}
	seq, err := n.cfg.Append(proof.Record{Type: proof.KEYS, Keys: []proof.KeyChange{change}})
	if err != nil {
		if errors.Is(err, journal.ErrUnchanged) {
			err = errors.Join(err, n.cfg.Keys.Drop(role))
		} // else nobody knows whether it is there: the next start finds out
		return change, 0, fmt.Errorf("recording the new %s key: %w", role, err)
	}
	if err := n.cfg.Keys.Activate(role, seq); err != nil {
		return change, seq, err
	}
	return change, seq, n.renewPolicy()
}

// mendRotation ends what a crash cut off between staging a key and activating it.
// No record is signed then, so a KEYS record that exists is among the unsigned.
func (n *Notary) mendRotation() error {
	staged := n.cfg.Keys.Staged()
	if len(staged) == 0 {
		return nil
	}
	waiting, err := n.cfg.Spool.Unsigned(1 << 30)
	if err != nil {
		return err
	}
	for _, change := range staged {
		seq := uint64(0)
		for _, s := range waiting {
			r, err := proof.ParsePayload(s.JSON)
			if err != nil {
				return fmt.Errorf("record %d: %w", s.Seq, err)
			}
			if r.Type == proof.KEYS && len(r.Keys) == 1 && r.Keys[0] == change {
				seq = s.Seq
			}
		}
		role := keyring.Role(change.Role)
		if seq == 0 {
			err = n.cfg.Keys.Drop(role)
		} else {
			err = n.cfg.Keys.Activate(role, seq)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ErrNotSigned says that a record's signature is not there yet.
var ErrNotSigned = errors.New("the record is not signed yet")

// Receipt is what a tenant is given when its lease opens. It waits for the signature
// until ctx is done: the error then wraps [ErrNotSigned], and asking again later helps.
func (n *Notary) Receipt(ctx context.Context, id string) ([]byte, error) {
	l, err := n.cfg.Spool.Lease(id)
	if err != nil {
		return nil, err
	}
	seqs, err := n.cfg.Spool.RecordsOf(id)
	if err != nil {
		return nil, fmt.Errorf("lease %s has no signed records (it was opened by a version that signed none): %w", id, err)
	}
	var envelope []byte
	err = n.wait(ctx, func() (bool, error) {
		_, e, err := n.cfg.Spool.Placed(seqs[0])
		if err != nil && !errors.Is(err, journal.ErrNotFound) {
			return false, err
		}
		envelope = e
		return envelope != nil, nil
	})
	if err != nil {
		if last := n.lastError(); last != "" {
			return nil, fmt.Errorf("the OPEN of lease %s: %w: %s", id, ErrNotSigned, last)
		}
		return nil, fmt.Errorf("the OPEN of lease %s: %w: %w", id, ErrNotSigned, err)
	}
	r := proof.Receipt{Envelope: envelope, Tenant: l.Tenant, Salts: proof.Salts{
		Key: l.Proof.KeySalt, Tenant: l.Proof.TenantSalt, Node: l.Proof.NodeSalt, Share: l.Proof.ShareSalt}}
	return r.Marshal()
}
