package volatile

import (
	"errors"
	"math"
	"slices"
	"testing"
)

func testExtents(n int) []Extent {
	xs := make([]Extent, n)
	for i := range xs {
		xs[i] = Extent{Drive: [16]byte{1, byte(i)}, First: uint32(i) * 7, Count: uint32(i) + 1}
	}
	return xs
}

// newMap returns two mappings of one fresh map.
func newMap(t *testing.T, blocks uint64, extents int) (m, other *Map) {
	t.Helper()
	f, err := CreateMap(blocks, extents, testLease)
	if err != nil {
		t.Fatal(err)
	}
	second := dup(t, f)
	for _, p := range []struct {
		m **Map
		f func() (*Map, error)
	}{{&m, func() (*Map, error) { return OpenMap(f) }}, {&other, func() (*Map, error) { return OpenMap(second) }}} {
		got, err := p.f()
		if err != nil {
			t.Fatal(err)
		}
		*p.m = got
		t.Cleanup(func() {
			if err := got.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return m, other
}

func TestExtentsKept(t *testing.T) {
	for _, n := range []int{1, 2, 127, 128, 129, MaxExtents} {
		m, other := newMap(t, 1000, n)
		if _, err := other.Extents(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d extents that nobody wrote: %v", n, err)
		}
		want := testExtents(n)
		if err := m.SetExtents(want); err != nil {
			t.Fatal(err)
		}
		if got, err := other.Extents(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%d extents came back as %d, %v", n, len(got), err)
		}
		if err := other.SetExtents(want); !errors.Is(err, ErrWritten) {
			t.Errorf("writing extents twice: %v", err)
		}
		for i := range m.Summary() {
			if w := m.Summary()[i].Load(); w != 0 {
				t.Fatalf("word %d of the summary behind %d extents is %#x", i, n, w)
			}
		}
		m.Summary()[0].Store(^uint64(0))
		if got, err := other.Extents(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%d extents under a full summary: %d, %v", n, len(got), err)
		}
	}
}

func TestExtentsRefused(t *testing.T) {
	m, _ := newMap(t, 1000, 2)
	ok := Extent{Drive: [16]byte{1}, First: 1, Count: 1}
	for name, xs := range map[string][]Extent{
		"too few":  {ok},
		"too many": {ok, ok, ok},
		"no drive": {ok, {First: 1, Count: 1}},
		"empty":    {ok, {Drive: [16]byte{1}, First: 1}},
		"wrapping": {ok, {Drive: [16]byte{1}, First: math.MaxUint32, Count: 1}},
		"too long": {ok, {Drive: [16]byte{1}, First: 1, Count: math.MaxUint32}},
	} {
		if err := m.SetExtents(xs); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	last := Extent{Drive: [16]byte{1}, First: math.MaxUint32 - 1, Count: 1}
	if err := m.SetExtents([]Extent{ok, last}); err != nil { // nothing was written by those
		t.Errorf("after refusals: %v", err)
	}
}

// TestExtentsCut ends SetExtents after each word: Extents sees that it is not
// whole until it is, and a writer does not go on where another one ended.
func TestExtentsCut(t *testing.T) {
	whole, _ := newMap(t, 1, 3)
	want := testExtents(3)
	if err := whole.SetExtents(want); err != nil {
		t.Fatal(err)
	}
	for n := 0; n <= len(whole.extents()); n += 8 {
		m, _ := newMap(t, 1, 3)
		copy(m.extents(), whole.extents()[:n])
		got, err := m.Extents()
		if all := n == len(whole.extents()); all && (err != nil || !slices.Equal(got, want)) || !all && !errors.Is(err, ErrDamaged) {
			t.Errorf("with %d bytes: %+v, %v", n, got, err)
		}
		if err := m.SetExtents(want); n > 0 != errors.Is(err, ErrWritten) {
			t.Errorf("SetExtents over %d bytes: %v", n, err)
		}
	}
}

func TestExtentsEveryBit(t *testing.T) {
	m, other := newMap(t, 1, 3)
	if err := m.SetExtents(testExtents(3)); err != nil {
		t.Fatal(err)
	}
	b := m.extents()
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		if xs, err := other.Extents(); !errors.Is(err, ErrDamaged) {
			t.Errorf("bit %d: %+v, %v", i, xs, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	b[24] = 1
	seal(b[:extentSize])
	if xs, err := other.Extents(); !errors.Is(err, ErrFormat) {
		t.Errorf("a reserved byte in use: %+v, %v", xs, err)
	}
}

func FuzzExtent(f *testing.F) {
	var b [extentSize]byte
	encodeExtent(&b, &Extent{Drive: [16]byte{1}, First: 2, Count: 3})
	f.Add(b[:])
	f.Add(make([]byte, extentSize))
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, again [extentSize]byte
		copy(b[:], in)
		for range 2 {
			var x Extent
			if err := decodeExtent(&b, &x); err == nil {
				if encodeExtent(&again, &x); again != b {
					t.Fatalf("decoded %+v, encoded differently", x)
				}
			} else if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrDamaged) {
				t.Fatalf("an error of another kind: %v", err)
			}
			seal(b[:])
		}
	})
}
