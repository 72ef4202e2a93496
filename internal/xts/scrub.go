package xts

// Scrub clears what a call of Encrypt or Decrypt that did not return left behind:
// the vector registers of this thread, and the stack below the caller. It is for
// whoever recovered from a fault in such a call (a mapping that failed, with
// SetPanicOnFault), and must run on the same thread: the caller is locked to it
// (runtime.LockOSThread). It is also for whoever has the kernel save the registers
// next, with what Go's copies left in them.
//
// What the system saved of the registers when the fault happened is out of its
// reach (docs/spec/cipher.md).
func Scrub() {
	clearVectors()
	scrubDeep()
}

// scrubDeep overwrites 4 KiB of stack: twice what the calls from Encrypt down to
// the assembly, or to the depths of the generic code, take.
//
//go:noinline
func scrubDeep() {
	var b [4 << 10]byte
	touchDeep(&b)
}

//go:noinline
func touchDeep(b *[4 << 10]byte) { clear(b[:]) }

// ClearVectors clears the vector registers of this thread, where a copy or a
// comparison of the runtime's leaves what it worked on.
func ClearVectors() { clearVectors() }
