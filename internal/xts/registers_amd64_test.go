package xts

import (
	"strings"

	"golang.org/x/sys/cpu"

	"vacate/internal/xts/internal/regs"
)

// fill puts the pattern into all vector registers that there are but the one that
// Go keeps zero. read copies them out.
func (r *registers) fill() {
	var p [64]byte
	for i := 0; i < len(p); i += len(pattern) {
		copy(p[i:], pattern[:])
	}
	switch widest() {
	case 64:
		regs.FillZ(&p)
	case 32:
		regs.FillY(&p)
	default:
		regs.Fill(&pattern)
	}
}

func (r *registers) read() {
	switch widest() {
	case 64:
		regs.ReadZ(&r.vectors, &r.masks)
	case 32:
		regs.ReadY(&r.vectors)
	default:
		var x [16][16]byte
		regs.Read(&x)
		for i := range x {
			copy(r.vectors[i][:], x[i][:])
		}
	}
}

// keptZero is the register that Go keeps zero.
const keptZero = 15

// vectorRegisters says how many vector registers there are, and their width in
// bytes.
func vectorRegisters() (n, width int) { return max(16, widest()/2), widest() }

// cleared says how many vector registers, how much of each, and which masks (bit i
// for mask i) the call of the assembly with this name clears: all that it may use.
func cleared(name string) (n, width int, masks uint) {
	switch {
	case strings.HasSuffix(name, "vaes"):
		return 16, widest(), 0 // VEX clears what lies above, too
	case strings.HasSuffix(name, "avx512"):
		return 32, 64, 0b11110 // K0 may hold what a library left there
	case name == "clearVectors":
		n, width = vectorRegisters()
		return n, width, 0xff
	}
	return 16, 16, 0
}

// widest is the width of this machine's vector registers in bytes.
func widest() int {
	switch {
	case cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW:
		return 64
	case cpu.X86.HasAVX2:
		return 32
	default:
		return 16
	}
}
