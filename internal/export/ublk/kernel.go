package ublk

import (
	"os"
	"syscall"

	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
	"vacate/internal/uring"
)

// A kernel is what a server needs of the kernel: the driver, or a test's.
type kernel interface {
	share(char *os.File) (fd int, err error)
	requests(fd int, queue uint16, size int) ([]byte, error)
	ring(entries int) (commands, error)
}

// commands carry commands to the driver and back: a [uring.Ring].
type commands interface {
	Command(id uint64, fd int, op uint32, cmd [16]byte) bool
	Enter(wait bool) syscall.Errno
	Next() (uring.Completion, bool)
	Ready() int
	Deferred() bool
	Unsubmitted() int
	FD() int32
	Close() error
}

// driver is the real one.
type driver struct{}

func (driver) share(char *os.File) (int, error) { return sys.ShareCharDevice(char) }

// requests maps the descriptors of a queue.
func (driver) requests(fd int, queue uint16, size int) ([]byte, error) {
	return sys.MapDevice(fd, ublkcmd.DescOffset(int(queue), sys.PageSize), size)
}

func (driver) ring(entries int) (commands, error) {
	r, err := uring.New(entries)
	if err != nil {
		return nil, err // not a nil ring in an interface
	}
	return r, nil
}
