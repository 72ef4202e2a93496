package proof

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func (h *holding) depth() int {
	if h == nil {
		return 0
	}
	return 1 + max(h.left.depth(), h.right.depth())
}

// TestHoldings holds the tree of holdings to a list of them.
func TestHoldings(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	type key struct {
		first uint32
		lease string
	}
	model := map[key]Range{}
	var tree *holding
	for step := range 20_000 {
		k := key{random.Uint32N(200), fmt.Sprint(random.IntN(8))}
		if _, ok := model[k]; ok {
			delete(model, k)
			tree = tree.without(k.first, k.lease)
		} else {
			r := Range{k.first, 1 + random.Uint32N(30)}
			model[k] = r
			tree = tree.with(&holding{Range: r, lease: k.lease, rank: random.Uint64()})
		}
		if step%50 != 0 {
			continue
		}
		q := Range{random.Uint32N(230), 1 + random.Uint32N(20)}
		var got, want []string
		tree.overlapping(q, func(h *holding) bool { got = append(got, fmt.Sprint(h.First, h.lease)); return true })
		for k, r := range model {
			if r.Overlaps(q) {
				want = append(want, fmt.Sprint(k.first, k.lease))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("step %d: %v overlap %v, want %v", step, got, q, want)
		}
	}
	if tree = tree.without(1000, "nobody's"); tree.depth() == 0 {
		t.Error("the tree is empty")
	}
}

// TestHoldingsDepth: whatever order a log has, the tree stays flat, and a look into it
// stops when it is told to.
func TestHoldingsDepth(t *testing.T) {
	var tree *holding
	const n = 50_000
	for i := range uint32(n) {
		tree = tree.with(&holding{Range: Range{i, 2}, lease: "a", rank: rand.Uint64()})
	}
	for i := range uint32(n) { // and all of them hold one extent
		tree = tree.with(&holding{Range: Range{n, 1}, lease: fmt.Sprint(i), rank: rand.Uint64()})
	}
	if d := tree.depth(); d > 150 { // expected: about 45
		t.Errorf("%d holdings are %d deep", 2*n, d)
	}
	seen := 0
	tree.overlapping(Range{n, 1}, func(*holding) bool { seen++; return seen < 64 })
	if seen != 64 {
		t.Errorf("%d were seen", seen)
	}
}
