package extent

import (
	"errors"
	"slices"
)

// ErrMoved is returned when a volume that grew would not begin with what it was.
var ErrMoved = errors.New("pieces of the volume have moved")

// Join returns the pieces of a volume with more behind them. A piece that goes on
// where the last one ends, on the same drive, is one with it. Neither argument
// changes.
func Join(pieces, more []Piece) []Piece {
	all := slices.Clone(pieces)
	for i, p := range more {
		if n := len(all) - 1; i == 0 && n >= 0 && all[n].Drive == p.Drive && all[n].End() == uint64(p.First) {
			all[n].Count += p.Count
			continue
		}
		all = append(all, p)
	}
	return all
}

// Beyond returns what Join put behind pieces to make all of them, or [ErrMoved].
func Beyond(pieces, all []Piece) (more []Piece, err error) {
	n := len(pieces) - 1
	if n < 0 {
		return slices.Clone(all), nil
	}
	if len(all) <= n || !slices.Equal(all[:n], pieces[:n]) {
		return nil, ErrMoved
	}
	last, now := pieces[n], all[n]
	if now.Drive != last.Drive || now.First != last.First || now.Count < last.Count {
		return nil, ErrMoved
	}
	if now.Count > last.Count {
		more = append(more, Piece{Drive: now.Drive, Range: Range{First: uint32(last.End()), Count: now.Count - last.Count}})
	}
	return append(more, all[n+1:]...), nil
}
