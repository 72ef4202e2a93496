package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Connection returns a second descriptor, in blocking mode, of the stream
// socket f, which stays the caller's. What is no stream socket, or one that
// listens, is refused. A peer that has gone is no error here: receiving tells it.
func Connection(f *os.File) (int, error) {
	fd := -1
	var err error
	cerr := control(f, func(raw int) {
		var kind, listens int
		if kind, err = unix.GetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
			listens, err = unix.GetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		}
		if err == nil && (kind != unix.SOCK_STREAM || listens != 0) {
			err = unix.EPROTOTYPE
		}
		if err != nil {
			return
		}
		if fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = unix.SetNonblock(fd, false)
		}
	})
	if err := errors.Join(cerr, err); err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return -1, fmt.Errorf("sharing connection %s: %w", f.Name(), err)
	}
	return fd, nil
}

// ShareCharDevice returns a second descriptor of the character device f, which stays the
// caller's. What is something else is refused.
func ShareCharDevice(f *os.File) (int, error) {
	fd := -1
	var err error
	cerr := control(f, func(raw int) {
		var st unix.Stat_t
		if err = unix.Fstat(raw, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFCHR {
			err = unix.ENODEV
		}
		if err == nil {
			fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
		}
	})
	if err := errors.Join(cerr, err); err != nil {
		return -1, fmt.Errorf("sharing the character device %s: %w", f.Name(), err)
	}
	return fd, nil
}
