package blockmap

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"vacate/internal/blk"
)

// count returns the number of written blocks.
func (b *Bits) count() uint64 {
	n := 0
	for w := uint64(0); w < ceil(b.Blocks, 64); w++ {
		if b.touched(w) {
			n += bits.OnesCount64(b.Words[w].Load())
		} else {
			w = b.nextTouched(w) - 1
		}
	}
	return uint64(n)
}

func newBits(blocks uint64) Bits {
	words := ceil(blocks, 64)
	return Bits{
		Words:   make([]atomic.Uint64, words),
		Summary: make([]atomic.Uint64, ceil(ceil(words, regionWords), 64)),
		Blocks:  blocks,
	}
}

// TestBitsModel compares the bits with a slice of bools, over sizes that do and
// do not end with a word, a region or a summary word.
func TestBitsModel(t *testing.T) {
	for _, blocks := range []uint64{1, 63, 64, 65, 1000, regionWords * 64, regionWords*64 + 1, 3*regionWords*64 + 77} {
		rng := rand.New(rand.NewPCG(blocks, 1))
		b, model := newBits(blocks), make([]bool, blocks)
		for range 60 {
			lo := rng.Uint64N(blocks)
			hi := lo + 1 + rng.Uint64N(min(blocks-lo, 1<<rng.UintN(18)))
			write := rng.IntN(2) == 0
			if write {
				b.set(lo, hi)
			} else {
				b.clear(lo, hi)
			}
			for i := lo; i < hi; i++ {
				model[i] = write
			}
			compare(t, &b, model, rng)
			if t.Failed() {
				return
			}
		}
	}
}

// compare checks count, and that runs from a random block on tile the rest and
// are maximal.
func compare(t *testing.T, b *Bits, model []bool, rng *rand.Rand) {
	t.Helper()
	n := uint64(0)
	for _, w := range model {
		if w {
			n++
		}
	}
	if got := b.count(); got != n {
		t.Errorf("%d blocks written, want %d", got, n)
	}
	lo := rng.Uint64N(b.Blocks)
	hi := lo + 1 + rng.Uint64N(b.Blocks-lo)
	for at := lo; at < hi; {
		end, written := b.run(at, hi)
		if end <= at || end > hi {
			t.Fatalf("run(%d, %d) ends at %d", at, hi, end)
		}
		for i := at; i < end; i++ {
			if model[i] != written {
				t.Fatalf("run(%d, %d) = %d, %v; block %d is %v", at, hi, end, written, i, model[i])
			}
		}
		if end < hi && model[end] == written {
			t.Fatalf("run(%d, %d) = %d, %v stops before the run does", at, hi, end, written)
		}
		at = end
	}
}

func TestBitsCheck(t *testing.T) {
	good := newBits(100_000)
	for _, tt := range []struct {
		name  string
		spoil func(b *Bits)
	}{
		{"no blocks", func(b *Bits) { b.Blocks = 0 }},
		{"too many blocks", func(b *Bits) { b.Blocks = blk.MaxVolume/blk.BlockSize + 1 }},
		{"too few words", func(b *Bits) { b.Words = b.Words[1:] }},
		{"too few summary words", func(b *Bits) { b.Summary = nil }},
	} {
		b := good
		if err := b.check(); err != nil {
			t.Fatal(err)
		}
		if tt.spoil(&b); b.check() == nil {
			t.Errorf("%s: accepted", tt.name)
		}
	}
}

// TestSparse: what was never written is not looked at, so that the bits of a
// large volume cost neither memory nor time. The words are poisoned where
// nothing may look.
func TestSparse(t *testing.T) {
	const blocks = 1 << 40 / blk.BlockSize // 1 TiB
	b := newBits(blocks)
	for w := 0; w < len(b.Words); w += 61 {
		b.Words[w].Store(^uint64(0)) // M2: without a summary bit these do not count
	}
	written := []uint64{0, 12345678, blocks - 1}
	for _, at := range written {
		first := at / 64 / regionWords * regionWords
		for w := first; w < first+regionWords; w++ {
			b.Words[w].Store(0)
		}
		b.set(at, at+1)
	}
	start := time.Now()
	counted := &Map{bits: b}
	if counted.Count(t.Context()); b.count() != 3 || counted.Written() != 3*blk.BlockSize {
		t.Errorf("%d blocks written, %d bytes counted, want 3 blocks", b.count(), counted.Written())
	}
	at, runs := uint64(0), 0
	for at < blocks {
		end, w := b.run(at, blocks)
		if want := at == written[0] || at == written[1] || at == written[2]; w != want {
			t.Errorf("block %d: written = %v", at, w)
		}
		at, runs = end, runs+1
	}
	if runs != 5 {
		t.Errorf("%d runs, want 5", runs)
	}
	b.clear(0, blocks)
	if n := b.count(); n != 0 {
		t.Errorf("%d blocks written after a discard of everything", n)
	}
	t.Logf("1 TiB counted twice, listed and discarded in %v", time.Since(start))
	if w := uint64(61 * regionWords); b.Words[w].Load() != ^uint64(0) {
		t.Errorf("the discard changed word %d, of a region that was never written", w)
	}
}

func BenchmarkDiscard1TiBSparse(b *testing.B) {
	bits := newBits(1 << 40 / blk.BlockSize)
	for b.Loop() {
		for at := uint64(0); at < bits.Blocks; at += bits.Blocks / 16 {
			bits.set(at, at+64)
		}
		bits.clear(0, bits.Blocks)
	}
}
