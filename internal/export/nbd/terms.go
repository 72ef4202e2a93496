package nbd

import (
	"fmt"
	"math/bits"

	"vacate/internal/blk"
)

// What goes with a connection that is handed over: the terms as one number, laid
// out in docs/spec/nbd.md. Who reads it checks that it would have agreed to them.

const (
	termsVersion = 1

	termsSizeBits   = 48 // from bit 0: the volume's size in logical blocks, its low bits
	termsBlockShift = 48 // 4 bits: log2 of the logical block
	termsStructured = 1 << 52
	termsAllocation = 1 << 53
	termsBlockSizes = 1 << 54 // the client asked for block sizes
	termsReserved   = 31 << 55
	termsVersionAt  = 60 // 4 bits
)

// pack returns the terms of a connection to a volume of geometry g. The size is that
// which the client was told: the volume may have got larger since.
func (t *terms) pack(g blk.Geometry) uint64 {
	g.Size = int64(t.size)
	v := volumeBits(g) | termsVersion<<termsVersionAt
	if t.structured {
		v |= termsStructured
	}
	if t.allocation {
		v |= termsAllocation
	}
	if t.align > 1 {
		v |= termsBlockSizes
	}
	return v
}

// volumeBits are the terms that only the volume decides.
func volumeBits(g blk.Geometry) uint64 {
	shift := bits.TrailingZeros(uint(g.Logical))
	return uint64(g.Size)>>shift&(1<<termsSizeBits-1) | uint64(shift)<<termsBlockShift
}

// unpackTerms reads what pack returned, maybe in another release of this
// program, for the volume of geometry g.
func unpackTerms(v uint64, g blk.Geometry) (terms, error) {
	told, ok := toldSize(v, g)
	switch version := v >> termsVersionAt; {
	case version != termsVersion:
		return terms{}, fmt.Errorf("terms %#016x: version %d, want %d", v, version, termsVersion)
	case v&termsReserved != 0:
		return terms{}, fmt.Errorf("terms %#016x: unknown bits %#x are set", v, v&termsReserved)
	case !ok:
		return terms{}, fmt.Errorf("terms %#016x: the client was told of another volume than this one of %d bytes, in blocks of %d",
			v, g.Size, g.Logical)
	case v&termsAllocation != 0 && v&termsStructured == 0:
		return terms{}, fmt.Errorf("terms %#016x: base:allocation without structured replies", v)
	}
	t := terms{
		size: told, align: 1,
		structured: v&termsStructured != 0,
		allocation: v&termsAllocation != 0,
	}
	if v&termsBlockSizes != 0 {
		t.align = uint64(g.Logical)
	}
	return t, nil
}

// toldSize is the size in bytes that a client with terms v was told; false: it was
// not of the volume of geometry g, which may have been smaller then.
func toldSize(v uint64, g blk.Geometry) (uint64, bool) {
	const sizeMask = 1<<termsSizeBits - 1
	now := volumeBits(g)
	blocks, shift := v&sizeMask, now>>termsBlockShift
	switch {
	case v>>termsBlockShift&15 != shift:
		return 0, false
	case uint64(g.Size)>>shift > sizeMask: // the terms have its low bits only
		return uint64(g.Size), blocks == now&sizeMask
	}
	return blocks << shift, blocks > 0 && blocks <= now&sizeMask
}
