package sys

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Event descriptors (eventfd(2)): counters that can be waited for. Those of others
// are used with care: who shares one may make it block, or exhaust it.

// NewEvent returns an event descriptor with the count 0 that never blocks.
func NewEvent() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return fd, os.NewSyscallError("eventfd2", err)
}

// ErrNoEvent is wrapped where a descriptor is something else than an event
// descriptor.
var ErrNoEvent = errors.New("it is no eventfd")

// AdoptEvent makes fd, which a stranger has sent, non-blocking. The error wraps
// ErrNoEvent if it is no event descriptor: only of one is it known that neither
// reading nor waiting asks anybody else, such as a FUSE server.
func AdoptEvent(fd int) error {
	// The kernel names the file by the link of /proc (fs/eventfd.c).
	var link [64]byte
	n, err := unix.Readlink(ProgramPath(fd), link[:])
	if err != nil {
		return fmt.Errorf("looking at descriptor %d: %w", fd, os.NewSyscallError("readlink", err))
	}
	if got := string(link[:n]); got != "anon_inode:[eventfd]" {
		return fmt.Errorf("descriptor %d is %q: %w", fd, got, ErrNoEvent)
	}
	return os.NewSyscallError("fcntl O_NONBLOCK", unix.SetNonblock(fd, true))
}

// SignalEvent adds 1 to an event descriptor. EAGAIN says that it is full, and so
// signalled already. The caller may be woken with EINTR, if others have made it
// block.
func SignalEvent(fd int) syscall.Errno {
	one := uint64(1)
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
	return errno
}

// ClearEvent takes the count of an event descriptor, or 1 of it if it is a
// semaphore. EAGAIN says that there is none; it never blocks.
func ClearEvent(fd int) syscall.Errno {
	var count uint64
	iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(&count)), Len: uint64(unsafe.Sizeof(count))}
	const noOffset = ^uintptr(0)
	_, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, noOffset, noOffset, unix.RWF_NOWAIT)
	if errno == unix.EOPNOTSUPP || errno == unix.ENOSYS || errno == unix.ESPIPE { // Linux before 5.8: O_NONBLOCK must do
		_, _, errno = unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count)), unsafe.Sizeof(count))
	}
	return errno
}
