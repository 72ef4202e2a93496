package sys

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenAttribute opens a file of sysfs to see later, by [Vanished], whether the
// kernel has taken it away. Close it with [CloseFD].
func OpenAttribute(path string) (int, error) {
	fd, err := OpenStorage(path, 0)
	if err != nil {
		return -1, err
	}
	// Until it was read once, poll(2) says that it has news (kernfs_generic_poll).
	if _, errno := Pread(fd, make([]byte, 64), 0); errno != 0 {
		_ = CloseFD(fd) // nothing was done with it
		return -1, fmt.Errorf("reading %s: %w", path, os.NewSyscallError("pread", errno))
	}
	return fd, nil
}

// Vanished reports whether the kernel has taken away one of the files of sysfs
// that fds, two at most, were opened from: one of the same name that came later is
// another. It takes a system call that waits for nothing, and no lock
// (kernfs_fop_poll answers POLLERR for a file that is not active any more).
func Vanished(fds []int) bool {
	var p [2]unix.PollFd
	for i, fd := range fds {
		p[i].Fd = int32(fd)
	}
	var now unix.Timespec
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), uintptr(len(fds)), uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		// A signal that comes meanwhile ends the call also where it would not wait
		// (fs/select.c, do_poll), and says nothing about the files: Wake sends some.
		if errno != unix.EINTR {
			// Nothing was asked for but what is told unasked: POLLERR and POLLNVAL. Of a
			// call that failed for another reason nothing is known.
			return n != 0
		}
	}
}
