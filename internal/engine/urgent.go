package engine

import (
	"runtime"

	"vacate/internal/sys"
)

// urgently runs f on a thread that the kernel runs before others, as far as the
// process may ask for that, and waits for it. Keys are destroyed like this:
// between gate and destroyed key nothing is waited for but the ciphers and the
// keeper, least of all a turn on a busy processor. The thread is made before f
// starts, and ends with it.
func urgently(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		sys.Urgent()
		f()
	}()
	<-done
}
