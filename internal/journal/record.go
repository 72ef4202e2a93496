package journal

import (
	"bytes"
	"fmt"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/proof"
)

// A record is stored as its payload: the exact bytes of the statement that is
// signed and logged ([proof.EncodePayload]). Records of journal version 1 are JSON
// of their own; they are read, and none is written any more.

// A Testimony is what control adds to a record, beside what the journal knows.
type Testimony struct {
	Beacon     *proof.Beacon // the newest checkpoint that control knows of, or nil
	Claims     []string      // what the record claims; names of package proof
	NotClaimed []string      // what it says that it does not
	Annex      []byte        // of a CLOSE: stored with it, byte for byte; empty: none
}

// Stored is a record and its number.
type Stored struct {
	Seq      uint64
	JSON     []byte // the payload, or the record of version 1: the bytes that the next one's PrevHash is of
	Envelope []byte // the signed payload, the leaf of the log; only in a [Spool]'s answers and questions
}

// Hash is what the next record's PrevHash must be.
func Hash(record []byte) string { return proof.PayloadHash(record) }

// ParseRecord decodes a record, strictly. V says whether it is a payload (2) or a
// record of version 1, which was never signed and claims nothing.
func ParseRecord(b []byte) (proof.Record, error) {
	if bytes.HasPrefix(b, []byte(`{"v":`)) {
		old, err := decode[recordV1](b)
		if err != nil {
			return proof.Record{}, err
		}
		return old.record(), nil
	}
	return proof.ParsePayload(b)
}

// recordV1 is a record of version 1.
type recordV1 struct {
	V        int        `json:"v"`
	Type     proof.Type `json:"type"`
	NodeID   string     `json:"nodeId"`
	NodeSeq  uint64     `json:"nodeSeq"`
	PrevHash string     `json:"prevHash"`
	LeaseID  string     `json:"leaseId,omitempty"`
	OpenSeq  uint64     `json:"openSeq,omitempty"`
	Bytes    int64      `json:"bytes"`
	Space    []spaceV1  `json:"space"`
	Cipher   string     `json:"cipher,omitempty"`
	KeyBits  int        `json:"keyBits,omitempty"`

	Events  []proof.Event `json:"events"`
	Drained bool          `json:"drained"`
	Claims  []string      `json:"claims"`
	Result  string        `json:"result,omitempty"`
}

type spaceV1 struct {
	Drive   string         `json:"drive"`
	Extents []extent.Range `json:"extents"`
}

func (o recordV1) record() proof.Record {
	r := proof.Record{V: o.V, Type: o.Type, NodeID: o.NodeID, NodeSeq: o.NodeSeq, PrevHash: o.PrevHash, LeaseID: o.LeaseID, OpenSeq: o.OpenSeq,
		Bytes: o.Bytes, Cipher: o.Cipher, KeyBits: o.KeyBits, Events: o.Events, Drained: o.Drained, Claims: o.Claims, Result: o.Result}
	for _, s := range o.Space {
		x := proof.Space{Drive: s.Drive}
		for _, e := range s.Extents {
			x.Extents = append(x.Extents, proof.Range(e))
		}
		r.Space = append(r.Space, x)
	}
	return r
}

// testified adds to a record what control says.
func testified(r proof.Record, te Testimony) proof.Record {
	r.Beacon, r.Claims, r.NotClaimed = te.Beacon, te.Claims, te.NotClaimed
	return r
}

// committed adds to a record what a lease's records commit to.
func (t *tables) committed(r proof.Record, l lease.Lease) (proof.Record, error) {
	p := l.Proof
	r.LeaseID, r.Bytes = l.ID, l.SizeBytes
	r.KeyMode, r.KeyCommit, r.NodeCommit, r.ShareCommit = proof.KeyMode(p.KeyMode), p.KeyCommit, p.NodeCommit, p.ShareCommit
	r.Cipher, r.KeyBits = proof.CipherXTS, proof.XTSBits
	if p.TenantSalt != "" && l.Tenant != "" {
		salt, err := parseHex(p.TenantSalt, proof.SaltLen)
		if err != nil {
			return r, fmt.Errorf("salt of the tenant's name: %w", err)
		}
		r.TenantCommit = proof.TenantCommit(l.ID, salt, l.Tenant)
	}
	if !p.EraseBy.IsZero() {
		r.EraseBy = proof.FormatTime(p.EraseBy)
	}
	var err error
	if r.Space, err = t.space(l.Pieces); err != nil || l.OpenSeq == 0 {
		return r, err
	}
	r.OpenSeq = l.OpenSeq
	if t.tx.Bucket(spoolBucket) == nil {
		return r, nil
	}
	placed, found, err := get[placedValue](t, placedBucket, seqKey(l.OpenSeq))
	if found {
		r.OpenLeafIndex = &placed.Index
	}
	return r, err
}

func (t *tables) openRecord(l lease.Lease, te Testimony) (proof.Record, error) {
	r := testified(proof.Record{Type: proof.OPEN}, te)
	if l.Proof.KeyGeneratedNs > 0 {
		r.Events = []proof.Event{{Type: proof.EventKeyGenerated, MonotonicNs: l.Proof.KeyGeneratedNs, BootID: l.Origin.BootID}}
	}
	return t.committed(r, l)
}

// closeRecord is law L6: what nobody observed has no event.
func (t *tables) closeRecord(l lease.Lease, te Testimony) (proof.Record, error) {
	r := testified(proof.Record{Type: proof.CLOSE, Result: string(l.Result)}, te)
	if len(te.Annex) > 0 {
		r.AnnexDigest = proof.PayloadHash(te.Annex)
	}
	if e := l.Erasure; e != nil {
		r.Drained = e.Drained
		for _, ev := range []proof.Event{
			{Type: proof.EventKeyGenerated, MonotonicNs: e.KeyGeneratedNs, BootID: e.BootID},
			{Type: proof.EventGateClosed, MonotonicNs: e.GateClosedNs, BootID: e.BootID},
			{Type: proof.EventKeyDestroyed, MonotonicNs: e.KeyDestroyedNs, BootID: e.BootID},
		} {
			if ev.MonotonicNs != 0 && (ev.Type != proof.EventKeyDestroyed || e.ReadBack) {
				r.Events = append(r.Events, ev)
			}
		}
	}
	return t.committed(r, l)
}

func enrolRecord(d Drive, te Testimony) (proof.Record, error) {
	s, err := DriveSpace(d)
	return testified(proof.Record{Type: proof.ENROL, Bytes: int64(d.Extents) * d.ExtentBytes, Space: []proof.Space{s}}, te), err
}

// DriveSpace is all of a drive, as its records have it.
func DriveSpace(d Drive) (proof.Space, error) {
	s := proof.Space{Drive: d.UUID, Extents: []proof.Range{{First: 0, Count: d.Extents}}}
	var err error
	s.Commit, err = driveCommit(d)
	return s, err
}

// driveCommit commits to what the drive said that it is; empty for one that was
// enrolled before there were salts.
func driveCommit(d Drive) (string, error) {
	if d.Salt == "" {
		return "", nil
	}
	salt, err := parseHex(d.Salt, proof.SaltLen)
	if err != nil {
		return "", fmt.Errorf("salt of drive %s: %w", d.UUID, err)
	}
	return proof.DriveCommit(d.UUID, salt, d.Kind, d.Model, d.Serial), nil
}

// space groups a lease's pieces by drive, in the volume's order.
func (t *tables) space(pieces []extent.Piece) ([]proof.Space, error) {
	var s []proof.Space
	for _, p := range pieces {
		if n := len(s); n > 0 && s[n-1].Drive == p.Drive {
			s[n-1].Extents = append(s[n-1].Extents, proof.Range(p.Range))
			continue
		}
		key, err := driveKey(p.Drive)
		if err != nil {
			return nil, err
		}
		d, _, err := get[driveValue](t, drivesBucket, key)
		if err != nil {
			return nil, err
		}
		commit, err := driveCommit(d.Drive)
		if err != nil {
			return nil, err
		}
		s = append(s, proof.Space{Drive: p.Drive, Commit: commit, Extents: []proof.Range{proof.Range(p.Range)}})
	}
	return s, nil
}
