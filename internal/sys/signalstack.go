package sys

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// OverwriteSignalFrame has the calling thread handle a signal that does nothing.
// The kernel saves all registers in the frame of a signal, which Go has on a stack
// of its own, and the frame stays there until the next signal: after a fault,
// with the registers of the fault. Now they are those of this call.
//
// The signal is the one with which Go interrupts its own threads, and which it
// ignores when it has not asked for it (runtime, signal_unix.go: sigPreempt).
func OverwriteSignalFrame() {
	runtime.LockOSThread() // both calls are about one thread
	defer runtime.UnlockOSThread()
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGURG); err != nil {
		panic("sys: tgkill of the calling thread: " + err.Error()) // tgkill(2): it exists, and is ours
	}
}
