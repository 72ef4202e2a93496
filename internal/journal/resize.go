package journal

import (
	"cmp"
	"fmt"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/lease"
)

// ResizeLease implements [Store].
func (b *Bolt) ResizeLease(id string, size int64, pieces []extent.Piece) (lease.Lease, error) {
	var out lease.Lease
	err := b.update("resizing lease "+id, func(t *tables) error {
		old, live, err := t.find(id)
		if err != nil {
			return err
		}
		out = old
		if !live || old.CloseSeq != 0 {
			return fmt.Errorf("it is %s: %w", old.State, ErrNotFound)
		}
		if size == old.SizeBytes && slices.Equal(pieces, old.Pieces) {
			return nil
		}
		if size <= old.SizeBytes || size > lease.MaxBytes || size%lease.BlockBytes != 0 || len(pieces) > lease.MaxPieces {
			return fmt.Errorf("from %d bytes to %d in %d pieces is not larger, not a multiple of %d, or in more than %d pieces",
				old.SizeBytes, size, len(pieces), lease.BlockBytes, lease.MaxPieces)
		}
		if err := t.extend(old, pieces); err != nil {
			return err
		}
		out.OpenBytes = cmp.Or(old.OpenBytes, old.SizeBytes)
		out.SizeBytes, out.Pieces = size, pieces
		t.append(resizeRecord(out))
		t.put(leasesBucket, []byte(id), encode(leaseValue{Version, out}))
		return nil
	})
	return out, err
}

// extend gives lease l what pieces have more than its own.
func (t *tables) extend(l lease.Lease, pieces []extent.Piece) error {
	more, err := extent.Beyond(l.Pieces, pieces)
	if err != nil {
		return err
	}
	added := l
	added.Pieces = more
	if err := t.hold(added); err != nil {
		return err
	}
	// A run that goes on where the last one ended is one with it.
	n := len(l.Pieces) - 1
	if pieces[n] == l.Pieces[n] {
		return nil
	}
	uuid, err := parseHex(pieces[n].Drive, 16)
	if err != nil {
		return err
	}
	t.delete(extentsBucket, extentKey(uuid, more[0].First))
	t.put(extentsBucket, extentKey(uuid, pieces[n].First),
		encode(extentValue{V: Version, Count: pieces[n].Count, Lease: l.ID, State: lease.Held}))
	return nil
}

func resizeRecord(l lease.Lease) Record {
	return Record{Type: RESIZE, LeaseID: l.ID, OpenSeq: l.OpenSeq, Bytes: l.SizeBytes, Space: space(l.Pieces)}
}

// resized takes a RESIZE record: the lease keeps what it had, and has more that
// nobody else has.
func (a *Auditor) resized(r Record) error {
	o, ok := a.open[r.LeaseID]
	if !ok {
		return fmt.Errorf("record %d resizes lease %s, which is not open", r.NodeSeq, r.LeaseID)
	}
	_, moved := extent.Beyond(piecesOf(o.Space), piecesOf(r.Space))
	if moved != nil || r.OpenSeq != o.NodeSeq || r.Bytes <= o.Bytes {
		return fmt.Errorf("record %d resizes lease %s, and takes something away from what record %d opened", r.NodeSeq, r.LeaseID, o.NodeSeq)
	}
	for id, other := range a.open {
		if id != r.LeaseID && overlap(r.Space, other.Space) {
			return fmt.Errorf("record %d gives lease %s space that lease %s has not given back", r.NodeSeq, r.LeaseID, id)
		}
	}
	o.Bytes, o.Space = r.Bytes, r.Space
	a.open[r.LeaseID] = o
	return nil
}

func piecesOf(all []Space) (pieces []extent.Piece) {
	for _, s := range all {
		for _, r := range s.Extents {
			pieces = append(pieces, extent.Piece{Drive: s.Drive, Range: r})
		}
	}
	return pieces
}
