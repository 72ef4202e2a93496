// Package extent names pieces of drives: the vocabulary in which control
// (which allocates), the engine (which maps) and records (which publish) talk
// about space.
package extent

import (
	"errors"
	"fmt"
)

// A Range is Count extents of one drive, from First on. The size of an extent
// is a property of the drive, fixed at enrolment.
type Range struct {
	First uint32 `json:"first"`
	Count uint32 `json:"count"` // 1 ≤ Count
}

// End is the first extent after the range, in 64 bits: it cannot overflow.
func (r Range) End() uint64 { return uint64(r.First) + uint64(r.Count) }

// Overlaps reports whether two ranges of one drive share an extent.
func (r Range) Overlaps(o Range) bool {
	return uint64(r.First) < o.End() && uint64(o.First) < r.End()
}

func (r Range) String() string {
	if r.Count == 1 {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.End()-1)
}

// A Piece is a range on a named drive. A volume is its pieces, in order.
type Piece struct {
	Drive string `json:"drive"` // the drive's UUID
	Range
}

// ErrFull is returned, wrapped, when there are not enough free extents.
var ErrFull = errors.New("not enough free extents")
