//go:build !purego

package xts

import (
	"slices"

	"golang.org/x/sys/cpu"
)

// Whether the kernel of the system keeps the wide registers when it switches
// threads is a question of its own (XGETBV), and using them where it does not
// corrupts data. cpu asks it: HasAVX and HasAVX2 are set only if XCR0 has the SSE
// and AVX state, HasAVX512 and all that begins so only if it has the mask and ZMM
// state too (golang.org/x/sys/cpu, archInit in cpu_x86.go). cpu reports VAES and
// VPCLMULQDQ only with AVX-512; without it they are read here.

// kernels returns what this processor and system can run, the fastest first.
func kernels() []kernel {
	var ks []kernel
	x := &cpu.X86
	if !x.HasAES { // implies SSE2, all that aesni needs besides
		return []kernel{kernelGeneric}
	}
	if x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasBMI2 &&
		x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ {
		ks = append(ks, kernelAVX512)
	}
	if x.HasAVX2 && vaes() {
		ks = append(ks, kernelVAES)
	}
	if len(ks) == 2 && slowZMM() {
		slices.Reverse(ks)
	}
	return append(ks, kernelAESNI, kernelGeneric)
}

// vaes reports whether the processor has VAES and VPCLMULQDQ (Intel SDM, CPUID
// leaf 7, ECX). With AVX2 usable, so are their forms in 256 bits.
func vaes() bool {
	const both = 1<<9 | 1<<10
	if most, _, _, _ := cpuid(0, 0); most < 7 {
		return false
	}
	_, _, c, _ := cpuid(7, 0)
	return c&both == both
}

// slowZMM reports whether the processor lowers its clock for the whole core when
// registers of 512 bits are in use: Intel's before Rocket Lake and Sapphire Rapids.
// Linux leaves the 512 bits out on the same (zmm_exclusion_list in
// arch/x86/crypto/aesni-intel_glue.c).
func slowZMM() bool {
	if _, b, c, d := cpuid(0, 0); b != 0x756e6547 || d != 0x49656e69 || c != 0x6c65746e { // GenuineIntel
		return false
	}
	a, _, _, _ := cpuid(1, 0)
	family, model := a>>8&15, a>>4&15|a>>12&0xf0
	return family == 6 && slices.Contains([]uint32{
		0x55,       // Skylake-X
		0x6a, 0x6c, // Ice Lake-X, Ice Lake-D
		0x7d, 0x7e, 0x9d, // Ice Lake, Ice Lake-L, Ice Lake-NNPI
		0x8c, 0x8d, // Tiger Lake-L, Tiger Lake
	}, model)
}

// clearVectors clears the vector registers of this thread.
func clearVectors() {
	switch {
	case cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW:
		clearZMM()
	case cpu.X86.HasAVX:
		clearYMM()
	default:
		clearXMM()
	}
}

// cpuid executes CPUID.
func cpuid(leaf, sub uint32) (a, b, c, d uint32)

// clearZMM clears Z0 to Z31 and K0 to K7.
func clearZMM()

// clearYMM clears Y0 to Y15.
func clearYMM()

// clearXMM clears X0 to X15.
func clearXMM()
