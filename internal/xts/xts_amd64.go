//go:build !purego

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
	expandAESNI(s, key)
}

func (k kernel) encrypt(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	if k == kernelGeneric {
		encryptGeneric(s, dst, src, unitSize, first)
		return
	}
	for blocks := unitSize / blockSize; len(src) > 0; {
		units := min(len(src)/unitSize, max(1, maxCall/unitSize))
		n := units * unitSize
		switch k {
		case kernelAVX512:
			encryptAVX512(s, &dst[0], &src[0], blocks, units, first)
		case kernelVAES:
			encryptVAES(s, &dst[0], &src[0], blocks, units, first)
		default:
			encryptAESNI(s, &dst[0], &src[0], blocks, units, first)
		}
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
		switch k {
		case kernelAVX512:
			decryptAVX512(s, &dst[0], &src[0], blocks, units, first)
		case kernelVAES:
			decryptVAES(s, &dst[0], &src[0], blocks, units, first)
		default:
			decryptAESNI(s, &dst[0], &src[0], blocks, units, first)
		}
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

// The following do the same in wider registers (_asm/main.go has their flow).

//go:noescape
func encryptVAES(s *Schedule, dst, src *byte, blocks, units int, first uint64)

//go:noescape
func decryptVAES(s *Schedule, dst, src *byte, blocks, units int, first uint64)

//go:noescape
func encryptAVX512(s *Schedule, dst, src *byte, blocks, units int, first uint64)

//go:noescape
func decryptAVX512(s *Schedule, dst, src *byte, blocks, units int, first uint64)
