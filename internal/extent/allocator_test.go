package extent

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the slow, obvious allocator: one flag an extent.
type model []bool // held

func (m model) free() uint32 {
	n := uint32(0)
	for _, held := range m {
		if !held {
			n++
		}
	}
	return n
}

// runs returns the lengths of the free runs, longest first.
func (m model) runs() []uint32 {
	var lengths []uint32
	run := uint32(0)
	for i, held := range append(slices.Clone(m), true) {
		if i < len(m) && !held {
			run++
		} else if run > 0 {
			lengths = append(lengths, run)
			run = 0
		}
	}
	slices.Sort(lengths)
	slices.Reverse(lengths)
	return lengths
}

// fewest is how few ranges can hold count extents.
func (m model) fewest(count uint32) int {
	for i, l := range m.runs() {
		if count <= l {
			return i + 1
		}
		count -= l
	}
	return 0
}

func (m model) set(r Range, held bool) {
	for i := uint64(r.First); i < r.End(); i++ {
		m[i] = held
	}
}

// check holds the allocator's invariants against the model.
func (a *Allocator) check(t *rapid.T, m model) {
	total, next := uint32(0), int64(-1)
	seen := make(model, len(m))
	for i := range seen {
		seen[i] = true
	}
	for _, r := range a.free {
		if r.Count == 0 || int64(r.First) <= next {
			t.Fatalf("A1: range %v does not stand apart in %v", r, a.free)
		}
		next = int64(r.End())
		total += r.Count
		seen.set(r, false)
	}
	if total != a.count || total != a.FreeCount() {
		t.Fatalf("A2: count %d, ranges sum to %d", a.count, total)
	}
	if !slices.Equal(seen, m) {
		t.Fatalf("A3: allocator holds %v, model %v", seen, m)
	}
}

func TestAllocatorAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint32Range(0, 64).Draw(t, "size")
		a, m := NewAllocator(size), make(model, size)
		var held []Range
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { a.check(t, m) },
			"alloc": func(t *rapid.T) {
				count := rapid.Uint32Range(1, size+2).Draw(t, "count")
				got, err := a.Alloc(count)
				if count > m.free() {
					if !errors.Is(err, ErrFull) || got != nil {
						t.Fatalf("Alloc(%d) = %v, %v with %d free", count, got, err, m.free())
					}
					return
				}
				if err != nil {
					t.Fatalf("Alloc(%d) with %d free: %v", count, m.free(), err)
				}
				if want := m.fewest(count); len(got) != want {
					t.Fatalf("Alloc(%d) = %v: %d ranges suffice", count, got, want)
				}
				total := uint32(0)
				for _, r := range got {
					for i := uint64(r.First); i < r.End(); i++ {
						if m[i] {
							t.Fatalf("A3: extent %d handed out twice", i)
						}
					}
					m.set(r, true)
					total += r.Count
				}
				if total != count {
					t.Fatalf("Alloc(%d) returned %d extents", count, total)
				}
				held = append(held, got...)
			},
			"reserve": func(t *rapid.T) {
				r := Range{rapid.Uint32Range(0, size+1).Draw(t, "first"), rapid.Uint32Range(0, size+1).Draw(t, "count")}
				free := r.Count > 0 && r.End() <= uint64(size)
				for i := uint64(r.First); free && i < r.End(); i++ {
					free = !m[i]
				}
				err := a.Reserve(r)
				if free != (err == nil) || err != nil && !errors.Is(err, ErrOverlap) {
					t.Fatalf("Reserve(%v) = %v, free is %v", r, err, free)
				}
				if free {
					m.set(r, true)
					held = append(held, r)
				}
			},
			"free": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "which")
				r := held[i]
				held = slices.Delete(held, i, i+1)
				if r.Count > 1 && rapid.Bool().Draw(t, "in two portions") {
					n := rapid.Uint32Range(1, r.Count-1).Draw(t, "portion")
					rest := Range{r.First + n, r.Count - n}
					held = append(held, rest)
					r.Count = n
				}
				a.Free(r)
				m.set(r, false)
			},
		})
	})
}

func TestFreeOfWhatIsNotHeldPanics(t *testing.T) {
	for _, r := range []Range{{0, 1}, {4, 4}, {3, 2}, {7, 2}, {8, 1}, {5, 0}, {math.MaxUint32, math.MaxUint32}} {
		a := NewAllocator(8)
		if err := a.Reserve(Range{4, 2}); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Free(%d+%d) went through", r.First, r.Count)
				}
			}()
			a.Free(r)
		}()
		if a.FreeCount() != 6 {
			t.Errorf("Free(%d+%d) left %d free extents, want 6", r.First, r.Count, a.FreeCount())
		}
	}
}

func TestAllocatorAtTheLargestDrive(t *testing.T) {
	a := NewAllocator(math.MaxUint32)
	got, err := a.Alloc(math.MaxUint32)
	if err != nil || len(got) != 1 || a.FreeCount() != 0 {
		t.Fatalf("Alloc of everything = %v, %v", got, err)
	}
	a.Free(got[0])
	if err := a.Reserve(Range{math.MaxUint32 - 1, 1}); err != nil || a.FreeCount() != math.MaxUint32-1 {
		t.Fatalf("Reserve of the last extent: %v, %d free", err, a.FreeCount())
	}
}
