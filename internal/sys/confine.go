package sys

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// What package sandbox builds on. All of it is for ever, and holds for every
// thread of this process and for those that they make. (Go has no thread that it
// could be done on before the others; psx makes a call on each, which on a busy
// machine takes a millisecond or more: so what holds already is not done again.)

// A Capability is a right of root's (capabilities(7)).
type Capability uint

// The capabilities that some process of Vacate keeps.
const (
	CapChown       Capability = unix.CAP_CHOWN
	CapDACOverride Capability = unix.CAP_DAC_OVERRIDE
	CapFowner      Capability = unix.CAP_FOWNER
	CapIPCLock     Capability = unix.CAP_IPC_LOCK
	CapSysAdmin    Capability = unix.CAP_SYS_ADMIN
	CapSysModule   Capability = unix.CAP_SYS_MODULE
	CapSysNice     Capability = unix.CAP_SYS_NICE
	CapSysPtrace   Capability = unix.CAP_SYS_PTRACE
)

// capNames names what is kept, for people.
var capNames = map[Capability]string{CapChown: "chown", CapDACOverride: "dac_override", CapFowner: "fowner", CapIPCLock: "ipc_lock",
	CapSysAdmin: "sys_admin", CapSysModule: "sys_module", CapSysNice: "sys_nice", CapSysPtrace: "sys_ptrace"}

func (c Capability) String() string {
	if name, ok := capNames[c]; ok {
		return name
	}
	return fmt.Sprintf("capability %d", uint(c))
}

// NoNewPrivileges sees to it that no exec gives this process a right that it
// has not (prctl(2), PR_SET_NO_NEW_PRIVS).
func NoNewPrivileges() error {
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && set == 1 {
		return nil // from the start, so in all threads
	}
	if _, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", errno)
	}
	return nil
}

// KeepCapabilities drops every capability but keep from all five sets, and
// returns which of keep this process has: none, for an ordinary user.
//
// Only CAP_SETPCAP may empty the bounding set. Without it, that set stays, which
// is of use to an exec alone, and to none after [NoNewPrivileges].
func KeepCapabilities(keep ...Capability) (kept []Capability, err error) {
	mask := setOf(keep)
	has, err := capabilities()
	if err != nil {
		return nil, err
	}
	if has[0].Permitted&(1<<unix.CAP_SETPCAP) != 0 {
		if err := dropBounding(mask, everyThread); err != nil {
			return nil, err
		}
	}
	mask &= uint64(has[1].Permitted)<<32 | uint64(has[0].Permitted)
	low, high := uint32(mask), uint32(mask>>32)
	want := &[2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if *want != has { // ambient ones go by themselves when they are not inheritable any more
		head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var pin runtime.Pinner
		defer pin.Unpin()
		pin.Pin(head)
		pin.Pin(want)
		if _, _, errno := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(head)), uintptr(unsafe.Pointer(want)), 0); errno != 0 {
			return nil, os.NewSyscallError("capset", errno)
		}
	}
	for _, c := range keep {
		if mask&(1<<c) != 0 {
			kept = append(kept, c)
		}
	}
	return kept, nil
}

func setOf(keep []Capability) (mask uint64) {
	for _, c := range keep {
		mask |= 1 << c
	}
	return mask
}

// capabilities returns the sets of the calling thread, in two halves each.
func capabilities() (data [2]unix.CapUserData, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&head, &data[0]); err != nil {
		return data, os.NewSyscallError("capget", err)
	}
	return data, nil
}

// Bounded calls start on a thread that can never have a capability but keep, nor
// gain one: the processes that start makes have these from their first
// instruction, in all threads. It is for a parent that keeps all that it has.
func Bounded(keep []Capability, start func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with its goroutine
		if unix.Gettid() == os.Getpid() {
			// The main thread would not end, and is what /proc shows of the process.
			// While it waits here, another one does it.
			defer runtime.UnlockOSThread()
			result <- Bounded(keep, start)
			return
		}
		err := boundThread(keep)
		if err == nil {
			err = start()
		}
		result <- err
	}()
	return <-result
}

func boundThread(keep []Capability) error {
	has, err := capabilities()
	if err != nil {
		return err
	}
	if has[0].Permitted&(1<<unix.CAP_SETPCAP) != 0 {
		if err := dropBounding(setOf(keep), thisThread); err != nil {
			return err
		}
	}
	return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

func everyThread(c uintptr) syscall.Errno {
	_, _, errno := psx.Syscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0)
	return errno
}

func thisThread(c uintptr) syscall.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0)
	return errno
}

// dropBounding empties the bounding set but for keep. REQUIRES: CAP_SETPCAP.
func dropBounding(keep uint64, drop func(c uintptr) syscall.Errno) error {
	for c := range uintptr(64) {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err == unix.EINVAL {
			return nil // the kernel has no more of them
		}
		if err != nil {
			return os.NewSyscallError("prctl PR_CAPBSET_READ", err)
		}
		if set == 0 || keep&(1<<c) != 0 {
			continue
		}
		if errno := drop(c); errno != 0 {
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", errno)
		}
	}
	return nil
}

// A FilterOp is one instruction of a seccomp filter (struct sock_filter,
// include/uapi/linux/filter.h).
type FilterOp struct {
	Code   uint16
	Jt, Jf uint8
	K      uint32
}

// InstallFilter puts a seccomp filter before every system call of this process
// (seccomp(2)). ENOSYS and EINVAL say that the kernel was built without.
//
// REQUIRES: NoNewPrivileges was called.
func InstallFilter(prog []FilterOp) error {
	if len(prog) == 0 || len(prog) > unix.BPF_MAXINSNS {
		return fmt.Errorf("installing a seccomp filter of %d instructions: %w", len(prog), unix.EINVAL)
	}
	ops := make([]unix.SockFilter, len(prog))
	for i, op := range prog {
		ops[i] = unix.SockFilter(op)
	}
	fprog := &unix.SockFprog{Len: uint16(len(ops)), Filter: &ops[0]}
	// SPEC_ALLOW: before Linux 5.16 a filter switched on mitigations that are for
	// programs which run code of others in their own process, at a cost to all I/O.
	tid, errno := setFilter(fprog, unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)
	if errno == unix.EINVAL { // SPEC_ALLOW is Linux 4.17 and newer
		tid, errno = setFilter(fprog, unix.SECCOMP_FILTER_FLAG_TSYNC)
	}
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if tid != 0 {
		return fmt.Errorf("installing a seccomp filter: thread %d has another one already", tid)
	}
	return nil
}

// setFilter returns the thread that could not be given the filter, 0 if all were.
func setFilter(p *unix.SockFprog, flags uintptr) (tid uintptr, errno syscall.Errno) {
	tid, _, errno = unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(p)))
	return tid, errno
}

// LandlockABI returns the version of Landlock that the kernel has, 0 if it has
// none or does not use it.
func LandlockABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// IsFolder tells whether a path leads to a folder. It asks nothing of the file
// system that is mounted there: a dead or hung one does not hold it up.
func IsFolder(path string) (bool, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOTDIR { // the path itself, or something before its end
		fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			return false, CloseFD(fd)
		}
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return true, CloseFD(fd)
}

// Confinement is what /proc/PID/status tells of a process that confined itself.
type Confinement struct {
	NoNewPrivs, Seccomp       int
	Effective, Bounding, Held uint64 // capability sets; Held is the permitted one
}

// ConfinementOf reads a process's own statement; pid 0 is this process.
func ConfinementOf(pid int) (c Confinement, err error) {
	who := "self"
	if pid != 0 {
		who = fmt.Sprint(pid)
	}
	status, err := os.ReadFile("/proc/" + who + "/status")
	if err != nil {
		return c, err
	}
	fields := map[string]struct {
		format string
		v      any
	}{
		"NoNewPrivs": {"%d", &c.NoNewPrivs}, "Seccomp": {"%d", &c.Seccomp},
		"CapEff": {"%x", &c.Effective}, "CapBnd": {"%x", &c.Bounding}, "CapPrm": {"%x", &c.Held},
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		f, ok := fields[key]
		if !ok {
			continue
		}
		if _, err := fmt.Sscanf(strings.TrimSpace(value), f.format, f.v); err != nil {
			return c, fmt.Errorf("reading /proc/%s/status: %q: %w", who, line, err)
		}
	}
	return c, nil
}
