package xts

import "vacate/internal/xts/internal/regs"

// fill puts the pattern into all vector registers. read copies them out.
func (r *registers) fill() { regs.Fill(&pattern) }

func (r *registers) read() {
	var v [32][16]byte
	regs.Read(&v)
	for i := range v {
		copy(r.vectors[i][:], v[i][:])
	}
}

// keptZero is no register: Go keeps none of them zero.
const keptZero = -1

// vectorRegisters says how many vector registers there are, and their width in
// bytes. (Those of SVE are wider, but a write to these clears the rest.)
func vectorRegisters() (n, width int) { return 32, 16 }

// cleared says how many vector registers, how much of each, and which masks a call of
// the assembly clears: all, and there are no masks.
func cleared(string) (n, width int, masks uint) { return 32, 16, 0 }
