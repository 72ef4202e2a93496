package sys

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ExitOrphaned is the code with which a process ends itself when its parent is
// gone ([ExitOnEOF]).
const ExitOrphaned = 3

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
// f over. (PR_SET_PDEATHSIG would follow the parent's thread, not the parent:
// golang/go#27505.)
func ExitOnEOF(f *os.File) {
	go func() {
		var b [1]byte
		for {
			n, err := f.Read(b[:])
			if n == 0 && !errors.Is(err, syscall.EINTR) {
				os.Exit(ExitOrphaned)
			}
		}
	}()
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
func Urgent() string {
	err := unix.SchedSetAttr(0, &unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	if err == nil {
		return "fifo"
	}
	// A short slice is a near deadline, and preempts. Any process may ask for
	// it (sched_attr.sched_runtime of SCHED_OTHER, since Linux 6.12; before,
	// the field is ignored).
	const slice = 100_000 // ns, the least
	attr := unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: -19, Runtime: slice}
	if unix.SchedSetAttr(0, &attr, 0) == nil {
		return "nice -19, slice 0.1 ms"
	}
	attr.Nice = 0
	if unix.SchedSetAttr(0, &attr, 0) == nil {
		return "slice 0.1 ms"
	}
	return "normal"
}
