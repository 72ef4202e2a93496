package regs

// FillY puts the first half of p into Y0 to Y14. REQUIRES: AVX2.
func FillY(p *[64]byte)

// ReadY copies Y0 to Y15 into the first half of the first 16 elements. As for Read,
// only a call that directly follows the function under test tells something.
// REQUIRES: AVX2.
//
//go:noescape
func ReadY(out *[32][64]byte)

// FillZ puts p into Z0 to Z14 and Z16 to Z31, and its first 8 bytes into K1 to K7.
// REQUIRES: AVX-512 BW.
func FillZ(p *[64]byte)

// ReadZ copies Z0 to Z31 and K0 to K7 out, under the same conditions.
//
//go:noescape
func ReadZ(out *[32][64]byte, masks *[8]uint64)
