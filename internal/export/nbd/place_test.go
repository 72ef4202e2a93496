package nbd

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// FuzzArena compares an arena with a model that marks each byte: places never
// overlap, and what fits is found.
func FuzzArena(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed, uint16(300))
	}
	f.Fuzz(func(t *testing.T, seed uint64, steps uint16) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const size = 256
		var a arena
		a.init(size)
		var used [size]bool
		var places []*place
		mark := func(p *place, on bool) {
			for i := p.at; i < p.end; i++ {
				if used[i] == on {
					t.Fatalf("byte %d is marked %v twice", i, on)
				}
				used[i] = on
			}
		}
		for range steps {
			switch {
			case len(places) > 0 && rng.IntN(2) == 0:
				i := rng.IntN(len(places))
				mark(places[i], false)
				a.drop(places[i])
				places = slices.Delete(places, i, i+1)
			default:
				p, n := new(place), 1+rng.IntN(64)
				ok := a.put(p, n)
				if want := widestRun(used[:]) >= n; ok != want {
					t.Fatalf("put of %d bytes: %v, want %v", n, ok, want)
				}
				if ok {
					if p.end-p.at != n {
						t.Fatalf("put of %d bytes gave %d", n, p.end-p.at)
					}
					mark(p, true)
					places = append(places, p)
				}
			}
			if a.empty() != (len(places) == 0) {
				t.Fatalf("empty: %v with %d places", a.empty(), len(places))
			}
			if got, want := a.widest().gap(), widestRun(used[:]); got != want {
				t.Fatalf("the widest gap has %d bytes, want %d", got, want)
			}
			if a.empty() && a.last != &a.rim {
				t.Fatal("an empty arena does not start at its front (P2)")
			}
		}
	})
}

func widestRun(used []bool) (widest int) {
	n := 0
	for _, u := range used {
		if n++; u {
			n = 0
		}
		widest = max(widest, n)
	}
	return widest
}

// TestRuns: runs tile the read, and a hole beside data is a block at least.
func TestRuns(t *testing.T) {
	const b = 4096
	type span struct {
		n       int64
		written bool
	}
	for _, tt := range []struct {
		name  string
		depth int
		map_  []span
		want  []run
	}{
		{"nothing told", 8, nil, []run{{6 * b, true}}},
		{"one hole", 8, []span{{6 * b, false}}, []run{{6 * b, false}}},
		{"hole and data", 8, []span{{b, false}, {5 * b, true}}, []run{{b, false}, {5 * b, true}}},
		{"told in pieces", 8, []span{{b, false}, {b, false}, {4 * b, true}}, []run{{2 * b, false}, {4 * b, true}}},
		{"less than a block", 8, []span{{b - 1, false}, {5*b + 1, true}}, []run{{6 * b, true}}},
		{"a short end", 8, []span{{5 * b, true}, {b - 1, false}, {1, false}}, []run{{6 * b, true}}},
		{"the rest untold", 8, []span{{b, false}}, []run{{b, false}, {5 * b, true}}},
		{"more than there is", 8, []span{{100 * b, false}}, []run{{6 * b, false}}},
		{"few slots", 2, []span{{b, true}, {b, false}, {b, true}, {b, false}}, []run{{b, true}, {5 * b, true}}},
		{"one slot", 1, []span{{b, false}, {b, true}}, []run{{6 * b, true}}},
	} {
		var u runs
		u.init(func(off, _ int64, yield func(off, n int64, written bool) bool) {
			for _, s := range tt.map_ {
				if !yield(off, s.n, s.written) {
					return
				}
				off += s.n
			}
		}, tt.depth)
		u.cut(12345, 6*b)
		if got := u.list[:u.n]; !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
