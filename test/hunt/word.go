package main

import (
	"sync/atomic"
	"unsafe"
)

// atomic32 and load32 change and read the first word of the fail points' file,
// which other processes map.

func atomic32(b *byte, v uint32) { atomic.StoreUint32((*uint32)(unsafe.Pointer(b)), v) }

func load32(b *byte) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Pointer(b))) }
