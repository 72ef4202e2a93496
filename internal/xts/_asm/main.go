// Command _asm writes ../xts_wide_amd64.s: AES-256-XTS with the vector forms of
// the AES instructions, in registers of 256 bits (VAES with VEX, "vaes") and of
// 512 bits (AVX-512, "avx512"). `make generate` runs it, `make generate-check`
// compares.
//
// The flow of all four functions:
//
//  1. batch: encrypt the numbers of the next data units; they are the units'
//     first tweaks. (Fewer units may be left; the others' tweaks are not used.)
//  2. unit:  from its first tweak, compute the tweaks of its first 16 blocks.
//  3. group: 16 blocks go through the rounds. Between the rounds the tweaks of
//     the next group are computed: each is x^16 times one of this group. What
//     lies 4096 bytes ahead in the source is prefetched.
//  4. tail:  up to 15 blocks that are left: one at a time, or under a mask.
//  5. done:  clear the vector registers and the frame.
//
// The rules that hold throughout:
//
//   - No branch and no address depends on a key or on data.
//   - The frame holds tweaks and nothing else. The last round key is added to a
//     tweak only in a register: both sums in memory would give the key away.
//   - Data is read before it is written, group by group, so dst may be src.
//   - No byte beside source and destination is read or written. (A prefetch may
//     name one; it never faults.)
//   - R14, R15 and BP are left alone, as Go asks.
//
// General registers:
//
//	AX  round keys for data             R9  number of the batch's first unit
//	SI  source     DI  destination      R11 how far ahead of SI to prefetch
//	CX  blocks left in the unit         R12 frame, aligned
//	DX  units left                      R13 first tweak of the unit, in the frame
//	R8  blocks in a unit                BX, R10 as the kernel needs them
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	. "github.com/mmcloughlin/avo/reg"
)

// Offsets in a Schedule (../xts.go), in bytes.
const (
	rounds     = 14
	offDecrypt = (rounds + 1) * 16
	offTweak   = 2 * offDecrypt
)

// group is how many blocks are in flight.
const group = 16

// ahead is how far the source is prefetched within a call, in bytes. A processor's
// own prefetching stops at the end of a page; on a Sapphire Rapids, 128 KiB from
// memory are 1.3 times as fast with this.
const ahead = 4096

// A width is what differs between registers of 256 and of 512 bits.
type width struct {
	name  string
	bytes int       // of a register
	batch int       // units whose first tweaks are encrypted at once; they lie at R12
	frame int       // bytes
	setup func()    // loads what stays in registers
	start func(int) // encrypts a batch of numbers, with the round keys at an offset from AX
	unit  func()    // computes the tweaks of a unit's first 16 blocks from (R13)
	group func(aes) // does 16 blocks
	tail  func(aes) // does CX blocks, 1 ≤ CX ≤ 15
	wipe  func()    // clears the vector registers and the frame
}

// aes is one direction of AES: the instruction of a round and that of the last,
// in the forms that the assembler has.
type aes struct{ round, last func(key, in, out Op) }

func main() {
	ConstraintExpr("!purego")
	tables()
	for _, w := range []width{ymm, zmm} {
		function(w, "encrypt", 0, aes{VAESENC, VAESENCLAST})
		function(w, "decrypt", offDecrypt, aes{VAESDEC, VAESDECLAST})
	}
	Generate()
}

// Constants, each for 16 blocks; all are public.
var (
	polynomial Mem // x^7+x^2+x+1, for what is carried out of bit 127
	index      Mem // 0, 1, 2 … as numbers of 128 bits
	left       Mem // 0, 1, 2 … in both halves: shifts by the number of a block
	right      Mem // 64, 63, 62 … in both halves
)

func tables() {
	table := func(name string, lanes int, f func(i int) (lo, hi uint64)) Mem {
		m := GLOBL(name, RODATA|NOPTR)
		for i := range lanes {
			lo, hi := f(i)
			DATA(16*i, U64(lo))
			DATA(16*i+8, U64(hi))
		}
		return m
	}
	polynomial = table("polynomial", 4, func(int) (uint64, uint64) { return 0x87, 0 })
	index = table("index", group, func(i int) (uint64, uint64) { return uint64(i), 0 })
	left = table("left", group, func(i int) (uint64, uint64) { return uint64(i), uint64(i) })
	right = table("right", group, func(i int) (uint64, uint64) { return uint64(64 - i), uint64(64 - i) })
}

func function(w width, verb string, keys int, dir aes) {
	fn := verb + w.name
	TEXT(fn, NOSPLIT, "func(s *byte, dst, src *byte, blocks, units int, first uint64)")
	frame := AllocLocal(w.frame + w.bytes) // and what it takes to align it
	Load(Param("s"), RAX)
	Load(Param("dst"), RDI)
	Load(Param("src"), RSI)
	Load(Param("blocks"), R8)
	Load(Param("units"), RDX)
	Load(Param("first"), R9)
	if keys != 0 {
		ADDQ(U32(keys), RAX)
	}
	LEAQ(frame, R12)
	ADDQ(U8(w.bytes-1), R12)
	ANDQ(I8(-w.bytes), R12)
	MOVQ(U32(ahead), R11)
	w.setup()

	Label("batch")
	w.start(offTweak - keys)
	MOVQ(R12, R13)

	Label("unit")
	CMPQ(RDX, Imm(1)) // behind the last unit lies nothing to prefetch
	JNE(LabelRef("more"))
	XORQ(R11, R11)
	Label("more")
	w.unit()
	MOVQ(R8, RCX)
	SUBQ(Imm(group), RCX)
	JB(LabelRef("tail"))

	Label("group")
	w.group(dir)
	SUBQ(Imm(group), RCX)
	JAE(LabelRef("group"))

	Label("tail")
	ADDQ(Imm(group), RCX)
	JZ(LabelRef("next"))
	w.tail(dir)

	Label("next")
	DECQ(RDX)
	JZ(LabelRef("done"))
	ADDQ(Imm(16), R13)
	LEAQ(at(R12, 16*w.batch), RCX)
	CMPQ(R13, RCX)
	JNE(LabelRef("unit"))
	ADDQ(Imm(uint64(w.batch)), R9)
	JMP(LabelRef("batch"))

	Label("done")
	w.wipe()
	RET()
}

// prefetchUnit prefetches the source of a unit, or the first 4096 bytes of it,
// while the instructions before it wait for each other. Uses CX and R10.
//
// Only VAES does it: on the processors that have no more (Zen 3) it made units of
// 4096 bytes from memory a fifth faster; on a Sapphire Rapids it makes no
// difference to VAES, and AVX-512 slower by 8 percent.
func prefetchUnit() {
	const step = 4 * 64
	MOVQ(R8, RCX)
	SHLQ(Imm(4), RCX)
	MOVQ(U32(4096), R10)
	CMPQ(RCX, R10)
	CMOVQGT(R10, RCX)
	MOVQ(RSI, R10)
	Label("ahead")
	for i := 0; i < step; i += 64 {
		PREFETCHT0(at(R10, i))
	}
	ADDQ(U32(step), R10)
	SUBQ(U32(step), RCX)
	JG(LabelRef("ahead"))
}

// prefetchGroup prefetches what lies R11 bytes behind a group's source.
func prefetchGroup() {
	for i := 0; i < 16*group; i += 64 {
		PREFETCHT0(Mem{Base: RSI, Index: R11, Scale: 1, Disp: i})
	}
}

// at is the memory at an offset from a register.
func at(base Register, offset int) Mem { return Mem{Base: base, Disp: offset} }
