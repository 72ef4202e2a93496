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
// ignores when it has not asked for it (runtime, signal_unix.go: sigPreempt). Go
// leaves it blocked in a process that was started so.
func OverwriteSignalFrame() {
	runtime.LockOSThread() // all calls are about one thread
	defer runtime.UnlockOSThread()
	var urgent, before unix.Sigset_t
	urgent.Val[0] = 1 << (syscall.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &urgent, &before); err != nil {
		panic("sys: letting a signal through to the calling thread: " + err.Error()) // rt_sigprocmask(2): all is valid
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) //nolint:errcheck // it was valid before
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), syscall.SIGURG); err != nil {
		panic("sys: tgkill of the calling thread: " + err.Error()) // tgkill(2): it exists, and is ours
	}
}
