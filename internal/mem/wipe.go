package mem

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"unsafe"

	"vacate/internal/xts"
)

// Wipe overwrites b with zeros. The compiler never removes it, however little
// is done with b afterwards.
//
//go:noinline
func Wipe(b []byte) {
	clear(b)
	// b is seen by what the compiler knows nothing about, after the stores.
	runtime.KeepAlive(unsafe.SliceData(b))
}

// Copy copies as copy does, what a tenant wrote: nothing of it stays in the vector
// registers, through which the runtime copies.
func Copy(dst, src []byte) int {
	defer xts.ClearVectors()
	return copy(dst, src)
}

// IsZero reports whether every byte of b is zero. It always reads memory, and
// leaves nothing of it in the vector registers.
//
//go:noinline
func IsZero(b []byte) bool {
	defer xts.ClearVectors()
	// Equal to itself shifted by one, and the first is zero: one pass of the
	// runtime's vector comparison.
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// Words views b as words for atomic access, in the machine's byte order. They
// share b's memory and are valid as long as it is.
//
// REQUIRES: b starts at a multiple of 8 and its length is a multiple of 8.
func Words(b []byte) []atomic.Uint64 {
	if len(b) == 0 {
		return nil
	}
	p := unsafe.Pointer(unsafe.SliceData(b))
	if uintptr(p)%8 != 0 || len(b)%8 != 0 {
		panic("mem: Words of memory that is not made of 8-byte words")
	}
	return unsafe.Slice((*atomic.Uint64)(p), len(b)/8)
}
