package crypt

import (
	"math/bits"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// scratch is page-aligned memory in pieces of whole blocks, first fit from the
// bottom, so that a queue that is never busy never touches most of it. It holds
// ciphertext (C4), and is therefore not cleared when a piece is given back.
type scratch struct {
	region *mem.Region
	buf    []byte
	blocks int
	// busy has a bit a block. What lies beyond blocks is busy for ever.
	busy [scratchBytes/blk.BlockSize/64 + 2]uint64
}

// newScratch makes scratch of size bytes. REQUIRES: size is a multiple of
// [blk.BlockSize], at least [blk.MaxTransfer], at most scratchBytes.
func newScratch(size int, lock mem.Lock) (*scratch, error) {
	r, err := mem.Map(size, lock)
	if err != nil {
		return nil, err
	}
	s := &scratch{region: r, buf: r.Bytes(), blocks: size / blk.BlockSize}
	for i := s.blocks; i < 64*len(s.busy); i++ {
		s.busy[i/64] |= 1 << (i % 64)
	}
	return s, nil
}

// window returns the 64 busy bits from block at on.
func (s *scratch) window(at int) uint64 {
	i, shift := at/64, uint(at%64)
	return s.busy[i]>>shift | s.busy[i+1]<<(64-shift)
}

// take returns the first of n free blocks that lie side by side, or -1.
// REQUIRES: 1 ≤ n ≤ 64.
func (s *scratch) take(n int) int {
	want := ^uint64(0) >> (64 - n)
	for at := 0; at+n <= s.blocks; {
		w := s.window(at)
		if clash := w & want; clash == 0 {
			s.flip(at, n)
			return at
		} else if w&1 != 0 {
			at += bits.TrailingZeros64(^w) // to the first block that is free
		} else {
			at += bits.Len64(clash) // beyond the last that is in the way
		}
	}
	return -1
}

// give takes back what take returned.
func (s *scratch) give(at, n int) { s.flip(at, n) }

func (s *scratch) flip(at, n int) {
	i, shift := at/64, uint(at%64)
	run := ^uint64(0) >> (64 - n)
	s.busy[i] ^= run << shift
	s.busy[i+1] ^= run >> (64 - shift)
}

// bytes returns the memory of n blocks from at on.
func (s *scratch) bytes(at, n int) []byte {
	lo, hi := at*blk.BlockSize, (at+n)*blk.BlockSize
	return s.buf[lo:hi:hi]
}

func (s *scratch) close() error { return s.region.Close() }
