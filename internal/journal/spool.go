package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"vacate/internal/lease"
	"vacate/proof"
)

// This file is the spool: what becomes of a record after it was written.
//
//	payload   written in the transaction of what it tells of; never changed
//	envelope  the payload, signed: made once, by whoever holds the node's key
//	placed    its place in the log, once the log has it durably
//
// Records are signed in order and sent in order, so two numbers say how far
// each has come. Records of journal version 1 come before the first payload; they
// are neither signed nor sent.

// A Spool is the journal, seen by who signs records and sends them to the log.
// [Bolt] is one. Methods may be called from any goroutine; those that change
// something are durable when they return, and asked again they change nothing.
type Spool interface {
	// NodeID is whose records they are.
	NodeID() string

	// Unsigned returns at most limit of the oldest records that have no envelope, in
	// order, with Seq and JSON (the payload).
	Unsigned(limit int) ([]Stored, error)

	// StoreEnvelopes stores Envelope for each Seq; they follow the newest record that
	// has one, without a gap. A record that has one already keeps it: the same
	// envelope changes nothing, another is ErrExists.
	StoreEnvelopes(signed []Stored) error

	// Unsent returns at most limit of the oldest records that have an envelope and no
	// place in the log, in order, with Seq, JSON and Envelope.
	Unsent(limit int) ([]Stored, error)

	// Sent notes where the log has the records that follow the newest one that has a
	// place, without a gap. A record that has a place keeps it: another is ErrExists.
	Sent(placed []Placed) error

	// Placed returns where the log has a record, and its envelope. A record that has
	// no place yet is ErrNotFound, and then the envelope is nil if it has none either.
	Placed(seq uint64) (p Placed, envelope []byte, err error)

	// RecordsOf returns the numbers of a lease's records, in order. None is
	// ErrNotFound; records of version 1 are not among them.
	RecordsOf(lease string) ([]uint64, error)

	// Annex returns the annex of a lease that has ended, byte for byte. ErrNotFound
	// where there is none (any more, see Certified).
	Annex(lease string) ([]byte, error)

	// Lease returns a lease as the journal has it, with its salts. One that never was,
	// or ended long ago and is forgotten, is ErrNotFound.
	Lease(id string) (lease.Lease, error)

	// Due returns at most limit leases whose records are all in the log, CLOSE
	// included, and which nobody called Certified for, those that ended first first.
	Due(limit int) ([]string, error)

	// Certified notes that the certificate of a lease that has ended is kept elsewhere,
	// durably, and will not be made again: its annex is forgotten, and its records are
	// when they are not among the newest any more. The log has them all.
	Certified(lease string) error

	// SpoolStats says how far signing and sending have come.
	SpoolStats() (Stats, error)

	// Appended is sent to (it holds one value) when there may be more to sign.
	Appended() <-chan struct{}
}

// Placed is where the log has a record.
type Placed struct {
	Seq   uint64
	Index uint64 // of its leaf
}

// Stats say how far the spool has come. Numbers of records, 0 where there is none.
type Stats struct {
	First  uint64 // the first record that is signed and sent
	Last   uint64 // the newest record
	Signed uint64 // the newest that has an envelope
	Sent   uint64 // the newest that has a place in the log
	Due    int    // leases that have ended and whose certificate is not confirmed

	// Oldest is when the oldest record without a place was written, by the node's
	// clock; zero if all have one.
	Oldest time.Time
}

// Depth is how many records have no place in the log.
func (s Stats) Depth() uint64 {
	if s.First == 0 {
		return 0
	}
	return s.Last - max(s.Sent, s.First-1)
}

// The buckets of the spool. They are made with the first payload, so that a
// journal into which none was written is still one of version 1.
var (
	spoolBucket     = []byte("spool")     // "spool" → spoolValue
	envelopesBucket = []byte("envelopes") // number → envelope
	placedBucket    = []byte("placed")    // number → placedValue
	writtenBucket   = []byte("written")   // number → writtenValue, of those that have no place
	ofLeaseBucket   = []byte("oflease")   // lease id, number → refValue
	annexesBucket   = []byte("annexes")   // lease id → annex
	dueBucket       = []byte("due")       // number of the CLOSE → refValue
	doneBucket      = []byte("done")      // number → refValue, of leases whose certificate is kept elsewhere

	spoolBuckets = [][]byte{spoolBucket, envelopesBucket, placedBucket, writtenBucket, ofLeaseBucket, annexesBucket, dueBucket, doneBucket}
	spoolKey     = []byte("spool")
)

// MaxEnvelope bounds one envelope, in bytes: what a leaf of a log may have
// (C2SP tlog-tiles: entries carry their length in two bytes).
const MaxEnvelope = 65535

// MaxAnnex bounds one annex, in bytes.
const MaxAnnex = proof.MaxAnnexBytes

type (
	spoolValue struct {
		V      int    `json:"v"`
		First  uint64 `json:"first"`  // number of the first payload
		Signed uint64 `json:"signed"` // all before and this one have an envelope; First-1 at the beginning
		Sent   uint64 `json:"sent"`   // likewise, a place; ≤ Signed
	}
	placedValue struct {
		V     int    `json:"v"`
		Index uint64 `json:"index"`
	}
	writtenValue struct {
		V  int       `json:"v"`
		At time.Time `json:"at"`
	}
)

// spool returns the spool's value; found is false in a journal of version 1.
func (t *tables) spool() (v spoolValue, found bool, err error) {
	if t.tx.Bucket(spoolBucket) == nil {
		return v, false, nil
	}
	v, found, err = get[spoolValue](t, spoolBucket, spoolKey)
	if err == nil && !found {
		err = fmt.Errorf("%w: the spool has no value", ErrCorrupt)
	}
	return v, found, err
}

// Unsigned implements [Spool].
func (b *Bolt) Unsigned(limit int) (out []Stored, err error) {
	err = b.view("reading the spool", func(t *tables) error {
		out = nil
		v, found, err := t.spool()
		if err != nil || !found {
			return err
		}
		out, err = t.stored(v.Signed+1, t.meta.NextSeq-1, limit)
		return err
	})
	return out, err
}

// Unsent implements [Spool].
func (b *Bolt) Unsent(limit int) (out []Stored, err error) {
	err = b.view("reading the spool", func(t *tables) error {
		out = nil
		v, found, err := t.spool()
		if err != nil || !found {
			return err
		}
		if out, err = t.stored(v.Sent+1, v.Signed, limit); err != nil {
			return err
		}
		for i := range out {
			if out[i].Envelope = bytes.Clone(t.tx.Bucket(envelopesBucket).Get(seqKey(out[i].Seq))); out[i].Envelope == nil {
				return fmt.Errorf("%w: record %d has no envelope", ErrCorrupt, out[i].Seq)
			}
		}
		return nil
	})
	return out, err
}

// stored returns the records from … to, at most limit.
func (t *tables) stored(from, to uint64, limit int) (out []Stored, err error) {
	for seq := from; seq <= to && len(out) < limit; seq++ {
		payload := t.tx.Bucket(recordsBucket).Get(seqKey(seq))
		if payload == nil {
			return nil, fmt.Errorf("%w: record %d is missing", ErrCorrupt, seq)
		}
		out = append(out, Stored{Seq: seq, JSON: bytes.Clone(payload)})
	}
	return out, nil
}

// StoreEnvelopes implements [Spool].
func (b *Bolt) StoreEnvelopes(signed []Stored) error {
	if len(signed) == 0 {
		return nil
	}
	return b.update("storing envelopes", func(t *tables) error {
		v, found, err := t.spool()
		if err != nil || !found {
			return or(err, ErrNotFound)
		}
		for _, s := range signed {
			switch key := seqKey(s.Seq); {
			case len(s.Envelope) == 0 || len(s.Envelope) > MaxEnvelope:
				return fmt.Errorf("the envelope of record %d has %d bytes, it may have 1 to %d", s.Seq, len(s.Envelope), MaxEnvelope)
			case s.Seq < v.First || s.Seq >= t.meta.NextSeq:
				return fmt.Errorf("record %d, of %d to %d: %w", s.Seq, v.First, t.meta.NextSeq-1, ErrNotFound)
			case s.Seq <= v.Signed:
				if !bytes.Equal(t.tx.Bucket(envelopesBucket).Get(key), s.Envelope) {
					return fmt.Errorf("record %d has another envelope: %w", s.Seq, ErrExists)
				}
			case s.Seq != v.Signed+1:
				return fmt.Errorf("record %d is signed before record %d: %w", s.Seq, v.Signed+1, ErrNotFound)
			default:
				t.put(envelopesBucket, key, bytes.Clone(s.Envelope))
				v.Signed = s.Seq
			}
		}
		t.put(spoolBucket, spoolKey, encode(v))
		return nil
	})
}

// Sent implements [Spool].
func (b *Bolt) Sent(placed []Placed) error {
	if len(placed) == 0 {
		return nil
	}
	return b.update("noting what the log has", func(t *tables) error {
		v, found, err := t.spool()
		if err != nil || !found {
			return or(err, ErrNotFound)
		}
		for _, p := range placed {
			switch key := seqKey(p.Seq); {
			case p.Seq < v.First || p.Seq > v.Signed:
				return fmt.Errorf("record %d has no envelope: %w", p.Seq, ErrNotFound)
			case p.Seq <= v.Sent:
				old, _, err := get[placedValue](t, placedBucket, key)
				if err != nil {
					return err
				}
				if old.Index != p.Index {
					return fmt.Errorf("record %d is at %d in the log, not at %d: %w", p.Seq, old.Index, p.Index, ErrExists)
				}
			case p.Seq != v.Sent+1:
				return fmt.Errorf("record %d is in the log before record %d: %w", p.Seq, v.Sent+1, ErrNotFound)
			default:
				t.put(placedBucket, key, encode(placedValue{Version, p.Index}))
				t.delete(writtenBucket, key)
				v.Sent = p.Seq
			}
		}
		t.put(spoolBucket, spoolKey, encode(v))
		return nil
	})
}

// Placed implements [Spool].
func (b *Bolt) Placed(seq uint64) (p Placed, envelope []byte, err error) {
	err = b.view(fmt.Sprintf("looking for record %d in the log", seq), func(t *tables) error {
		p, envelope = Placed{}, nil
		if _, found, err := t.spool(); err != nil || !found {
			return or(err, ErrNotFound)
		}
		envelope = bytes.Clone(t.tx.Bucket(envelopesBucket).Get(seqKey(seq)))
		v, found, err := get[placedValue](t, placedBucket, seqKey(seq))
		if err != nil || !found {
			return or(err, ErrNotFound)
		}
		p = Placed{Seq: seq, Index: v.Index}
		return nil
	})
	return p, envelope, err
}

// RecordsOf implements [Spool].
func (b *Bolt) RecordsOf(id string) (seqs []uint64, err error) {
	err = b.view("reading the records of lease "+id, func(t *tables) error {
		seqs = nil
		if _, found, err := t.spool(); err != nil || !found {
			return or(err, ErrNotFound)
		}
		for _, seq := range t.recordsOf(id) {
			seqs = append(seqs, binary.BigEndian.Uint64(seq))
		}
		if len(seqs) == 0 {
			return ErrNotFound
		}
		return nil
	})
	return seqs, err
}

// Annex implements [Spool].
func (b *Bolt) Annex(id string) (annex []byte, err error) {
	err = b.view("reading the annex of lease "+id, func(t *tables) error {
		if _, found, err := t.spool(); err != nil || !found {
			return or(err, ErrNotFound)
		}
		if annex = bytes.Clone(t.tx.Bucket(annexesBucket).Get([]byte(id))); annex == nil {
			return ErrNotFound
		}
		return nil
	})
	return annex, err
}

// Lease implements [Spool].
func (b *Bolt) Lease(id string) (l lease.Lease, err error) {
	err = b.view("reading lease "+id, func(t *tables) error {
		l, _, err = t.find(id)
		return err
	})
	return l, err
}

// Due implements [Spool].
func (b *Bolt) Due(limit int) (ids []string, err error) {
	err = b.view("reading what certificates are due", func(t *tables) error {
		ids = nil
		v, found, err := t.spool()
		if err != nil || !found {
			return err
		}
		c := t.tx.Bucket(dueBucket).Cursor()
		for k, ref := c.First(); k != nil && len(ids) < limit && bytes.Compare(k, seqKey(v.Sent)) <= 0; k, ref = c.Next() {
			r, err := decode[refValue](ref)
			if err != nil {
				return fmt.Errorf("%w: due %x: %w", ErrCorrupt, k, err)
			}
			ids = append(ids, r.Lease)
		}
		return nil
	})
	return ids, err
}

// Certified implements [Spool].
func (b *Bolt) Certified(id string) error {
	return b.update("confirming the certificate of lease "+id, func(t *tables) error {
		if _, found, err := t.spool(); err != nil || !found {
			return err
		}
		if l, live, err := t.find(id); err == nil && live && l.CloseSeq == 0 {
			return fmt.Errorf("it has not ended: %w", ErrNotFound)
		} else if errors.Is(err, ErrCorrupt) {
			return err
		}
		t.delete(annexesBucket, []byte(id))
		for _, seq := range t.recordsOf(id) {
			t.delete(dueBucket, seq)
			t.put(doneBucket, seq, encode(refValue{Version, id}))
		}
		return t.forget()
	})
}

// SpoolStats implements [Spool].
func (b *Bolt) SpoolStats() (s Stats, err error) {
	err = b.view("measuring the spool", func(t *tables) error {
		s = Stats{}
		v, found, err := t.spool()
		if err != nil || !found {
			return err
		}
		s = Stats{First: v.First, Last: t.meta.NextSeq - 1, Due: countKeys(t.tx.Bucket(dueBucket))}
		if v.Signed >= v.First {
			s.Signed = v.Signed
		}
		if v.Sent >= v.First {
			s.Sent = v.Sent
		}
		w, found, err := get[writtenValue](t, writtenBucket, seqKey(v.Sent+1))
		if err == nil && found {
			s.Oldest = w.At
		}
		return err
	})
	return s, err
}

func countKeys(b *bbolt.Bucket) int { return b.Stats().KeyN }

// Appended implements [Spool].
func (b *Bolt) Appended() <-chan struct{} { return b.appended }
