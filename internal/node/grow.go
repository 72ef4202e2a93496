package node

import (
	"errors"
	"fmt"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/lease"
)

// plan decides where the volume of e gets its new size from, and takes that space,
// unless it is only to be shown.
func (n *Node) plan(e *entry, size int64, show bool) (*growth, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.growing(e); err != nil {
		return nil, err
	}
	l := e.l
	g := &growth{id: l.ID, was: l.SizeBytes, size: size, pieces: l.Pieces}
	if size < l.SizeBytes {
		return nil, &Error{Kind: Refused, Object: l.ID,
			Text: fmt.Sprintf("lease %s has %s (%d bytes): a volume only gets larger, as what lies behind its new end would be lost", l.ID, bytesText(l.SizeBytes), l.SizeBytes),
			Next: "open a smaller lease, copy to it what is still needed, and close this one"}
	}
	have := int64(0)
	for _, p := range l.Pieces {
		have += int64(p.Count) * n.drives[p.Drive].j.ExtentBytes
	}
	if size <= have {
		return g, nil
	}
	var err error
	if g.rooms, err = n.rooms(l.Drive); err == nil {
		err = g.take(l.Pieces, size-have)
	}
	if err != nil {
		return nil, fmt.Errorf("making lease %s larger: %w", l.ID, err)
	}
	if show {
		g.takeBack()
	}
	return g, nil
}

// take takes missing bytes of space: right behind the last piece, where that is
// free, or else on the drives that the volume lies on, or else on any.
func (g *growth) take(pieces []extent.Piece, missing int64) (err error) {
	mine := slices.DeleteFunc(slices.Clone(g.rooms), func(r room) bool {
		return !slices.ContainsFunc(pieces, func(p extent.Piece) bool { return p.Drive == r.uuid })
	})
	if g.more = behind(mine, pieces[len(pieces)-1], missing); g.more == nil {
		if g.more, err = place(mine, missing); errors.Is(err, extent.ErrFull) {
			g.more, err = place(g.rooms, missing)
		}
		if err != nil {
			return err
		}
	}
	g.pieces = extent.Join(pieces, g.more)
	if len(g.pieces) > lease.MaxPieces {
		g.takeBack()
		return &Error{Kind: Full, Err: extent.ErrFull,
			Text: fmt.Sprintf("it would lie in %d pieces, a lease has at most %d", len(g.pieces), lease.MaxPieces),
			Next: "close other leases so that there are larger pieces, or open another lease and copy"}
	}
	return nil
}

// behind takes the extents behind piece p; nil where they are not free.
func behind(rooms []room, p extent.Piece, missing int64) []extent.Piece {
	i := slices.IndexFunc(rooms, func(r room) bool { return r.uuid == p.Drive })
	if i < 0 || missing > lease.MaxBytes {
		return nil
	}
	r := rooms[i]
	count := r.extents(missing)
	if count > int64(r.space.Size()) {
		return nil
	}
	more := extent.Range{First: uint32(p.End()), Count: uint32(count)}
	if err := r.space.Reserve(more); err != nil {
		return nil // somebody has them, or the drive has no more
	}
	return []extent.Piece{{Drive: p.Drive, Range: more}}
}
