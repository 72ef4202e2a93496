package xts

// Scrub clears what a call of Encrypt or Decrypt that did not return left behind:
// the vector registers of this thread, and the stack below the caller. It is for
// whoever recovered from a fault in such a call (a mapping that failed, with
// SetPanicOnFault), and must run on the same thread: the caller is locked to it
// (runtime.LockOSThread).
//
// What the system saved of the registers when the fault happened is out of its
// reach (docs/spec/cipher.md).
func Scrub() {
	scrubDeep()
	clearVectors()
}

// scrubDeep overwrites 8 KiB of stack: the frames from the caller of Encrypt down
// to the assembly are together less than 2, and those of the panic lay above.
//
//go:noinline
func scrubDeep() {
	var b [8 << 10]byte
	touchDeep(&b)
}

//go:noinline
func touchDeep(b *[8 << 10]byte) { clear(b[:]) }
