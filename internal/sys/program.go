package sys

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OpenProgram opens a file only to run it: whatever lies at its path later, this
// is what runs. It says nothing about whether the file can be run.
func OpenProgram(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// ProgramPath is the path of what descriptor fd names, in the process that runs
// it.
func ProgramPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Descriptor returns the number of f, which stays open and as it is: unlike Fd,
// it does not make the file wait for all who share it.
func Descriptor(f *os.File) (fd int, err error) {
	cerr := control(f, func(n int) { fd = n })
	return fd, cerr
}

// Adopt makes a file of a descriptor that an earlier program of this process
// left open, and has it closed on exec from now on.
func Adopt(fd int, name string) (*os.File, error) {
	if err := closeOnExec([]int{fd}, true); err != nil {
		return nil, fmt.Errorf("taking over descriptor %d (%s): %w", fd, name, err)
	}
	return newFile(fd, name), nil
}

func closeOnExec(fds []int, yes bool) error {
	flag := 0
	if yes {
		flag = unix.FD_CLOEXEC
	}
	var errs []error
	for _, fd := range fds {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
		errs = append(errs, os.NewSyscallError("fcntl F_SETFD", err))
	}
	return errors.Join(errs...)
}

// Exec runs a program in place of this one, in the same process, with only the
// descriptors keep, 0, 1 and 2 open. It returns only with an error; then all is
// as it was.
//
// SIGHUP, SIGINT and SIGTERM wait until the new program asks for them: else one
// that comes before would end it. (os/signal lets a signal through that was
// blocked when the program started, once it is asked for.)
func Exec(program *os.File, args, env []string, keep []int) error {
	fd, err := Descriptor(program)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var block, before unix.Sigset_t
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM} {
		block.Val[0] |= 1 << (s - 1)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &block, &before); err != nil {
		return os.NewSyscallError("pthread_sigmask", err)
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) //nolint:errcheck // it was valid before
	syscall.ForkLock.Lock()                                   // no child gets what is kept
	defer syscall.ForkLock.Unlock()
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return os.NewSyscallError("getrlimit RLIMIT_NOFILE", err)
	}
	err = closeOnExec(keep, false)
	if err == nil {
		err = os.NewSyscallError("execve "+program.Name(), syscall.Exec(ProgramPath(fd), args, env))
		// syscall.Exec has put the limit back to what this process was started with,
		// which may be fewer than are open.
		err = errors.Join(err, os.NewSyscallError("setrlimit RLIMIT_NOFILE", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files)))
	}
	return errors.Join(err, closeOnExec(keep, true))
}

// AllowSignals lets SIGHUP, SIGINT and SIGTERM through to this process: a parent
// that came by [Exec] passes on that they are blocked.
func AllowSignals() error {
	var set unix.Sigset_t
	for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTERM} {
		set.Val[0] |= 1 << (s - 1)
	}
	return os.NewSyscallError("pthread_sigmask", unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, nil))
}

// SetName names this process in lists of processes (15 bytes are shown). One
// that was started by [ProgramPath] has the descriptor's number for a name.
//
// REQUIRES: before [Harden], which takes the right away from ordinary users.
func SetName(name string) error { return os.WriteFile("/proc/self/comm", []byte(name), 0) }

// ProtectFromOOM keeps the kernel from choosing this process, and those that it
// starts, when memory runs out. It needs CAP_SYS_RESOURCE.
//
// REQUIRES: as SetName.
func ProtectFromOOM() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
}

// Notify tells a service manager the state of this process (sd_notify(3)).
// socket is NOTIFY_SOCKET: a path, or an abstract name that starts with "@".
func Notify(socket, state string) error {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	// A manager that reads nothing must not keep this process from its children.
	err = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	if err == nil {
		_, err = c.Write([]byte(state))
	}
	return errors.Join(err, c.Close())
}
