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

// features are what the choice of a kernel depends on. Those of wide registers are
// set only if the system keeps these.
type features struct {
	aes     bool // AES-NI; implies SSE2, all that aesni needs besides
	vaes    bool // AVX2, VAES, VPCLMULQDQ
	avx512  bool // AVX-512 F, BW, DQ and VL, BMI2, VAES, VPCLMULQDQ
	slowZMM bool // registers of 512 bits lower the clock
}

func detect() features {
	x := &cpu.X86
	return features{
		aes:  x.HasAES,
		vaes: x.HasAVX2 && leaf7VAES(),
		avx512: x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasBMI2 &&
			x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ,
		slowZMM: slowZMM(),
	}
}

// kernels returns what this processor and system can run, the fastest first.
func kernels() []kernel { return detect().kernels() }

func (f features) kernels() []kernel {
	ks := []kernel{kernelGeneric}
	if !f.aes {
		return ks
	}
	ks = slices.Insert(ks, 0, kernelAESNI)
	if f.vaes {
		ks = slices.Insert(ks, 0, kernelVAES)
	}
	switch {
	case f.avx512 && f.vaes && f.slowZMM:
		ks = slices.Insert(ks, 1, kernelAVX512)
	case f.avx512:
		ks = slices.Insert(ks, 0, kernelAVX512)
	}
	return ks
}

// leaf7VAES reports whether the processor has VAES and VPCLMULQDQ (Intel SDM, CPUID
// leaf 7, ECX). Where AVX2 can be used, so can their forms in 256 bits.
func leaf7VAES() bool {
	const both = 1<<9 | 1<<10
	if most, _, _, _ := cpuid(0, 0); most < 7 {
		return false
	}
	_, _, c, _ := cpuid(7, 0)
	return c&both == both
}

// slowZMM reports whether the whole core lowers its clock when registers of 512
// bits are in use.
func slowZMM() bool {
	_, b, c, d := cpuid(0, 0)
	a, _, _, _ := cpuid(1, 0)
	return lowersClock([3]uint32{b, d, c}, a)
}

// lowersClock says it of a processor: Intel's with VAES before Rocket Lake and
// Sapphire Rapids. Linux keeps to 256 bits on the same (zmm_exclusion_list in
// arch/x86/kernel/cpu/intel.c).
func lowersClock(vendor [3]uint32, signature uint32) bool {
	intel := [3]uint32{0x756e6547, 0x49656e69, 0x6c65746e} // "GenuineIntel"
	family, model := signature>>8&15, signature>>4&15|signature>>12&0xf0
	return vendor == intel && family == 6 && slices.Contains([]uint32{
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
