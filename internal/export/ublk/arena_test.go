package ublk

import (
	"math/bits"
	"math/rand/v2"
	"testing"
	"unsafe"

	"vacate/internal/mem"
)

// TestArena: runs never overlap, are as long as asked for, and come back cleared.
func TestArena(t *testing.T) {
	a, err := newArena(arenaBytes, mem.TryLock)
	if err != nil {
		t.Fatal(err)
	}
	base := uintptr(unsafe.Pointer(unsafe.SliceData(a.region.Bytes())))
	owner := make([]int, arenaBytes/pageBytes) // by page; 0: nobody
	held := map[int][]byte{}
	pages := func(b []byte) (from, to int) {
		at := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) - base)
		return at / pageBytes, (at + len(b) + pageBytes - 1) / pageBytes
	}
	full := 0
	for id := 1; id < 20_000; id++ {
		n := 1 + rand.IntN(wordPages*pageBytes)
		if rand.IntN(2) == 0 {
			n = pageBytes
		}
		b := a.get(n)
		if b == nil {
			full++
			for old, b := range held { // any
				from, to := pages(b)
				for p := from; p < to; p++ {
					owner[p] = 0
				}
				a.put(b)
				delete(held, old)
				break
			}
			continue
		}
		if len(b) != n || cap(b) != n || !mem.IsZero(b) {
			t.Fatalf("asked for %d bytes of zeros, got %d (%d)", n, len(b), cap(b))
		}
		from, to := pages(b)
		for p := from; p < to; p++ {
			if owner[p] != 0 {
				t.Fatalf("page %d is given to %d and to %d", p, owner[p], id)
			}
			owner[p] = id
		}
		b[0], b[n-1] = 1, 1
		held[id] = b
	}
	if full == 0 {
		t.Error("the arena was never full")
	}
	for _, b := range held {
		a.put(b)
	}
	for _, word := range a.free {
		if word != ^uint64(0) {
			t.Fatalf("%d pages are still out", 64-bits.OnesCount64(word))
		}
	}
	if !mem.IsZero(a.region.Bytes()) {
		t.Error("something was left in memory that was put back")
	}
	if err := a.close(); err != nil {
		t.Error(err)
	}
}

// TestRuns compares runs with looking at each place.
func TestRuns(t *testing.T) {
	for range 20_000 {
		free, n := rand.Uint64()|rand.Uint64(), 1+rand.IntN(wordPages)
		want := uint64(0)
		for at := 0; at+n <= wordPages; at++ {
			if m := mask(n) << at; free&m == m {
				want |= 1 << at
			}
		}
		if got := runs(free, n); got != want {
			t.Fatalf("runs(%#x, %d) = %#x, want %#x", free, n, got, want)
		}
	}
}
