//go:build race

package virtq

import "unsafe"

// touch reads a byte. In builds with the race detector an atomic operation is
// carried out by code that cannot fault and go on: what is gone faults here.
//
//go:noinline
func touch(p unsafe.Pointer) byte { return *(*byte)(p) }
