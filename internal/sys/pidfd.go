package sys

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// OpenProcess returns a descriptor of a process (pidfd_open(2), Linux 5.3), which
// stays its own when the number is used again. It is closed on exec.
func OpenProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("watching process %d: %w", pid, os.NewSyscallError("pidfd_open", err))
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("process %d", pid)), nil
}

// Ended waits for the end of a process that [OpenProcess] has opened, at most for
// the given time, and reports whether it has ended: a zombie has.
func Ended(process *os.File, most time.Duration) (ended bool, err error) {
	cerr := control(process, func(fd int) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		var n int
		n, err = unix.Poll(p, int(most.Milliseconds()))
		if err == unix.EINTR {
			n, err = 0, nil
		}
		ended = n > 0
	})
	if cerr != nil {
		return false, cerr
	}
	if err != nil {
		return false, os.NewSyscallError("poll", err)
	}
	return ended, nil
}
