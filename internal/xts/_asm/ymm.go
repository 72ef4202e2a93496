package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// ymm is VAES with the VEX encoding: AVX2, VAES, VPCLMULQDQ.
//
//	Y0-Y7  blocks, two each          Y12 first round key for data
//	Y8,Y14 round keys, in turn       Y13 last round key for data
//	Y9,Y10 temporaries               Y11 the polynomial
//
//	R10    tweaks of this group      BX  tweaks of the next group
//
// Frame, from R12: 128 bytes of units' first tweaks, and twice 256 bytes for R10
// and BX.
var ymm = width{
	name: "VAES", bytes: 32, batch: 8, frame: 128 + 2*256,
	setup: ymmSetup, start: ymmStart, unit: ymmUnit, group: ymmGroup, tail: ymmTail, wipe: ymmWipe,
}

var ymmBlocks = []Register{Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7}

func ymmSetup() {
	VMOVDQU(polynomial, Y11)
	VBROADCASTI128(at(RAX, 0), Y12)
	VBROADCASTI128(at(RAX, 16*rounds), Y13)
}

// ymmRound does one round with the key at offset from AX on the first n blocks.
func ymmRound(op func(key, in, out Op), r, offset, n int) {
	key := []Register{Y8, Y14}[r%2]
	VBROADCASTI128(at(RAX, offset+16*r), key)
	for _, b := range ymmBlocks[:n] {
		op(key, b, b)
	}
}

func ymmStart(keys int) {
	VMOVQ(R9, X9)
	VPERMQ(Imm(0x44), Y9, Y9) // number, 0, number, 0
	VBROADCASTI128(at(RAX, keys), Y8)
	for i, b := range ymmBlocks[:4] {
		VPADDQ(index.Offset(32*i), Y9, b)
		VPXOR(Y8, b, b)
	}
	for r := 1; r < rounds; r++ {
		ymmRound(VAESENC, r, keys, 4)
	}
	ymmRound(VAESENCLAST, rounds, keys, 4)
	prefetchUnit()
	for i, b := range ymmBlocks[:4] {
		VMOVDQA(b, at(R12, 32*i))
	}
}

func ymmUnit() {
	LEAQ(at(R12, 128), R10)
	LEAQ(at(R12, 128+256), RBX)
	VBROADCASTI128(at(R13, 0), Y8)
	for i := range ymmBlocks {
		// T·x^i: both halves shifted; what the low one lost goes into the high
		// one, and what the high one lost comes back as the polynomial.
		VPSRLVQ(right.Offset(32*i), Y8, Y9)
		VPCLMULQDQ(Imm(0x01), Y11, Y9, Y10)
		VPSLLDQ(Imm(8), Y9, Y9)
		VPXOR(Y10, Y9, Y9)
		VPSLLVQ(left.Offset(32*i), Y8, Y10)
		VPXOR(Y10, Y9, Y9)
		VMOVDQA(Y9, at(R10, 32*i))
	}
}

func ymmGroup(dir aes) {
	prefetchGroup()
	for i, b := range ymmBlocks {
		VPXOR(at(RSI, 32*i), Y12, b)
		VPXOR(at(R10, 32*i), b, b)
	}
	for r := 1; r < rounds; r++ {
		ymmRound(dir.round, r, 0, 8)
		if i := r - 2; 0 <= i && i < 8 {
			ymmNext(i)
		}
	}
	for i, b := range ymmBlocks {
		VPXOR(at(R10, 32*i), Y13, Y9)
		dir.last(Y9, b, b)
		VMOVDQU(b, at(RDI, 32*i))
	}
	ADDQ(U32(16*group), RSI)
	ADDQ(U32(16*group), RDI)
	XCHGQ(R10, RBX)
}

// ymmNext computes two tweaks of the next group: x^16 times this group's.
func ymmNext(i int) {
	VMOVDQA(at(R10, 32*i), Y9)
	VPSRLDQ(Imm(14), Y9, Y10) // the 16 bits that are carried out
	VPCLMULQDQ(Imm(0), Y11, Y10, Y10)
	VPSLLDQ(Imm(2), Y9, Y9)
	VPXOR(Y10, Y9, Y9)
	VMOVDQA(Y9, at(RBX, 32*i))
}

// ymmTail does one block at a time.
func ymmTail(dir aes) {
	Label("block")
	VPXOR(at(RSI, 0), X12, X0)
	VPXOR(at(R10, 0), X0, X0)
	for r := 1; r < rounds; r++ {
		dir.round(at(RAX, 16*r), X0, X0)
	}
	VPXOR(at(R10, 0), X13, X9)
	dir.last(X9, X0, X0)
	VMOVDQU(X0, at(RDI, 0))
	ADDQ(Imm(16), RSI)
	ADDQ(Imm(16), RDI)
	ADDQ(Imm(16), R10)
	DECQ(RCX)
	JNZ(LabelRef("block"))
}

func ymmWipe() {
	VZEROALL()
	for i := 0; i < 128+2*256; i += 32 {
		VMOVDQA(Y0, at(R12, i))
	}
	VZEROUPPER() // Y0 is zero; this says that its upper half is not in use
}
