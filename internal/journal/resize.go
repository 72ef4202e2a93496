package journal

import (
	"cmp"
	"fmt"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/proof"
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
		r, err := t.committed(proof.Record{Type: proof.RESIZE, Claims: []string{proof.ClaimAsserted}}, out)
		if err != nil {
			return err
		}
		if _, err := t.append(r); err != nil {
			return err
		}
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
