package virtq

import (
	"sync/atomic"
	"unsafe"

	"vacate/internal/mem"
)

// Memory that is shared with a guest is read through these, a word once, into a
// local; only then it is checked and used. What they touch may fault.

// load16 reads a 16-bit word at an even address. What is loaded after it in the
// program is loaded after it (2.7.13.2: the index before the entries).
func load16(p unsafe.Pointer) uint16 {
	touch(p)
	skew := uintptr(p) & 2
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(skew)))) >> (8 * skew))
}

// load64 reads a 64-bit word at a multiple of 8.
func load64(p unsafe.Pointer) uint64 {
	touch(p)
	return atomic.LoadUint64((*uint64)(p))
}

// store32 writes a 32-bit word at a multiple of 4. What was stored before it is
// seen before it, and what is loaded after it is loaded after it.
func store32(p unsafe.Pointer, v uint32) {
	touch(p)
	atomic.StoreUint32((*uint32)(p), v)
}

// put16, put32 and put64 write words that a later store32 or a barrier publishes,
// or that only a successor reads: it sees a prefix of what this thread has
// stored, whenever the process is killed.

func put16(p unsafe.Pointer, v uint16) { *(*uint16)(p) = v }
func put32(p unsafe.Pointer, v uint32) { *(*uint32)(p) = v }
func put64(p unsafe.Pointer, v uint64) { *(*uint64)(p) = v }

// prefetch has the line of p fetched. It never faults.
func prefetch(p unsafe.Pointer) { mem.Prefetch(unsafe.Slice((*byte)(p), 1)) }
