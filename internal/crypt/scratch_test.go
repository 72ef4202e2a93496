package crypt

import (
	"math/rand/v2"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// TestScratchModel compares the allocator with a slice of bools: first fit, no
// block given twice, and nothing beyond the end.
func TestScratchModel(t *testing.T) {
	for _, size := range []int{blk.MaxTransfer, scratchBytes} {
		s, err := newScratch(size, mem.TryLock)
		if err != nil {
			t.Fatal(err)
		}
		blocks := size / blk.BlockSize
		model := make([]bool, blocks)
		fits := func(at, n int) bool {
			for i := at; i < at+n; i++ {
				if i >= blocks || model[i] {
					return false
				}
			}
			return true
		}
		type piece struct{ at, n int }
		var out []piece
		rng := rand.New(rand.NewPCG(uint64(size), 1))
		for range 20_000 {
			if len(out) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(out))
				p := out[i]
				out[i] = out[len(out)-1]
				out = out[:len(out)-1]
				s.give(p.at, p.n)
				for b := p.at; b < p.at+p.n; b++ {
					model[b] = false
				}
				continue
			}
			n := 1 + rng.IntN(1<<rng.IntN(7))
			want := -1
			for at := range blocks {
				if fits(at, n) {
					want = at
					break
				}
			}
			if got := s.take(n); got != want {
				t.Fatalf("take(%d) = %d, want %d", n, got, want)
			}
			if want < 0 {
				continue
			}
			out = append(out, piece{want, n})
			for b := want; b < want+n; b++ {
				model[b] = true
			}
			if got := len(s.bytes(want, n)); got != n*blk.BlockSize {
				t.Fatalf("%d bytes for %d blocks", got, n)
			}
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}
