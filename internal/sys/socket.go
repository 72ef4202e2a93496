package sys

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stream sockets for the data path. Every function that moves bytes returns the
// count and the errno of the kernel, allocates nothing, repeats itself after
// EINTR, and never raises SIGPIPE. The socket itself is in blocking mode: a
// call is one that waits (Recv, Send) or one that does not (RecvNow, SendNow).
//
// The calls that do not wait skip the Go scheduler: they copy at most the
// buffer they are given, which takes microseconds. Those that wait tell it, so
// that their thread may sleep without holding up the others. The pointer is made
// in the argument list each time: only there does the compiler promise that the
// bytes stay where they are until the call returns (unsafe.Pointer, rule 4).

// Recv receives at least one byte, and waits for it. 0 bytes without an errno
// is the end of the stream.
func Recv(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), 0, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// RecvNow receives what is there; EAGAIN says that nothing is.
func RecvNow(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// Send sends at least one byte of p, and waits until there is room for it.
func Send(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// SendNow sends as much of p as there is room for; EAGAIN says that there is
// none.
func SendNow(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

func count(n uintptr, errno syscall.Errno) (int, syscall.Errno) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// Shutdown ends both directions of a connected socket: calls that wait on it
// return, in every thread and process that holds it.
func Shutdown(fd int) error {
	if err := unix.Shutdown(fd, unix.SHUT_RDWR); err != nil {
		return fmt.Errorf("shutting down a socket: %w", err)
	}
	return nil
}

// CloseFD closes a descriptor. EINTR is not repeated: on Linux the descriptor
// is gone all the same (close(2)).
func CloseFD(fd int) error {
	if err := unix.Close(fd); err != nil && err != unix.EINTR {
		return fmt.Errorf("closing a descriptor: %w", err)
	}
	return nil
}

// Accept takes one connection from a listening socket. The new descriptor is
// closed on exec and in blocking mode, whatever the listener's mode is; on a
// listener in non-blocking mode EAGAIN says that nobody waits.
func Accept(fd int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// PeerUID returns the user who connected a unix socket (SO_PEERCRED, unix(7)):
// the effective one at the time of connect(2).
func PeerUID(fd int) (uint32, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("asking for a peer's credentials: %w", err)
	}
	return cred.Uid, nil
}

// SetSocketBuffers asks for room for snd and rcv bytes in the kernel; 0 leaves
// one as it is. The kernel grants at most net.core.wmem_max and rmem_max
// without saying so (socket(7)).
func SetSocketBuffers(fd, snd, rcv int) error {
	if snd > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, snd); err != nil {
			return fmt.Errorf("setting a socket's send buffer to %d bytes: %w", snd, err)
		}
	}
	if rcv > 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcv); err != nil {
			return fmt.Errorf("setting a socket's receive buffer to %d bytes: %w", rcv, err)
		}
	}
	return nil
}

// Listener returns a second descriptor of the listening socket l, for a
// goroutine that accepts connections without keeping a thread: it sleeps in
// Go's poller, through the file's SyscallConn, and Close of the file wakes it.
// l stays the caller's; its open file description becomes non-blocking. What is
// no socket, or does not listen, is refused: accepting from it would fail for
// ever.
func Listener(l *os.File) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("sharing listening socket %s: %w", l.Name(), err)
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(old uintptr) {
		listens, sockErr := unix.GetsockoptInt(int(old), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if sockErr == nil && listens == 0 {
			sockErr = unix.EINVAL // as accept(2) says it
		}
		if dupErr = sockErr; dupErr != nil {
			return
		}
		if fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
			dupErr = unix.SetNonblock(fd, true)
		}
	})
	if err == nil {
		err = dupErr
	}
	if err != nil {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		return nil, fmt.Errorf("sharing listening socket %s: %w", l.Name(), err)
	}
	return os.NewFile(uintptr(fd), l.Name()), nil
}
