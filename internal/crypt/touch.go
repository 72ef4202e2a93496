//go:build !race

package crypt

import (
	"sync/atomic"
	"unsafe"

	"vacate/internal/blk"
)

// touchStore stores to each page of w, and changes nothing, also where another
// queue stores at the same time. A load would not do: a page may be there to
// read, and need space to be written. It is no part of its caller, so that a
// profile tells them apart: what it takes is the memory's time.
//
//go:noinline
func touchStore(w []byte) {
	for i := 0; i < len(w); i += blk.BlockSize {
		p := unsafe.Pointer(&w[i])
		skew := uintptr(p) & 3 // of foreign buffers, which begin anywhere: the word around it, in the same page
		atomic.OrUint32((*uint32)(unsafe.Add(p, -int(skew))), 0)
	}
}
