package volume

import "vacate/internal/blk"

// An edge is a block that a request covers in part.
type edge struct {
	off      int64 // of the block, bytes from the start of the volume
	from, to int   // the part of the block that is covered, in bytes: 0 ≤ from < to ≤ 4096, not all of it
	at       int64 // where that part lies in the request, in bytes
}

// parts is a request, cut at the boundaries of blocks: at most two edges, and
// the whole blocks between them, mid … end-1. They tile the request.
type parts struct {
	edges    [2]edge
	count    int   // of edges
	mid, end int64 // bytes from the start of the volume; mid == end if there are none
}

func aligned(r *blk.Request) bool { return (r.Off|r.Len)%blk.BlockSize == 0 }

func down(n int64) int64 { return n &^ (blk.BlockSize - 1) }
func up(n int64) int64   { return down(n + blk.BlockSize - 1) }

// cut cuts the range of length bytes from off on. REQUIRES: length > 0.
func cut(off, length int64) parts {
	var p parts
	end := off + length
	p.mid, p.end = up(off), down(end)
	if p.mid > p.end { // inside of one block
		p.edges[0] = edge{off: down(off), from: int(off - down(off)), to: int(end - down(off))}
		p.count, p.mid = 1, p.end
		return p
	}
	if off < p.mid {
		p.edges[0] = edge{off: down(off), from: int(off - down(off)), to: blk.BlockSize}
		p.count = 1
	}
	if p.end < end {
		p.edges[p.count] = edge{off: p.end, to: int(end - p.end), at: p.end - off}
		p.count++
	}
	return p
}
