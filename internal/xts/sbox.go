package xts

// A lanes is four AES blocks that are computed side by side. Words 2i and 2i+1
// are the low and the high half of block i, little-endian, so that byte r+4c of a
// block is row r, column c of the state of FIPS 197.
type lanes [8]uint64

// subBytes puts every byte through the S-box of AES, in constant time: transpose,
// so that word i holds bit i of all 64 bytes; evaluate the S-box as a circuit of
// gates, 64 bytes at once; transpose back.
func subBytes(q *lanes) {
	transpose(q)
	sboxGates(q)
	transpose(q)
}

// invSubBytes is the inverse of subBytes. The S-box is an inversion in GF(2^8),
// which is its own inverse, followed by an affine map A. So the inverse S-box is
// A⁻¹, the S-box, and A⁻¹ again.
func invSubBytes(q *lanes) {
	transpose(q)
	invAffine(q)
	sboxGates(q)
	invAffine(q)
	transpose(q)
}

// invAffine applies A⁻¹: bit i is the sum of bits i+2, i+5 and i+7 of the input
// (indices modulo 8) and of 0x05 (FIPS 197, 5.3.2).
func invAffine(q *lanes) {
	a0, a1, a2, a3, a4, a5, a6, a7 := q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]
	q[0] = ^(a2 ^ a5 ^ a7)
	q[1] = a3 ^ a6 ^ a0
	q[2] = ^(a4 ^ a7 ^ a1)
	q[3] = a5 ^ a0 ^ a2
	q[4] = a6 ^ a1 ^ a3
	q[5] = a7 ^ a2 ^ a4
	q[6] = a0 ^ a3 ^ a5
	q[7] = a1 ^ a4 ^ a6
}

// transpose exchanges bit i of byte j of word k with bit k of byte j of word i.
// It is its own inverse (Hacker's Delight, 7-3).
func transpose(q *lanes) {
	const m1, m2, m4 = 0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f
	a0, a1, a2, a3, a4, a5, a6, a7 := q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]

	a0, a1 = swapBits(a0, a1, m1, 1)
	a2, a3 = swapBits(a2, a3, m1, 1)
	a4, a5 = swapBits(a4, a5, m1, 1)
	a6, a7 = swapBits(a6, a7, m1, 1)

	a0, a2 = swapBits(a0, a2, m2, 2)
	a1, a3 = swapBits(a1, a3, m2, 2)
	a4, a6 = swapBits(a4, a6, m2, 2)
	a5, a7 = swapBits(a5, a7, m2, 2)

	a0, a4 = swapBits(a0, a4, m4, 4)
	a1, a5 = swapBits(a1, a5, m4, 4)
	a2, a6 = swapBits(a2, a6, m4, 4)
	a3, a7 = swapBits(a3, a7, m4, 4)

	q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7] = a0, a1, a2, a3, a4, a5, a6, a7
}

// swapBits exchanges the bits of y under mask with those of x above mask.
func swapBits(x, y, mask uint64, shift uint) (uint64, uint64) {
	t := (x>>shift ^ y) & mask
	return x ^ t<<shift, y ^ t
}

// sboxGates evaluates the S-box on transposed words: the circuit of 113 gates of
// Boyar and Peralta ("A depth-16 circuit for the AES S-box", IACR ePrint
// 2011/332), with the paper's names. Its bit 0 is the most significant.
//
// It is one straight line of gates, and longer than our functions otherwise are.
func sboxGates(q *lanes) {
	u0, u1, u2, u3, u4, u5, u6, u7 := q[7], q[6], q[5], q[4], q[3], q[2], q[1], q[0]

	// Top linear layer: 23 gates.
	y14 := u3 ^ u5
	y13 := u0 ^ u6
	y9 := u0 ^ u3
	y8 := u0 ^ u5
	t0 := u1 ^ u2
	y1 := t0 ^ u7
	y4 := y1 ^ u3
	y12 := y13 ^ y14
	y2 := y1 ^ u0
	y5 := y1 ^ u6
	y3 := y5 ^ y8
	t1 := u4 ^ y12
	y15 := t1 ^ u5
	y20 := t1 ^ u1
	y6 := y15 ^ u7
	y10 := y15 ^ t0
	y11 := y20 ^ y9
	y7 := u7 ^ y11
	y17 := y10 ^ y11
	y19 := y10 ^ y8
	y16 := t0 ^ y11
	y21 := y13 ^ y16
	y18 := u0 ^ y16

	// Inversion in GF(2^8), by way of GF(2^4) and GF(2^2).
	t2 := y12 & y15
	t4 := y3&y6 ^ t2
	t6 := y4&u7 ^ t2
	t7 := y13 & y16
	t9 := y5&y1 ^ t7
	t11 := y2&y7 ^ t7
	t12 := y9 & y11
	t14 := y14&y17 ^ t12
	t16 := y8&y10 ^ t12
	t21 := t4 ^ t14 ^ y20
	t22 := t6 ^ t16 ^ y19
	t23 := t9 ^ t14 ^ y21
	t24 := t11 ^ t16 ^ y18
	t25 := t21 ^ t22
	t26 := t21 & t23
	t27 := t24 ^ t26
	t29 := t25&t27 ^ t22
	t30 := t23 ^ t24
	t31 := t22 ^ t26
	t33 := t31&t30 ^ t24
	t35 := t27 ^ t33
	t36 := t24 & t35
	t37 := t36 ^ t23 ^ t33
	t38 := t27 ^ t36
	t40 := t25 ^ t29&t38
	t41 := t40 ^ t37
	t42 := t29 ^ t33
	t43 := t29 ^ t40
	t44 := t33 ^ t37
	t45 := t42 ^ t41
	z0 := t44 & y15
	z1 := t37 & y6
	z2 := t33 & u7
	z3 := t43 & y16
	z4 := t40 & y1
	z5 := t29 & y7
	z6 := t42 & y11
	z7 := t45 & y17
	z8 := t41 & y10
	z9 := t44 & y12
	z10 := t37 & y3
	z11 := t33 & y4
	z12 := t43 & y13
	z13 := t40 & y5
	z14 := t29 & y2
	z15 := t42 & y9
	z16 := t45 & y14
	z17 := t41 & y8

	// Bottom linear layer, with the affine map.
	t46 := z15 ^ z16
	t48 := z5 ^ z13
	t49 := z9 ^ z10
	t53 := z0 ^ z3
	t54 := z6 ^ z7
	t57 := z2 ^ z12 ^ t53
	t58 := z4 ^ t46
	t59 := z3 ^ t54
	t60 := t46 ^ t57
	t61 := z14 ^ t57
	t62 := z7 ^ z8 ^ t58
	t63 := t49 ^ t58
	t64 := z4 ^ t59
	t65 := t61 ^ t62
	t66 := z1 ^ t63
	t67 := t64 ^ t65
	s3 := t53 ^ t66
	q[7] = t59 ^ t63          // s0
	q[6] = ^(t64 ^ s3)        // s1
	q[5] = ^(z16 ^ z17 ^ t67) // s2
	q[4] = s3                 // s3
	q[3] = z2 ^ z5 ^ t66      // s4
	q[2] = z10 ^ z11 ^ t65    // s5
	q[1] = ^(z12 ^ t48 ^ t62) // s6
	q[0] = ^(t48 ^ t60)       // s7
}
