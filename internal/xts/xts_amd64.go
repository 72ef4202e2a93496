//go:build !purego

package xts

import "golang.org/x/sys/cpu"

// A kernel is one way to compute. Calls go through a switch: a func value would
// make the arguments escape to the heap.
type kernel uint8

const (
	kernelGeneric kernel = iota
	kernelAESNI
)

// active is set once, before main.
var active = choose()

func choose() kernel {
	switch {
	case cpu.X86.HasAES: // implies SSE2, all that the kernel needs besides
		return kernelAESNI
	default:
		return kernelGeneric
	}
}

func implementation() string {
	switch active {
	case kernelAESNI:
		return "aesni"
	default:
		return "generic"
	}
}

// maxCall is how much data one call of the assembly handles, in bytes: a thread
// in assembly can not be stopped, and all others would wait for it when the
// collector stops the world. It is some ten microseconds. A single data unit that
// is longer is not split.
const maxCall = 64 << 10

func expand(s *Schedule, key *[KeySize]byte) {
	switch active {
	case kernelAESNI:
		expandAESNI(s, key)
	default:
		expandGeneric(s, key)
	}
}

func encrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	if active == kernelGeneric {
		encryptGeneric(s, dst, src, unitSize, first)
		return
	}
	for blocks := unitSize / blockSize; len(src) > 0; {
		units := min(len(src)/unitSize, max(1, maxCall/unitSize))
		n := units * unitSize
		encryptAESNI(s, &dst[0], &src[0], blocks, units, first)
		dst, src, first = dst[n:], src[n:], first+uint64(units)
	}
}

func decrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	if active == kernelGeneric {
		decryptGeneric(s, dst, src, unitSize, first)
		return
	}
	for blocks := unitSize / blockSize; len(src) > 0; {
		units := min(len(src)/unitSize, max(1, maxCall/unitSize))
		n := units * unitSize
		decryptAESNI(s, &dst[0], &src[0], blocks, units, first)
		dst, src, first = dst[n:], src[n:], first+uint64(units)
	}
}

// expandAESNI fills in the schedule of key.
//
//go:noescape
func expandAESNI(s *Schedule, key *[KeySize]byte)

// encryptAESNI encrypts units data units of blocks AES blocks each, numbered from
// first. REQUIRES: blocks ≥ 1, units ≥ 1, and what check found.
//
//go:noescape
func encryptAESNI(s *Schedule, dst, src *byte, blocks, units int, first uint64)

// decryptAESNI is the inverse of encryptAESNI, and requires the same.
//
//go:noescape
func decryptAESNI(s *Schedule, dst, src *byte, blocks, units int, first uint64)
