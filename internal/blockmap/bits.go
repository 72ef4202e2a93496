package blockmap

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"vacate/internal/blk"
	"vacate/internal/plant"
)

// regionWords is the number of words that one summary bit stands for: a page of
// bits, 32,768 blocks, 128 MiB of a volume. Part of docs/spec/volatile.md.
const regionWords = 512

// Bits is the memory of a map: the caller's, most often a memfd that outlives
// the process.
//
// Invariants:
//
//	M1: a block is written if its bit in Words is set: block b is bit b%64 of
//	    word b/64.
//	M2: a summary bit r is set before any bit of words r×512 … r×512+511 is, and
//	    is never cleared. So words without a summary bit are zero, and are not
//	    looked at: a sparse memfd stays sparse.
//	M3: a block's state changes in one atomic operation on its word.
type Bits struct {
	Words   []atomic.Uint64
	Summary []atomic.Uint64
	Blocks  uint64
}

func ceil(n, unit uint64) uint64 { return (n + unit - 1) / unit }

// check returns why b cannot hold a map.
func (b *Bits) check() error {
	words := ceil(b.Blocks, 64)
	summary := ceil(ceil(words, regionWords), 64)
	if b.Blocks == 0 || b.Blocks > blk.MaxVolume/blk.BlockSize ||
		uint64(len(b.Words)) < words || uint64(len(b.Summary)) < summary {
		return fmt.Errorf("block map of %d blocks with %d words and %d summary words: want %d and %d",
			b.Blocks, len(b.Words), len(b.Summary), words, summary)
	}
	return nil
}

// touched reports whether the region of word w may hold a set bit (M2).
func (b *Bits) touched(w uint64) bool {
	r := w / regionWords
	return b.Summary[r/64].Load()&(1<<(r%64)) != 0
}

// span returns the bits of word w that belong to blocks lo … hi-1.
func span(w, lo, hi uint64) uint64 {
	mask := ^uint64(0)
	if first := w * 64; first < lo {
		mask <<= lo - first
	}
	if end := w*64 + 64; end > hi {
		mask &= ^uint64(0) >> (end - hi)
	}
	return mask
}

// have reports whether blocks lo … hi-1, of one word, are written: as most are
// that are written again, and nothing needs to change. If a discard clears a bit
// just after, it ran beside the write, and came last. The word is looked at whether
// it was touched or not: if it was not, it is about to be.
func (b *Bits) have(lo, hi uint64) bool {
	w := lo / 64
	mask := span(w, lo, hi)
	return (hi-1)/64 == w && b.Words[w].Load()&mask == mask
}

// set makes blocks lo … hi-1 written, and returns how many were not.
// REQUIRES: lo < hi ≤ Blocks.
func (b *Bits) set(lo, hi uint64) (changed int) {
	for w := lo / 64; w <= (hi-1)/64; w++ {
		mask := span(w, lo, hi)
		if r := w / regionWords; b.Summary[r/64].Load()&(1<<(r%64)) == 0 {
			b.Summary[r/64].Or(1 << (r % 64))
		}
		if b.Words[w].Load()&mask != mask {
			changed += bits.OnesCount64(mask &^ b.Words[w].Or(mask))
		}
	}
	return changed
}

// clear makes blocks lo … hi-1 unwritten, and returns how many were written.
// REQUIRES: lo < hi ≤ Blocks.
func (b *Bits) clear(lo, hi uint64) (changed int) {
	for w := lo / 64; w <= (hi-1)/64; {
		if !b.touched(w) {
			w = b.nextTouched(w)
			continue
		}
		if mask := span(w, lo, hi); b.Words[w].Load()&mask != 0 {
			changed += bits.OnesCount64(mask & b.Words[w].And(^mask))
		}
		w++
	}
	return changed
}

// nextTouched returns the first word after w, at the start of a region, whose
// region is touched, or len(Words) at the end.
func (b *Bits) nextTouched(w uint64) uint64 {
	for r := w/regionWords + 1; r/64 < uint64(len(b.Summary)); {
		if s := b.Summary[r/64].Load() >> (r % 64); s != 0 {
			return (r + uint64(bits.TrailingZeros64(s))) * regionWords
		}
		r = (r/64 + 1) * 64
	}
	return uint64(len(b.Words))
}

// run returns whether block lo is written, and the end of the run of blocks in
// the same state, at most hi. REQUIRES: lo < hi ≤ Blocks.
func (b *Bits) run(lo, hi uint64) (end uint64, written bool) {
	if plant.Is(plant.MapIgnored) {
		return hi, true
	}
	w := lo / 64
	if !b.touched(w) {
		return b.hole(b.nextTouched(w)*64, hi), false
	}
	word := b.Words[w].Load() >> (lo % 64)
	if word&1 == 0 {
		// The shifted-in zeros stand for bits beyond the word: hole goes on there.
		if word != 0 {
			return min(hi, lo+uint64(bits.TrailingZeros64(word))), false
		}
		return b.hole((w+1)*64, hi), false
	}
	end = lo + uint64(bits.TrailingZeros64(^word)) // at most the word's end
	for end%64 == 0 && end < hi && b.touched(end/64) {
		n := uint64(bits.TrailingZeros64(^b.Words[end/64].Load()))
		end += n
		if n < 64 {
			break
		}
	}
	return min(end, hi), true
}

// hole returns the end of the unwritten run that block at, the first of its
// word, continues.
func (b *Bits) hole(at, hi uint64) uint64 {
	for at < hi {
		w := at / 64
		if !b.touched(w) {
			at = b.nextTouched(w) * 64
			continue
		}
		if word := b.Words[w].Load(); word != 0 {
			return min(hi, at+uint64(bits.TrailingZeros64(word)))
		}
		at += 64
	}
	return hi
}
