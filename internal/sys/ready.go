package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a thread of the data path waits for when it waits for more than one thing,
// and how it sends what does not lie in one piece. Nothing here allocates once the
// slices have grown.

// A Ready is one descriptor to wait for: the kernel's struct pollfd (poll(2)).
type Ready struct {
	FD     int32 // a negative one is passed over
	Events int16
	Got    int16 // ReadyHangup and the like are reported unasked
}

// Events of a Ready.
const (
	ReadyRead   = unix.POLLIN
	ReadyWrite  = unix.POLLOUT
	ReadyHangup = unix.POLLHUP | unix.POLLERR | unix.POLLNVAL
)

// WaitReady waits until one of the descriptors is ready, at most until due, a time
// of CLOCK_MONOTONIC in ns, or for ever if due is 0, and no longer than most ns if
// that is not 0. EINTR says that Wake was called for its thread, or that it is to
// look again for another reason.
func WaitReady(fds []Ready, due, most int64) syscall.Errno {
	left := most
	if due != 0 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return errno(err)
		}
		if left = max(due-now.Nano(), 0); most != 0 {
			left = min(left, most)
		}
	}
	limit := unix.NsecToTimespec(left)
	at := unsafe.Pointer(&limit)
	if due == 0 && most == 0 {
		at = nil
	}
	_, _, e := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(at), 0, 0, 0)
	return e
}

func errno(err error) syscall.Errno {
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	return syscall.EIO
}

// maxPieces is how many pieces a Pieces holds.
const maxPieces = 128

// Pieces are parts of memory that are sent with one call. They are memory that
// never moves and outlives the call. The zero value is empty.
type Pieces struct {
	iov [maxPieces]unix.Iovec
	n   int
	hdr unix.Msghdr
}

// Reset empties p.
func (p *Pieces) Reset() { p.n = 0 }

// Add puts b, which is not empty, behind the others. It reports whether there was
// room.
func (p *Pieces) Add(b []byte) bool {
	if p.n == maxPieces {
		return false
	}
	p.iov[p.n].Base = unsafe.SliceData(b)
	p.iov[p.n].SetLen(len(b))
	p.n++
	return true
}

// SendNow sends as much of p as there is room for; EAGAIN says that there is none.
// REQUIRES: p is not empty.
func (p *Pieces) SendNow(fd int) (int, syscall.Errno) {
	if p.n == 1 {
		return SendNow(fd, unsafe.Slice(p.iov[0].Base, int(p.iov[0].Len)))
	}
	p.hdr.Iov = &p.iov[0]
	p.hdr.SetIovlen(p.n)
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&p.hdr)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}
