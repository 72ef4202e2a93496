package extent

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func at(drive string, first, count uint32) Piece {
	return Piece{Drive: drive, Range: Range{First: first, Count: count}}
}

func TestBeyond(t *testing.T) {
	old := []Piece{at("a", 5, 2), at("b", 0, 3)}
	for _, tt := range []struct {
		name  string
		all   []Piece
		more  []Piece
		moved bool
	}{
		{"nothing more", old, nil, false},
		{"another piece", []Piece{at("a", 5, 2), at("b", 0, 3), at("a", 0, 1)}, []Piece{at("a", 0, 1)}, false},
		{"the last one goes on", []Piece{at("a", 5, 2), at("b", 0, 7)}, []Piece{at("b", 3, 4)}, false},
		{"both", []Piece{at("a", 5, 2), at("b", 0, 7), at("c", 1, 1)}, []Piece{at("b", 3, 4), at("c", 1, 1)}, false},
		{"another than the last goes on", []Piece{at("a", 5, 3), at("b", 0, 3)}, nil, true},
		{"a piece is missing", old[:1], nil, true},
		{"the last is shorter", []Piece{at("a", 5, 2), at("b", 0, 2)}, nil, true},
		{"the last lies elsewhere", []Piece{at("a", 5, 2), at("b", 1, 3)}, nil, true},
		{"another order", []Piece{at("b", 0, 3), at("a", 5, 2)}, nil, true},
		{"another drive", []Piece{at("a", 5, 2), at("c", 0, 3)}, nil, true},
	} {
		more, err := Beyond(old, tt.all)
		if !slices.Equal(more, tt.more) || errors.Is(err, ErrMoved) != tt.moved {
			t.Errorf("%s: %v, %v", tt.name, more, err)
		}
	}
	if more, err := Beyond(nil, old); err != nil || !slices.Equal(more, old) {
		t.Errorf("of nothing: %v, %v", more, err)
	}
}

// TestJoin: Beyond finds what Join put there, and the extents are the same in the
// same order.
func TestJoin(t *testing.T) {
	pieces := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Piece {
		return at(rapid.SampledFrom([]string{"a", "b"}).Draw(t, "drive"), rapid.Uint32Range(0, 9).Draw(t, "first"), rapid.Uint32Range(1, 9).Draw(t, "count"))
	}), 0, 5)
	flat := func(ps ...Piece) (all []Piece) {
		for _, p := range ps {
			for i := range p.Count {
				all = append(all, at(p.Drive, p.First+i, 1))
			}
		}
		return all
	}
	rapid.Check(t, func(t *rapid.T) {
		old, more := pieces.Draw(t, "old"), pieces.Draw(t, "more")
		was := slices.Clone(old)
		all := Join(old, more)
		if !slices.Equal(flat(all...), flat(append(slices.Clone(old), more...)...)) || !slices.Equal(old, was) {
			t.Fatalf("%v and %v are %v", was, more, all)
		}
		if got, err := Beyond(old, all); err != nil || !slices.Equal(flat(got...), flat(more...)) {
			t.Fatalf("beyond %v in %v lies %v, %v; want %v", old, all, got, err, more)
		}
	})
}
