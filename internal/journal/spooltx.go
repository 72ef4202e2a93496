package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vacate/internal/lease"
	"vacate/proof"
)

// This file is what transactions leave to the spool, and what is forgotten.

// spooled notes a record that is about to be stored.
func (t *tables) spooled(r proof.Record) error {
	if t.tx.Bucket(spoolBucket) == nil {
		for _, name := range spoolBuckets {
			if _, err := t.tx.CreateBucket(name); err != nil {
				return err
			}
		}
		t.put(spoolBucket, spoolKey, encode(spoolValue{V: Version, First: r.NodeSeq, Signed: r.NodeSeq - 1, Sent: r.NodeSeq - 1}))
	}
	t.put(writtenBucket, seqKey(r.NodeSeq), encode(writtenValue{Version, t.now().UTC().Round(0)}))
	if r.LeaseID != "" {
		t.put(ofLeaseBucket, ofLeaseKey(r.LeaseID, r.NodeSeq), encode(refValue{Version, r.LeaseID}))
	}
	if r.Type == proof.CLOSE {
		t.put(dueBucket, seqKey(r.NodeSeq), encode(refValue{Version, r.LeaseID}))
	}
	return t.forget()
}

// ofLeaseKey is where it stands that record seq is a lease's: those of a lease
// stand together, in their order.
func ofLeaseKey(id string, seq uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(id), seq)
}

// recordsOf are the keys of the numbers of a lease's records.
func (t *tables) recordsOf(id string) (keys [][]byte) {
	c := t.tx.Bucket(ofLeaseBucket).Cursor()
	for k, _ := c.Seek([]byte(id)); len(k) == len(id)+8 && string(k[:len(id)]) == id; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k[len(id):]))
	}
	return keys
}

// bequeath keeps the annex of a lease that ends.
func (t *tables) bequeath(l lease.Lease, annex []byte) error {
	if len(annex) > MaxAnnex {
		return fmt.Errorf("the annex has %d bytes, at most %d are kept", len(annex), MaxAnnex)
	}
	if len(annex) > 0 {
		t.put(annexesBucket, []byte(l.ID), bytes.Clone(annex))
	}
	return nil
}

// forgets bounds the records that one transaction forgets.
const forgets = 8

// forget drops records of leases whose certificate is kept elsewhere, unless they
// are among the newest, which tell how the chain goes on. The log has them all.
func (t *tables) forget() error {
	c := t.tx.Bucket(doneBucket).Cursor()
	var old [][]byte
	for k, _ := c.First(); k != nil && len(old) < forgets; k, _ = c.Next() {
		if len(k) != 8 {
			return fmt.Errorf("%w: done %x", ErrCorrupt, k)
		}
		if !t.past(binary.BigEndian.Uint64(k)) {
			break
		}
		old = append(old, bytes.Clone(k))
	}
	for _, k := range old {
		ref, _, err := get[refValue](t, doneBucket, k)
		if err != nil {
			return err
		}
		for _, bucket := range [][]byte{recordsBucket, envelopesBucket, placedBucket, doneBucket} {
			t.delete(bucket, k)
		}
		t.delete(ofLeaseBucket, ofLeaseKey(ref.Lease, binary.BigEndian.Uint64(k)))
	}
	return nil
}

// checkSpool checks that the spool's numbers fit what is there.
func (t *tables) checkSpool(*State) error {
	for _, name := range spoolBuckets {
		if has := t.tx.Bucket(name) != nil; has != (t.tx.Bucket(spoolBucket) != nil) {
			return fmt.Errorf("%w: bucket %s, or the spool's, is missing", ErrCorrupt, name)
		}
	}
	v, found, err := t.spool()
	if err != nil || !found {
		return err
	}
	if v.First == 0 || v.First > v.Signed+1 || v.First > v.Sent+1 || v.Sent > v.Signed || v.Signed >= t.meta.NextSeq {
		return fmt.Errorf("%w: of records %d to %d, %d are signed and %d sent", ErrCorrupt, v.First, t.meta.NextSeq-1, v.Signed, v.Sent)
	}
	for _, b := range []struct {
		bucket []byte
		last   uint64
	}{{envelopesBucket, v.Signed}, {placedBucket, v.Sent}} {
		// Those of the newest records are there, and no more.
		for seq := max(v.First, b.last-min(b.last, tailRecords)); seq <= b.last; seq++ {
			if t.tx.Bucket(b.bucket).Get(seqKey(seq)) == nil && !t.past(seq) {
				return fmt.Errorf("%w: %s %d is missing", ErrCorrupt, b.bucket, seq)
			}
		}
		if k, _ := t.tx.Bucket(b.bucket).Cursor().Last(); k != nil && bytes.Compare(k, seqKey(b.last)) > 0 {
			return fmt.Errorf("%w: %s %x is too many", ErrCorrupt, b.bucket, k)
		}
	}
	return nil
}

// ReleaseLease implements [Store].
func (b *Bolt) ReleaseLease(id string, ev proof.Event, te Testimony) (lease.Lease, error) {
	var out lease.Lease
	err := b.update("releasing the key of lease "+id, func(t *tables) error {
		old, live, err := t.find(id)
		if err != nil {
			return err
		}
		if out = old; !live || old.CloseSeq != 0 {
			return fmt.Errorf("it is %s: %w", old.State, ErrNotFound)
		}
		if old.Proof.Released {
			return nil
		}
		r, err := t.committed(testified(proof.Record{Type: proof.KeyReleased, Events: []proof.Event{ev}}, te), old)
		if err != nil {
			return err
		}
		if _, err := t.append(r); err != nil {
			return err
		}
		out.Proof.Released = true
		t.put(leasesBucket, []byte(id), encode(leaseValue{Version, out}))
		return nil
	})
	return out, err
}

// Append implements [Store].
func (b *Bolt) Append(r proof.Record) (seq uint64, err error) {
	err = b.update(fmt.Sprintf("writing a %s record", r.Type), func(t *tables) error {
		if r.Type != proof.SANITIZE && r.Type != proof.RETIRE && r.Type != proof.KEYS {
			return fmt.Errorf("a record of type %q is written with what it tells of, not alone", r.Type)
		}
		if last := t.tx.Bucket(recordsBucket).Get(seqKey(t.meta.NextSeq - 1)); last != nil {
			if old, err := ParseRecord(last); err == nil && old.Type == r.Type {
				again := r
				again.NodeID, again.NodeSeq, again.PrevHash = old.NodeID, old.NodeSeq, old.PrevHash
				if b, err := proof.EncodePayload(again); err == nil && bytes.Equal(b, last) {
					seq = old.NodeSeq
					return nil
				}
			}
		}
		seq, err = t.append(r)
		return err
	})
	return seq, err
}
