package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// zmm is VAES in 512 bits: AVX-512 F, BW, DQ and VL, VAES, VPCLMULQDQ, BMI2.
//
//	Z0-Z3  blocks, four each         Z16-Z30 round keys for data
//	Z4-Z7  tweaks of this group      Z12     the polynomial
//	Z8-Z11 the same, with the last round key added
//	Z13-Z15 temporaries              K1-K4   blocks of a tail
//
// Frame, from R12: 256 bytes of units' first tweaks.
var zmm = width{
	name: "AVX512", bytes: 64, batch: 16, frame: 256,
	setup: zmmSetup, start: zmmStart, unit: zmmUnit, group: zmmGroup, tail: zmmTail, wipe: zmmWipe,
}

var (
	zmmBlocks = []Register{Z0, Z1, Z2, Z3}
	zmmTweaks = []Register{Z4, Z5, Z6, Z7}
	zmmLast   = []Register{Z8, Z9, Z10, Z11}
	zmmKeys   = []Register{Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30}
	zmmMasks  = []Register{K1, K2, K3, K4}
)

// xor3 makes VPTERNLOGQ add all three of its operands.
const xor3 = U8(0x96)

func zmmSetup() {
	VMOVDQU64(polynomial, Z12)
	for r, key := range zmmKeys {
		VBROADCASTI32X4(at(RAX, 16*r), key)
	}
}

func zmmStart(keys int) {
	VMOVQ(R9, X13)
	VSHUFI64X2(Imm(0), Z13, Z13, Z13) // number, 0, four times
	VBROADCASTI32X4(at(RAX, keys), Z14)
	for i, b := range zmmBlocks {
		VPADDQ(index.Offset(64*i), Z13, b)
		VPXORQ(Z14, b, b)
	}
	for r := 1; r <= rounds; r++ {
		op, key := VAESENC, []Register{Z14, Z15}[r%2]
		if r == rounds {
			op = VAESENCLAST
		}
		VBROADCASTI32X4(at(RAX, keys+16*r), key)
		for _, b := range zmmBlocks {
			op(key, b, b)
		}
	}
	for i, b := range zmmBlocks {
		VMOVDQA64(b, at(R12, 64*i))
	}
}

func zmmUnit() {
	VBROADCASTI32X4(at(R13, 0), Z13)
	for i, t := range zmmTweaks {
		// As in ymmUnit.
		VPSRLVQ(right.Offset(64*i), Z13, Z14)
		VPCLMULQDQ(Imm(0x01), Z12, Z14, Z15)
		VPSLLDQ(Imm(8), Z14, Z14)
		VPSLLVQ(left.Offset(64*i), Z13, t)
		VPTERNLOGQ(xor3, Z14, Z15, t)
	}
}

func zmmGroup(dir aes) {
	prefetchGroup()
	for i, b := range zmmBlocks {
		VMOVDQU64(at(RSI, 64*i), b)
	}
	zmmRounds(dir)
	for i, b := range zmmBlocks {
		VMOVDQU64(b, at(RDI, 64*i))
	}
	ADDQ(U32(16*group), RSI)
	ADDQ(U32(16*group), RDI)
}

// zmmRounds does 16 blocks, and steps to the tweaks of the next 16.
func zmmRounds(dir aes) {
	for i, b := range zmmBlocks {
		VPTERNLOGQ(xor3, zmmKeys[0], zmmTweaks[i], b)
	}
	for r := 1; r < rounds; r++ {
		for _, b := range zmmBlocks {
			dir.round(zmmKeys[r], b, b)
		}
		if i := r - 2; 0 <= i && i < len(zmmTweaks) {
			zmmNext(i)
		}
	}
	for i, b := range zmmBlocks {
		dir.last(zmmLast[i], b, b)
	}
}

// zmmNext keeps four tweaks for the last round, and multiplies them by x^16.
func zmmNext(i int) {
	t := zmmTweaks[i]
	VPXORQ(zmmKeys[rounds], t, zmmLast[i])
	VPSRLDQ(Imm(14), t, Z14) // the 16 bits that are carried out
	VPCLMULQDQ(Imm(0), Z12, Z14, Z14)
	VPSLLDQ(Imm(2), t, t)
	VPXORQ(Z14, t, t)
}

// zmmTail does a group of which only the first CX blocks are read and written.
func zmmTail(dir aes) {
	ADDQ(RCX, RCX) // a mask has a bit for each half of a block
	MOVQ(I32(-1), R10)
	BZHIQ(RCX, R10, R10)
	KMOVD(R10.As32(), K1)
	for i, k := range zmmMasks[1:] {
		KSHIFTRD(Imm(uint64(8*(i+1))), K1, k)
	}
	for i, b := range zmmBlocks {
		VMOVDQU64_Z(at(RSI, 64*i), zmmMasks[i], b)
	}
	zmmRounds(dir)
	for i, b := range zmmBlocks {
		VMOVDQU64(b, zmmMasks[i], at(RDI, 64*i))
	}
	LEAQ(Mem{Base: RSI, Index: RCX, Scale: 8}, RSI)
	LEAQ(Mem{Base: RDI, Index: RCX, Scale: 8}, RDI)
}

func zmmWipe() {
	VZEROALL() // Z0 to Z15, in all their bits
	for _, z := range []Register{
		Z16, Z17, Z18, Z19, Z20, Z21, Z22, Z23, Z24, Z25, Z26, Z27, Z28, Z29, Z30, Z31,
	} {
		VPXORQ(z, z, z)
	}
	for _, k := range []Register{K1, K2, K3, K4} {
		KXORQ(k, k, k)
	}
	for i := 0; i < 256; i += 64 {
		VMOVDQA64(Z0, at(R12, i))
	}
	VZEROUPPER()
}
