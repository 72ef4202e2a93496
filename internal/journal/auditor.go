package journal

import (
	"fmt"
	"slices"

	"vacate/internal/extent"
	"vacate/proof"
)

// An Auditor reads a node's records in order, as its journal has them, and finds
// what must not be: a gap or a fork of the numbers, a lease opened twice or closed
// twice or never opened, a RESIZE that takes space away, a CLOSE of other space
// than its OPEN's and RESIZEs' or of another key, a key released that nobody has,
// space of open leases that overlaps, and so space that was leased again before
// its CLOSE.
//
// It audits a state folder, records of version 1 included, and trusts who wrote it;
// [proof.Auditor] audits the log, and trusts nobody.
type Auditor struct {
	node string
	v    int    // of the newest record
	next uint64 // 0 before the first record
	hash string
	open map[string]proof.Record // OPEN records without CLOSE, with the space of the last RESIZE
	seen map[string]bool         // all leases
}

// Add takes the next record's bytes.
func (a *Auditor) Add(b []byte) error {
	r, err := ParseRecord(b)
	if err != nil {
		return err
	}
	if a.next == 0 {
		*a = Auditor{node: r.NodeID, next: 1, hash: proof.ZeroHash, open: map[string]proof.Record{}, seen: map[string]bool{}}
	}
	switch {
	case r.NodeID != a.node:
		return fmt.Errorf("record %d is of node %s, those before of %s", r.NodeSeq, r.NodeID, a.node)
	case r.NodeSeq != a.next:
		return fmt.Errorf("record %d stands where %d should", r.NodeSeq, a.next)
	case r.PrevHash != a.hash:
		return fmt.Errorf("record %d follows a record with hash %s, the one before it has %s", r.NodeSeq, r.PrevHash, a.hash)
	case r.V < a.v:
		return fmt.Errorf("record %d has version %d, the one before it %d", r.NodeSeq, r.V, a.v)
	}
	switch r.Type {
	case proof.OPEN:
		err = a.opened(r)
	case proof.CLOSE:
		err = a.closed(r)
	case proof.RESIZE:
		err = a.resized(r)
	case proof.KeyReleased:
		if o, ok := a.open[r.LeaseID]; !ok || r.OpenSeq != o.NodeSeq {
			err = fmt.Errorf("record %d releases the key of lease %s, which is not open", r.NodeSeq, r.LeaseID)
		}
	case proof.ENROL, proof.SANITIZE, proof.RETIRE, proof.KEYS:
	default:
		err = fmt.Errorf("record %d has unknown type %q", r.NodeSeq, r.Type)
	}
	a.next++
	a.hash, a.v = Hash(b), r.V
	return err
}

// Open returns how many leases have an OPEN and no CLOSE.
func (a *Auditor) Open() int { return len(a.open) }

func (a *Auditor) opened(r proof.Record) error {
	if a.seen[r.LeaseID] {
		return fmt.Errorf("record %d opens lease %s again", r.NodeSeq, r.LeaseID)
	}
	for id, o := range a.open {
		if proof.Overlap(r.Space, o.Space) {
			return fmt.Errorf("record %d gives lease %s space that lease %s has not given back", r.NodeSeq, r.LeaseID, id)
		}
	}
	a.seen[r.LeaseID] = true
	a.open[r.LeaseID] = r
	return nil
}

// resized takes a RESIZE record: the lease keeps what it had, and has more that
// nobody else has.
func (a *Auditor) resized(r proof.Record) error {
	o, ok := a.open[r.LeaseID]
	if !ok {
		return fmt.Errorf("record %d resizes lease %s, which is not open", r.NodeSeq, r.LeaseID)
	}
	_, moved := extent.Beyond(piecesOf(o.Space), piecesOf(r.Space))
	if moved != nil || r.OpenSeq != o.NodeSeq || r.Bytes <= o.Bytes {
		return fmt.Errorf("record %d resizes lease %s, and takes something away from what record %d opened", r.NodeSeq, r.LeaseID, o.NodeSeq)
	}
	for id, other := range a.open {
		if id != r.LeaseID && proof.Overlap(r.Space, other.Space) {
			return fmt.Errorf("record %d gives lease %s space that lease %s has not given back", r.NodeSeq, r.LeaseID, id)
		}
	}
	o.Bytes, o.Space = r.Bytes, r.Space
	a.open[r.LeaseID] = o
	return nil
}

func (a *Auditor) closed(r proof.Record) error {
	o, ok := a.open[r.LeaseID]
	if !ok {
		return fmt.Errorf("record %d closes lease %s, which is not open", r.NodeSeq, r.LeaseID)
	}
	same := slices.EqualFunc(r.Space, o.Space, func(x, y proof.Space) bool {
		return x.Drive == y.Drive && x.Commit == y.Commit && slices.Equal(x.Extents, y.Extents)
	})
	if r.OpenSeq != o.NodeSeq || r.Bytes != o.Bytes || r.KeyCommit != o.KeyCommit || !same {
		return fmt.Errorf("record %d closes lease %s, but not what record %d opened", r.NodeSeq, r.LeaseID, o.NodeSeq)
	}
	delete(a.open, r.LeaseID)
	return nil
}

func piecesOf(all []proof.Space) (pieces []extent.Piece) {
	for _, s := range all {
		for _, r := range s.Extents {
			pieces = append(pieces, extent.Piece{Drive: s.Drive, Range: extent.Range(r)})
		}
	}
	return pieces
}
