package ublk

import (
	"fmt"
	"math/bits"
	"unsafe"

	"vacate/internal/mem"
	"vacate/internal/plant"
)

// arenaBytes is how much memory a queue has for the data of requests in flight; what
// finds no room waits. Four of the longest requests fit.
const arenaBytes = 1 << 20

// An arena gives runs of pages for as long as a request lasts. It belongs to one
// goroutine. A run lies within one word of the map, 64 pages, which is as long as the
// longest transfer.
//
//	A1: what Get returns is all zeros: it is cleared when it is put back.
type arena struct {
	region *mem.Region
	free   []uint64 // a bit a page
}

const (
	pageBytes = 4096 // of the arena, whatever the machine's are
	wordPages = 64
)

func newArena(size int, lock mem.Lock) (*arena, error) {
	size = (size + wordPages*pageBytes - 1) / (wordPages * pageBytes) * (wordPages * pageBytes)
	r, err := mem.Map(size, lock)
	if err != nil {
		return nil, fmt.Errorf("memory for requests: %w", err)
	}
	a := &arena{region: r, free: make([]uint64, size/pageBytes/wordPages)}
	for i := range a.free {
		a.free[i] = ^uint64(0)
	}
	return a, nil
}

// get returns n bytes, or nil if there is no run of that length. 0 < n ≤ 64 pages.
func (a *arena) get(n int) []byte {
	pages := (n + pageBytes - 1) / pageBytes
	for i, word := range a.free {
		starts := runs(word, pages)
		if starts == 0 {
			continue
		}
		at := bits.TrailingZeros64(starts)
		a.free[i] &^= mask(pages) << at
		from := (i*wordPages + at) * pageBytes
		return a.region.Bytes()[from : from+n : from+n]
	}
	return nil
}

// put clears what get returned and takes it back.
func (a *arena) put(b []byte) {
	if !plant.Is(plant.BufferNotCleared) {
		mem.Wipe(b)
	}
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(a.region.Bytes())))
	page := int(at / pageBytes)
	m := mask((len(b)+pageBytes-1)/pageBytes) << (page % wordPages)
	if checked && a.free[page/wordPages]&m != 0 {
		panic("ublk: memory put back twice")
	}
	a.free[page/wordPages] |= m
}

func (a *arena) close() error { return a.region.Close() }

func mask(pages int) uint64 { return ^uint64(0) >> (wordPages - pages) }

// runs has a bit set where pages free pages begin.
func runs(free uint64, pages int) uint64 {
	for have := 1; have < pages; {
		step := min(have, pages-have)
		free &= free >> step
		have += step
	}
	return free
}
