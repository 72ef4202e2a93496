package regs

// Fill puts p into V0 to V31.
func Fill(p *[16]byte)

// Read copies V0 to V31 out. Only a call that directly follows the function under
// test tells something: any Go code may use the registers.
//
//go:noescape
func Read(out *[32][16]byte)
