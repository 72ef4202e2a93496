//go:build amd64 || arm64

package regs

// Depth is how far below their caller Spill and Stack reach, in bytes.
const Depth = 4096

// Spill fills the Depth bytes below its caller's frame with p and returns without
// clearing them.
func Spill(p *[16]byte)

// Stack copies the Depth bytes below its caller's frame, which earlier calls left
// there. The caller must have grown the stack before (GrowStack): growing copies
// only what is alive.
func Stack(out *[Depth]byte)

// GrowStack makes sure that the stack need not grow in the calls that follow.
//
//go:noinline
func GrowStack() byte {
	var b [8 * Depth]byte
	return sum(&b)
}

//go:noinline
func sum(b *[8 * Depth]byte) (s byte) {
	for i := range b {
		b[i] = 0
		s += b[i]
	}
	return s
}
