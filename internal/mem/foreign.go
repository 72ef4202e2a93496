package mem

import (
	"unsafe"

	"vacate/internal/xts"
)

// Memory of somebody else, a guest's, may be taken away at any time; touching it
// is a fault then. Whoever touches it runs with debug.SetPanicOnFault, and makes
// of the panic what it means: the failure of one request.

// FaultIn reports whether p, which recover has returned, is a fault on a page of
// b. All else is to panic on.
func FaultIn(p any, b []byte) bool {
	fault, ok := p.(interface{ Addr() uintptr })
	if !ok || len(b) == 0 {
		return false
	}
	const page = 4 << 10 // the smallest there is
	first := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	from, to := first&^(page-1), (first+uintptr(len(b))+page-1)&^(page-1)
	return fault.Addr()-from < to-from
}

// CopyForeign copies like [Copy], where foreign, which is dst or src or has it as a
// part, may fault. It reports false if it does; an unknown part is then copied.
//
// REQUIRES: debug.SetPanicOnFault.
func CopyForeign(dst, src, foreign []byte) (ok bool) {
	defer xts.ClearVectors()
	defer caught(foreign)
	copy(dst, src)
	return true
}

// ClearForeign overwrites b with zeros, and reports false if it faults; an unknown
// part is then overwritten.
//
// REQUIRES: debug.SetPanicOnFault.
func ClearForeign(b []byte) (ok bool) {
	defer caught(b)
	clear(b)
	return true
}

// caught ends the panic of a fault in b. It is deferred: the results of the
// function that faulted are what they were before, false.
func caught(b []byte) {
	if p := recover(); p != nil && !FaultIn(p, b) {
		panic(p)
	}
}
