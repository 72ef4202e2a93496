//go:build !purego

package xts

func (kernel) expandAssembly(s *Schedule, key *[KeySize]byte) { expandAESNI(s, key) }

func (k kernel) encryptUnits(s *Schedule, dst, src *byte, blocks, units int, first uint64) {
	switch k {
	case kernelAVX512:
		encryptAVX512(s, dst, src, blocks, units, first)
	case kernelVAES:
		encryptVAES(s, dst, src, blocks, units, first)
	default:
		encryptAESNI(s, dst, src, blocks, units, first)
	}
}

func (k kernel) decryptUnits(s *Schedule, dst, src *byte, blocks, units int, first uint64) {
	switch k {
	case kernelAVX512:
		decryptAVX512(s, dst, src, blocks, units, first)
	case kernelVAES:
		decryptVAES(s, dst, src, blocks, units, first)
	default:
		decryptAESNI(s, dst, src, blocks, units, first)
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
