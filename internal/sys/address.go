package sys

import "unsafe"

// address returns where b starts, for a system call that takes it as a number.
// b lies outside the Go heap or is kept alive by the caller.
func address(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }
