//go:build !purego

package xts

import "golang.org/x/sys/cpu"

// kernels returns what this processor can run, the fastest first.
func kernels() []kernel { return kernelsWith(cpu.ARM64.HasAES) }

// kernelsWith says it of a processor that has the AES instructions, or not. All
// else that aesce needs every arm64 has.
func kernelsWith(aes bool) []kernel {
	if aes {
		return []kernel{kernelAESCE, kernelGeneric}
	}
	return []kernel{kernelGeneric}
}

func (kernel) expandAssembly(s *Schedule, key *[KeySize]byte) { expandAESCE(s, key) }

func (kernel) encryptUnits(s *Schedule, dst, src *byte, blocks, units int, first uint64) {
	encryptAESCE(s, dst, src, blocks, units, first)
}

func (kernel) decryptUnits(s *Schedule, dst, src *byte, blocks, units int, first uint64) {
	decryptAESCE(s, dst, src, blocks, units, first)
}

// expandAESCE fills in the schedule of key.
//
//go:noescape
func expandAESCE(s *Schedule, key *[KeySize]byte)

// encryptAESCE encrypts units data units of blocks AES blocks each, numbered from
// first. REQUIRES: blocks ≥ 1, units ≥ 1, and what check found.
//
//go:noescape
func encryptAESCE(s *Schedule, dst, src *byte, blocks, units int, first uint64)

// decryptAESCE is the inverse of encryptAESCE, and requires the same.
//
//go:noescape
func decryptAESCE(s *Schedule, dst, src *byte, blocks, units int, first uint64)

// clearVectors clears V0 to V31, the vector registers of this thread.
func clearVectors()
