package sys

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A thread that waits in recv can be woken without a byte being lost and without
// a second descriptor to wait on: a signal makes recv return EINTR, having taken
// nothing. Go's own signals do not, because Go installs its handler with
// SA_RESTART for all of them. So one signal that nobody uses loses that flag, and
// keeps the handler, which ignores it. Only threads that wait in RecvWake are sent
// it; a thread that has gone on meanwhile notices nothing, as it repeats every
// other call after EINTR.

// wakeSignal is a real-time signal to which Go gives no meaning (runtime,
// sigtab_linux_generic.go).
const wakeSignal = syscall.Signal(63)

// saRestart is SA_RESTART (asm-generic/signal-defs.h).
const saRestart = 0x10000000

// A sigaction is the kernel's struct sigaction of amd64 and arm64
// (rt_sigaction(2), include/linux/signal_types.h).
type sigaction struct {
	handler  uintptr
	flags    uint64
	restorer uintptr
	mask     uint64
}

// allowWake takes SA_RESTART off wakeSignal, once for the process.
var allowWake = sync.OnceValue(func() error {
	var act sigaction
	if err := rtSigaction(nil, &act); err != nil {
		return err
	}
	if act.handler <= 1 { // SIG_DFL or SIG_IGN: the first would end the process
		return fmt.Errorf("signal %d has no handler: this Go runtime does not install one for each signal", int(wakeSignal))
	}
	act.flags &^= saRestart
	return rtSigaction(&act, nil)
})

func rtSigaction(set, old *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(wakeSignal),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(set.mask), 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

// Wakeable makes the calling thread one that Wake can wake, whatever signals the
// process was started with blocked.
//
// REQUIRES: the goroutine is locked to its thread.
func Wakeable() error {
	if err := allowWake(); err != nil {
		return err
	}
	var set unix.Sigset_t
	set.Val[0] = 1 << (wakeSignal - 1)
	return os.NewSyscallError("rt_sigprocmask", unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil))
}

// RecvWake is Recv, except that it returns EINTR, having received nothing, when
// Wake was called for its thread.
func RecvWake(fd int, p []byte) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
	return count(n, errno)
}

// Wake ends the RecvWake in which the thread tid of this process waits. A thread
// that is about to wait sleeps through it: repeat it until the thread is seen to
// have gone on.
//
// REQUIRES: the thread called Wakeable, and has not ended.
func Wake(tid int) error {
	return os.NewSyscallError("tgkill", unix.Tgkill(os.Getpid(), tid, wakeSignal))
}
