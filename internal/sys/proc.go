package sys

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Harden keeps this process's memory out of core dumps and out of other
// processes' reach: RLIMIT_CORE is 0 and the process is not dumpable, so that
// only root may trace it or read its memory. An exec undoes the latter: each
// process calls it for itself, before it maps a key.
func Harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit RLIMIT_CORE", err)
	}
	// PR_SET_DUMPABLE covers what RLIMIT_CORE does not: a core that is piped to
	// a program (core(5)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	return nil
}

// Hardened reports whether Harden's settings hold.
func Hardened() (bool, error) {
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		return false, os.NewSyscallError("getrlimit RLIMIT_CORE", err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return false, os.NewSyscallError("prctl PR_GET_DUMPABLE", err)
	}
	return core.Max == 0 && dumpable == 0, nil
}

// ExitOnEOF ends this process, at once and whatever else it does, when the
// other end of the pipe f is closed: its holder is dead, or wants it. It takes
// f over, into which nothing may be written.
//
// The kernel does it, by SIGKILL: a Go program whose threads all compute, or are
// stuck, would not come to read the end of the pipe. (PR_SET_PDEATHSIG is no
// alternative: it follows the parent's thread, not the parent, golang/go#27505.)
func ExitOnEOF(f *os.File) error {
	var err error
	cerr := control(f, func(fd int) {
		// F_SETSIG: the signal that is sent in place of SIGIO; pipe_release in
		// fs/pipe.c sends it when the last end for writing is closed.
		for _, set := range []struct{ cmd, arg int }{
			{unix.F_SETOWN, os.Getpid()},
			{unix.F_SETSIG, int(unix.SIGKILL)},
			{unix.F_SETFL, unix.O_ASYNC},
		} {
			if _, e := unix.FcntlInt(uintptr(fd), set.cmd, set.arg); e != nil && err == nil {
				err = os.NewSyscallError("fcntl", e)
			}
		}
		// It may have been closed before the kernel was told to watch.
		p := []unix.PollFd{{Fd: int32(fd)}}
		if n, _ := unix.Poll(p, 0); n == 1 && p[0].Revents&unix.POLLHUP != 0 {
			endSelf()
		}
	})
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("watching the parent's pipe: %w", err)
	}
	go func() { // for a kernel that takes F_SETSIG and sends nothing; and this keeps f
		var b [1]byte
		f.Read(b[:]) //nolint:errcheck // whatever it is, it is the end
		endSelf()
	}()
	return nil
}

func endSelf() {
	unix.Kill(os.Getpid(), unix.SIGKILL) //nolint:errcheck // cannot fail for oneself
}

// Dying reports whether the process pid is at its end: no instruction of its
// program runs any more, or within microseconds. Its parent may come to know of it
// much later: a thread that waits in the kernel, for a drive that hangs, keeps the
// process, its files and its memory there until it comes back. A pid that is
// nobody's is not dying.
func Dying(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	if killed(pid) {
		return true
	}
	// What ends a process, exit_group(2) or a signal, sends SIGKILL to each of its
	// threads. The first thread has ended by it (Z), or waits in the kernel and has
	// it pending.
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "State:"); ok && strings.HasPrefix(strings.TrimSpace(v), "Z") {
			return true
		}
		if v, ok := strings.CutPrefix(line, "SigPnd:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && set&(1<<(unix.SIGKILL-1)) != 0
		}
	}
	return false
}

// killed reports whether the first thread of the process pid has taken the signal
// that ends it, after which nothing tells that it is pending: it may wait for its
// own requests to a drive before it becomes a zombie (do_exit in kernel/exit.c).
func killed(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// proc_pid_stat(5): flags is the seventh field behind the name, which is in
	// parentheses and may contain anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 7 {
		return false
	}
	const exiting, signaled = 0x4, 0x400 // PF_EXITING, PF_SIGNALED, include/linux/sched.h
	flags, err := strconv.ParseUint(fields[6], 10, 32)
	return err == nil && flags&(exiting|signaled) != 0
}

// BoottimeNs reads CLOCK_BOOTTIME: nanoseconds since this boot, sleep included;
// the same clock in every process.
func BoottimeNs() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("sys: no CLOCK_BOOTTIME: " + err.Error()) // since Linux 2.6.39
	}
	return ts.Nano()
}

// Nap has the calling thread sleep, without a word to Go's scheduler: for who holds a
// thread of its own, and for microseconds. A signal ends it early.
func Nap(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0) //nolint:errcheck // see above
}

// BootID identifies this boot of the kernel (random(4)).
func BootID() (id [16]byte, err error) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return id, err
	}
	digits := strings.ReplaceAll(strings.TrimSpace(string(text)), "-", "")
	if n, err := hex.Decode(id[:], []byte(digits[:min(len(digits), 32)])); err != nil || n != len(id) {
		return id, fmt.Errorf("reading the boot id: %q is not a UUID", text)
	}
	return id, nil
}

// Urgent makes the kernel run the calling thread as soon as it has something to
// do, as far as this process may ask for it, and returns what it got: "fifo",
// "nice -19, slice 0.1 ms", "slice 0.1 ms", or "normal".
//
// REQUIRES: the goroutine is locked to its thread, and the thread sleeps nearly
// always: in "fifo" it keeps every ordinary thread off its processor.
func Urgent() string { return urgent(0) }

// Hurry does the same for another thread of this process, which is about to do
// its last work. A thread that has ended is left alone.
func Hurry(tid int) { urgent(tid) }

// urgent does it for the thread tid, or the calling one if it is 0.
func urgent(tid int) string {
	fifo := unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
	if unix.SchedSetAttr(tid, &fifo, 0) == nil {
		return "fifo"
	}
	// A short slice is a near deadline, and preempts. Any process may ask for
	// it (sched_attr.sched_runtime of SCHED_OTHER, since Linux 6.12; before,
	// the field is ignored).
	const slice = 100_000 // ns, the least
	attr := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: -19, Runtime: slice}
	if unix.SchedSetAttr(tid, &attr, 0) == nil {
		return "nice -19, slice 0.1 ms"
	}
	attr.Nice = 0
	if unix.SchedSetAttr(tid, &attr, 0) == nil {
		return "slice 0.1 ms"
	}
	return "normal"
}
