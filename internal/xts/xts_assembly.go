//go:build (amd64 || arm64) && !purego

package xts

// maxCall is how much data one call of the assembly handles, in bytes: a thread
// in assembly can not be stopped, and all others would wait for it when the
// collector stops the world. It is some microseconds. A single data unit that is
// longer is not split.
const maxCall = 64 << 10

func (k kernel) expand(s *Schedule, key *[KeySize]byte) {
	if k == kernelGeneric {
		expandGeneric(s, key)
		return
	}
	k.expandAssembly(s, key)
}

func (k kernel) encrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	if k == kernelGeneric {
		encryptGeneric(s, dst, src, unitSize, first)
		return
	}
	for blocks := unitSize / blockSize; len(src) > 0; {
		units := min(len(src)/unitSize, max(1, maxCall/unitSize))
		n := units * unitSize
		k.encryptUnits(s, &dst[0], &src[0], blocks, units, first)
		dst, src, first = dst[n:], src[n:], first+uint64(units)
	}
}

func (k kernel) decrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	if k == kernelGeneric {
		decryptGeneric(s, dst, src, unitSize, first)
		return
	}
	for blocks := unitSize / blockSize; len(src) > 0; {
		units := min(len(src)/unitSize, max(1, maxCall/unitSize))
		n := units * unitSize
		k.decryptUnits(s, &dst[0], &src[0], blocks, units, first)
		dst, src, first = dst[n:], src[n:], first+uint64(units)
	}
}
