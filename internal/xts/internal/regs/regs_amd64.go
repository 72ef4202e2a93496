package regs

// Fill puts p into X0 to X14. (Go keeps X15 zero.)
func Fill(p *[16]byte)

// Read copies X0 to X15 out. Only a call that directly follows the function under
// test tells something: any Go code may use the registers.
//
//go:noescape
func Read(out *[16][16]byte)
