package sys

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A PacketConn is one end of a connected SOCK_SEQPACKET unix socket whose
// packets are all of one size and may each carry one file descriptor. Calls
// block their thread: there is no poller between the kernel and the caller.
//
// Send may be called from any goroutine, Recv from one at a time. Shutdown may
// be called at any time and ends both; Close only when both have returned.
type PacketConn struct {
	fd int
}

// PacketPair makes a connected pair. Both ends are closed on exec.
func PacketPair() (a, b *os.File, err error) {
	return socketPair(unix.SOCK_SEQPACKET, "link")
}

// StreamPair makes a connected pair of SOCK_STREAM unix sockets. Both ends are
// closed on exec.
func StreamPair() (a, b *os.File, err error) {
	return socketPair(unix.SOCK_STREAM, "control")
}

func socketPair(kind int, name string) (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// NewPacketConn uses the socket f, which the caller may close afterwards.
func NewPacketConn(f *os.File) (*PacketConn, error) {
	fd := -1
	var err error
	cerr := control(f, func(raw int) {
		var kind int
		if kind, err = unix.GetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			err = os.NewSyscallError("getsockopt SO_TYPE", err)
			return
		}
		if kind != unix.SOCK_SEQPACKET {
			err = fmt.Errorf("socket type is %d, want SOCK_SEQPACKET: %w", kind, unix.EPROTOTYPE)
			return
		}
		if fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			err = os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
			return
		}
		err = os.NewSyscallError("fcntl O_NONBLOCK", unix.SetNonblock(fd, false))
	})
	if err := errors.Join(cerr, err); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return &PacketConn{fd: fd}, nil
}

// Send sends b as one packet, and file along with it unless it is nil. The
// caller still owns file. EPIPE means that the other end is gone.
func (c *PacketConn) Send(b []byte, file *os.File) error {
	return c.sendFile(b, file, 0)
}

// SendNow is Send that does not wait: EAGAIN says that there is no room.
func (c *PacketConn) SendNow(b []byte, file *os.File) error {
	return c.sendFile(b, file, unix.MSG_DONTWAIT)
}

func (c *PacketConn) sendFile(b []byte, file *os.File, flags int) error {
	if file == nil {
		return c.send(b, nil, flags)
	}
	var err error
	cerr := control(file, func(fd int) { err = c.send(b, unix.UnixRights(fd), flags) })
	return errors.Join(cerr, err)
}

func (c *PacketConn) send(b, oob []byte, flags int) error {
	for {
		n, err := unix.SendmsgN(c.fd, b, oob, nil, unix.MSG_NOSIGNAL|flags)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return os.NewSyscallError("sendmsg", err)
		case n != len(b):
			return fmt.Errorf("sendmsg: %d of %d bytes: %w", n, len(b), unix.EIO)
		}
		return nil
	}
}

// Recv waits for a packet of exactly len(b) bytes and returns the descriptor
// that came with it, if one did; it is the caller's. io.EOF is not used: a
// closed peer is EPIPE, a packet of another size or with more than one
// descriptor is EPROTO, and nothing of it is kept.
func (c *PacketConn) Recv(b []byte) (*os.File, error) { return c.recv(b, 0) }

// RecvNow is Recv that does not wait: EAGAIN says that no packet is there.
func (c *PacketConn) RecvNow(b []byte) (*os.File, error) { return c.recv(b, unix.MSG_DONTWAIT) }

// Wait returns when a packet is there and an answer to it would find room, or
// when the other end is closed.
func (c *PacketConn) Wait() error {
	for _, what := range []int16{unix.POLLIN, unix.POLLOUT} {
		for {
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: what}}, -1)
			if err == nil {
				break
			}
			if err != unix.EINTR {
				return os.NewSyscallError("poll", err)
			}
		}
	}
	return nil
}

func (c *PacketConn) recv(b []byte, how int) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	for {
		n, oobn, flags, _, err := unix.Recvmsg(c.fd, b, oob, unix.MSG_CMSG_CLOEXEC|how)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvmsg", err)
		}
		fds, err := rights(oob[:oobn])
		switch {
		case n == 0 && len(fds) == 0 && err == nil:
			return nil, fmt.Errorf("recvmsg: the other end is closed: %w", unix.EPIPE)
		case err != nil:
		case n != len(b) || flags&unix.MSG_TRUNC != 0:
			err = fmt.Errorf("recvmsg: a packet that is not of %d bytes: %w", len(b), unix.EPROTO)
		case len(fds) > 1 || flags&unix.MSG_CTRUNC != 0:
			err = fmt.Errorf("recvmsg: more than one descriptor: %w", unix.EPROTO)
		}
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return nil, err
		}
		if len(fds) == 1 {
			return newFile(fds[0], "passed"), nil
		}
		return nil, nil
	}
}

// rights returns every descriptor in oob, also when it returns an error.
func rights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("recvmsg: control message: %w", err)
	}
	for i := range msgs {
		got, perr := unix.ParseUnixRights(&msgs[i])
		if perr != nil {
			err = fmt.Errorf("recvmsg: control message: %w", syscall.EPROTO)
			continue
		}
		fds = append(fds, got...)
	}
	return fds, err
}

// FD is the socket's descriptor, which stays c's.
func (c *PacketConn) FD() int { return c.fd }

// Shutdown makes Send and Recv of both ends return EPIPE, also those that wait.
func (c *PacketConn) Shutdown() error {
	return os.NewSyscallError("shutdown", unix.Shutdown(c.fd, unix.SHUT_RDWR))
}

// Close frees the descriptor.
//
// REQUIRES: no Send or Recv is in progress.
func (c *PacketConn) Close() error { return os.NewSyscallError("close", unix.Close(c.fd)) }
