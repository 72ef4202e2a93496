package extent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sort"
)

// ErrOverlap is returned, wrapped, when extents that are to be held are held
// already, or do not exist.
var ErrOverlap = errors.New("extents are not free")

// An Allocator knows which extents of one drive are free. It does no I/O and
// has no lock: its owner guards it.
//
// Invariants:
//
//	A1: free is sorted, its ranges are not empty, and no two touch.
//	A2: count is the sum of their counts.
//	A3: an extent that was handed out or reserved is in no range of free until
//	    Free gives it back.
type Allocator struct {
	size  uint32 // extents 0 … size-1 exist
	count uint32 // free extents
	free  []Range
}

// NewAllocator returns an allocator of size extents, all of them free.
func NewAllocator(size uint32) *Allocator {
	a := &Allocator{size: size, count: size}
	if size > 0 {
		a.free = []Range{{First: 0, Count: size}}
	}
	return a
}

// Size is the number of extents, free or not.
func (a *Allocator) Size() uint32 { return a.size }

// FreeCount is the number of free extents.
func (a *Allocator) FreeCount() uint32 { return a.count }

// Alloc takes count free extents: the first run that is long enough, or, where
// none is, the longest runs, so that the ranges are as few as can be. They are
// returned in ascending order. With fewer than count extents free it takes none
// and returns an error that wraps [ErrFull].
//
// REQUIRES: count ≥ 1.
func (a *Allocator) Alloc(count uint32) ([]Range, error) {
	if count == 0 {
		panic("extent: allocation of no extents")
	}
	if count > a.count {
		return nil, fmt.Errorf("allocating %d of %d free extents: %w", count, a.count, ErrFull)
	}
	for _, r := range a.free {
		if r.Count >= count {
			got := Range{First: r.First, Count: count}
			a.take(got)
			return []Range{got}, nil
		}
	}
	runs := slices.Clone(a.free)
	slices.SortStableFunc(runs, func(x, y Range) int { return cmp.Compare(y.Count, x.Count) })
	var got []Range
	for _, r := range runs {
		r.Count = min(r.Count, count)
		got = append(got, r)
		if count -= r.Count; count == 0 {
			break
		}
	}
	slices.SortFunc(got, func(x, y Range) int { return cmp.Compare(x.First, y.First) })
	for _, r := range got {
		a.take(r)
	}
	return got, nil
}

// Reserve takes the extents of r, which someone holds since before the
// allocator was made. Where one of them does not exist, or is not free, it takes
// none and returns an error that wraps [ErrOverlap].
func (a *Allocator) Reserve(r Range) error {
	if r.Count == 0 || r.End() > uint64(a.size) {
		return fmt.Errorf("reserving extents %d+%d of %d: %w", r.First, r.Count, a.size, ErrOverlap)
	}
	i := a.search(r.First)
	if i == len(a.free) || a.free[i].First > r.First || a.free[i].End() < r.End() {
		return fmt.Errorf("reserving extents %v: %w", r, ErrOverlap)
	}
	a.take(r)
	return nil
}

// Free gives back extents that Alloc or Reserve took, in whatever portions.
// Giving back what is free already would hand one extent to two tenants, so it
// panics.
func (a *Allocator) Free(r Range) {
	i := a.search(r.First)
	if r.Count == 0 || r.End() > uint64(a.size) || i < len(a.free) && a.free[i].Overlaps(r) {
		panic(fmt.Sprintf("extent: freeing %d+%d of %d, which is not held", r.First, r.Count, a.size))
	}
	a.count += r.Count
	if i < len(a.free) && r.End() == uint64(a.free[i].First) {
		r.Count += a.free[i].Count
		a.free = slices.Delete(a.free, i, i+1)
	}
	if i > 0 && a.free[i-1].End() == uint64(r.First) {
		a.free[i-1].Count += r.Count
		return
	}
	a.free = slices.Insert(a.free, i, r)
}

// search finds the first free range that ends after extent first.
func (a *Allocator) search(first uint32) int {
	return sort.Search(len(a.free), func(i int) bool { return a.free[i].End() > uint64(first) })
}

// take removes r, which lies within one free range, from the free ones.
func (a *Allocator) take(r Range) {
	i := a.search(r.First)
	whole := a.free[i]
	a.count -= r.Count
	left := Range{First: whole.First, Count: r.First - whole.First}
	right := Range{First: uint32(r.End()), Count: uint32(whole.End() - r.End())} // meaningless when empty
	switch {
	case left.Count == 0 && right.Count == 0:
		a.free = slices.Delete(a.free, i, i+1)
	case left.Count == 0:
		a.free[i] = right
	case right.Count == 0:
		a.free[i] = left
	default:
		a.free[i] = left
		a.free = slices.Insert(a.free, i+1, right)
	}
}
