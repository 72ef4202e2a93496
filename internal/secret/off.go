//go:build !(goexperiment.runtimesecret && linux && (amd64 || arm64))

package secret

import (
	"runtime"

	"vacate/internal/xts"
)

const (
	enabled = false
	why     = "this build of vacate cannot clear what the standard library's cryptography leaves on the heap: build it with `make build`, or with GOEXPERIMENT=runtimesecret, on linux and amd64 or arm64"
)

// deep is more stack than any f uses, in bytes.
const deep = 32 << 10

// do runs f where nothing moves its stack: on a thread of its own, which the caller's
// goroutine stays on, with all of the stack there from the start.
func do(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	burn() // has the stack grow now: growing within f would leave a copy of it
	defer func() {
		xts.Scrub()
		burn()
	}()
	f()
}

// burn overwrites the stack below its caller.
//
//go:noinline
func burn() {
	var b [deep]byte
	touch(&b)
}

//go:noinline
func touch(b *[deep]byte) { clear(b[:]) }

func forget() {}
