package engine

import (
	"cmp"
	"fmt"
	"slices"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/crypt"
	"vacate/internal/drive"
	"vacate/internal/extent"
	"vacate/internal/mem"
	"vacate/internal/volume"
	"vacate/internal/xts"
)

// A path is the layers of one lease, top to bottom.
type path struct {
	volume *volume.Volume // bounds, gate, sub-block requests
	blocks *blockmap.Map  // written? else zeros
	cipher *crypt.Crypt   // encrypts while copying
}

// layers is what a path is built from.
type layers struct {
	size    int64 // bytes
	logical int   // bytes: 512 or 4096
	limits  volume.Limits
	space   []drive.SpanPiece
	key     *xts.Schedule
	bits    blockmap.Bits
	lock    mem.Lock
}

// build stacks the layers of a lease, as docs/ARCHITECTURE.md draws them:
//
//	export → volume → blockmap → crypt → span → drives
func build(l layers) (*path, error) {
	space, err := drive.NewSpan(l.space)
	if err != nil {
		return nil, err
	}
	cipher := crypt.New(space, l.key, l.lock)
	blocks := blockmap.New(cipher, l.bits)
	vol := volume.New(blocks, volume.Config{Size: l.size, Logical: l.logical, Limits: l.limits, Lock: l.lock})
	return &path{volume: vol, blocks: blocks, cipher: cipher}, nil
}

// room is a drive's data area, as much of it as placing pieces needs.
type room struct {
	device      blk.Device
	extentBytes int64
	extents     uint32
}

// place turns pieces of enrolled drives into pieces of devices, size bytes in
// all. The last piece may be longer than what is left of the volume, by less
// than an extent. No extent comes twice.
func place(pieces []extent.Piece, size int64, rooms map[string]room) ([]drive.SpanPiece, error) {
	placed := make([]drive.SpanPiece, 0, len(pieces))
	left := size
	if what, twice := repeated(pieces); twice {
		return nil, invalid("%s come twice in one volume", what)
	}
	for _, p := range pieces {
		r, ok := rooms[p.Drive]
		if !ok {
			return nil, notFound("drive %s is not open", p.Drive)
		}
		if p.Count == 0 || p.End() > uint64(r.extents) {
			return nil, invalid("drive %s has no extents %v: it has %d", p.Drive, p.Range, r.extents)
		}
		if left <= 0 {
			return nil, invalid("extents %v of drive %s lie behind the volume's end", p.Range, p.Drive)
		}
		length := min(left, int64(p.Count)*r.extentBytes)
		if int64(p.Count)*r.extentBytes-length >= r.extentBytes {
			return nil, invalid("extents %v of drive %s are more than the volume's last %d bytes need", p.Range, p.Drive, left)
		}
		placed = append(placed, drive.SpanPiece{Drive: r.device, Off: int64(p.First) * r.extentBytes, Len: length})
		left -= length
	}
	if left > 0 {
		return nil, invalid("the pieces lack %d of the volume's %d bytes", left, size)
	}
	return placed, nil
}

// repeated returns a piece that shares an extent with another of the same volume.
func repeated(pieces []extent.Piece) (string, bool) {
	byStart := slices.SortedFunc(slices.Values(pieces), func(a, b extent.Piece) int {
		return cmp.Or(cmp.Compare(a.Drive, b.Drive), cmp.Compare(a.First, b.First))
	})
	for i := 1; i < len(byStart); i++ {
		if what, both := overlap(byStart[i:i+1], byStart[i-1:i]); both {
			return what, true
		}
	}
	return "", false
}

// overlap returns the first piece of a that shares an extent with one of b.
func overlap(a, b []extent.Piece) (string, bool) {
	for _, p := range a {
		for _, q := range b {
			if p.Drive == q.Drive && p.Overlaps(q.Range) {
				return fmt.Sprintf("extents %v of drive %s", p.Range, p.Drive), true
			}
		}
	}
	return "", false
}
