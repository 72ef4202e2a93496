package uring

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"vacate/internal/sys"
)

// MaxCommand is the most bytes that a command of a [Big] carries.
const MaxCommand = 80

// A Big is a ring with submissions of 128 bytes (Linux 5.19), which the control
// commands of some drivers need. It does one command at a time, and belongs to one
// goroutine.
type Big struct {
	r    *Ring
	sqes []sys.UringBigSQE
}

// NewBig makes one. Errors are those of [New], and EINVAL before Linux 5.19.
func NewBig() (*Big, error) {
	p := sys.UringParams{Flags: sys.UringSQE128}
	fd, errno := sys.SetupUring(1, &p)
	if errno != 0 {
		return nil, sys.UringError(errno)
	}
	r, err := open(fd, &p)
	if err != nil {
		return nil, err
	}
	b := &Big{r: r}
	if err := b.widen(int(p.SQEntries)); err != nil {
		_ = r.Close() // it was never used
		return nil, err
	}
	return b, nil
}

// widen maps the submissions in their full length.
func (b *Big) widen(entries int) error {
	if err := sys.Unmap(b.r.sqeBytes); err != nil {
		return err
	}
	b.r.sqeBytes, b.r.sqes = nil, nil
	m, err := sys.MapUring(b.r.fd, sys.UringMapSQEs, entries*int(unsafe.Sizeof(sys.UringBigSQE{})))
	if err != nil {
		return fmt.Errorf("mapping a ring's submissions: %w", err)
	}
	b.r.sqeBytes = m
	b.sqes = unsafe.Slice((*sys.UringBigSQE)(unsafe.Pointer(unsafe.SliceData(m))), entries)
	return nil
}

// Command gives the driver behind fd a command of at most [MaxCommand] bytes, waits
// until it is done, and returns its result. The caller stays on its thread meanwhile.
// An address in the command is of memory that does not move before.
func (b *Big) Command(fd int, op uint32, cmd []byte) (int, syscall.Errno) {
	if len(cmd) > MaxCommand {
		return 0, syscall.EINVAL
	}
	s := &b.sqes[b.r.tail&uint32(len(b.sqes)-1)]
	*s = sys.UringBigSQE{}
	s.Opcode, s.FD, s.Off = sys.UringOpCommand, int32(fd), uint64(op)
	n := copy(s.Cmd[:], cmd)
	copy(s.More[:], cmd[n:])
	b.r.tail++
	atomic.StoreUint32(b.r.sqTail, b.r.tail)
	for {
		// EAGAIN: the kernel lacks memory for a request; what it has not taken is there still.
		if errno := b.r.Enter(true); errno != 0 && errno != syscall.EAGAIN {
			return 0, errno
		}
		if c, ok := b.r.Next(); ok {
			return c.N, c.Errno
		}
	}
}

// Close gives the ring back.
func (b *Big) Close() error { return b.r.Close() }
