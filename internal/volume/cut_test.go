package volume

import (
	"testing"

	"vacate/internal/blk"
)

func TestCut(t *testing.T) {
	const b = blk.BlockSize
	for _, tt := range []struct {
		name        string
		off, length int64
		want        parts
	}{
		{"whole block", b, b, parts{mid: b, end: 2 * b}},
		{"inside of a block", b + 512, 1024, parts{count: 1, edges: [2]edge{{off: b, from: 512, to: 1536}}, mid: b, end: b}},
		{"start of a block", b, 512, parts{count: 1, edges: [2]edge{{off: b, to: 512}}, mid: b, end: b}},
		{"end of a block", 2*b - 1, 1, parts{count: 1, edges: [2]edge{{off: b, from: b - 1, to: b}}, mid: 2 * b, end: 2 * b}},
		{"across a boundary", 2*b - 1, 2, parts{count: 2, edges: [2]edge{{off: b, from: b - 1, to: b}, {off: 2 * b, to: 1, at: 1}}, mid: 2 * b, end: 2 * b}},
		{"head and blocks", 512, 3*b - 512, parts{count: 1, edges: [2]edge{{from: 512, to: b}}, mid: b, end: 3 * b}},
		{"blocks and tail", b, b + 512, parts{count: 1, edges: [2]edge{{off: 2 * b, to: 512, at: b}}, mid: b, end: 2 * b}},
		{"all three", 512, 3 * b, parts{count: 2, edges: [2]edge{{from: 512, to: b}, {off: 3 * b, to: 512, at: 3*b - 512}}, mid: b, end: 3 * b}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := cut(tt.off, tt.length); got != tt.want {
				t.Errorf("cut(%d, %d) = %+v, want %+v", tt.off, tt.length, got, tt.want)
			}
		})
	}
}

// TestCutTiles: the parts tile the request, whatever it is, and edges are never
// whole blocks.
func TestCutTiles(t *testing.T) {
	for off := int64(0); off < 2*blk.BlockSize; off += 97 {
		for length := int64(1); length < 4*blk.BlockSize; length += 89 {
			checkCut(t, off, length)
		}
		checkCut(t, blk.MaxVolume-2*blk.BlockSize+off, 2*blk.BlockSize-off)
	}
}

func checkCut(t *testing.T, off, length int64) {
	t.Helper()
	p := cut(off, length)
	next := off
	piece := func(from, to int64) {
		if from != next || to < from {
			t.Fatalf("cut(%d, %d) = %+v: part %d…%d does not continue at %d", off, length, p, from, to, next)
		}
		next = to
	}
	edges := p.edges[:p.count]
	for i, e := range edges {
		if e.off%blk.BlockSize != 0 || e.from >= e.to || e.to-e.from >= blk.BlockSize || e.at != e.off+int64(e.from)-off {
			t.Fatalf("cut(%d, %d) = %+v: edge %d is wrong", off, length, p, i)
		}
	}
	if len(edges) > 0 && edges[0].at == 0 {
		piece(edges[0].off+int64(edges[0].from), edges[0].off+int64(edges[0].to))
		edges = edges[1:]
	}
	if p.mid%blk.BlockSize != 0 || p.end%blk.BlockSize != 0 {
		t.Fatalf("cut(%d, %d) = %+v: the middle is not in whole blocks", off, length, p)
	}
	if p.mid < p.end {
		piece(p.mid, p.end)
	}
	for _, e := range edges {
		piece(e.off+int64(e.from), e.off+int64(e.to))
	}
	if next != off+length {
		t.Fatalf("cut(%d, %d) = %+v ends at %d", off, length, p, next)
	}
}
