package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's interface of io_uring (include/uapi/linux/io_uring.h, io_uring(7)),
// as far as package uring needs it. golang.org/x/sys/unix has the numbers of the
// calls only.

// UringFlags are the flags of a ring's setup (io_uring_setup(2)).
type UringFlags uint32

// Flags of a ring's setup, with the first kernel that has them.
const (
	UringCoopTaskrun UringFlags = 1 << 8  // 5.19: completions interrupt nobody
	UringTaskrunFlag UringFlags = 1 << 9  // 5.19: UringSQTaskrun says that completions wait
	UringSQE128      UringFlags = 1 << 10 // 5.19: submissions have 128 bytes
)

// Features of the kernel, as it fills them into UringParams.
const (
	UringFeatSingleMmap = 1 << 0 // 5.4: both rings in one mapping
	UringFeatNoDrop     = 1 << 1 // 5.5: no completion is lost
	UringFeatRWCurPos   = 1 << 3 // 5.6: comes with UringOpRead and UringOpWrite
)

// UringGetEvents makes UringEnter wait for completions, or at least move them.
const UringGetEvents = 1 << 0

// UringSQTaskrun is a bit of the submission ring's flags.
const UringSQTaskrun = 1 << 2

// Operations of submissions.
const (
	UringOpFsync      = 3
	UringOpSendmsg    = 9 // OpFlags: flags of sendmsg(2)
	UringOpReadFixed  = 4 // as UringOpRead, to memory that RegisterMemory has told of
	UringOpWriteFixed = 5
	UringOpRead       = 22
	UringOpWrite      = 23
	UringOpRecv       = 27 // OpFlags: flags of recv(2)
	UringOpCommand    = 46 // IORING_OP_URING_CMD: Off is the command's number, Cmd what it carries
)

// UringFsyncDatasync goes into OpFlags of UringOpFsync: fdatasync(2), not fsync(2).
const UringFsyncDatasync = 1 << 0

// UringNow goes into OpFlags of UringOpSendmsg and UringOpRecv: never wait, raise no
// signal.
const UringNow = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

// UringDsync goes into OpFlags of UringOpWrite: complete when it is on the medium.
const UringDsync = unix.RWF_DSYNC

// A UringSQE is a submission.
type UringSQE struct {
	Opcode   uint8
	Flags    uint8
	IOPrio   uint16
	FD       int32
	Off      uint64
	Addr     uint64 // of memory that does not move until the completion
	Len      uint32
	OpFlags  uint32
	UserData uint64
	BufIndex uint16 // of UringOpReadFixed and UringOpWriteFixed: which registered memory
	_        [6]byte
	Cmd      [16]byte // of UringOpCommand
}

// A UringBigSQE is a submission of a ring with [UringSQE128]: the command has 80 bytes.
type UringBigSQE struct {
	UringSQE
	More [64]byte // of Cmd
}

// A UringCQE is a completion: a count of bytes, or a negative errno.
type UringCQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

// UringOffsets say where the parts of a ring lie in its mapping. The names are
// the kernel's: Array is that of the submission ring, CQEs of the other.
type UringOffsets struct {
	Head, Tail, RingMask, RingEntries uint32
	X                                 [6]uint32 // differ between the two
}

// UringParams go into a ring's setup, and come out filled.
type UringParams struct {
	SQEntries, CQEntries     uint32
	Flags                    UringFlags
	SQThreadCPU, SQThreadIdl uint32
	Features                 uint32
	WQFD                     uint32
	_                        [3]uint32
	SQ                       UringOffsets // X: flags, dropped, array, reserved …
	CQ                       UringOffsets // X: overflow, cqes, flags, reserved …
}

// SQFlags and SQArray, of the submission ring, and CQEs, of the completion ring,
// are offsets in their mapping.
func (p *UringParams) SQFlags() uint32 { return p.SQ.X[0] }

// SQArray is where the submission ring's array lies.
func (p *UringParams) SQArray() uint32 { return p.SQ.X[2] }

// CQEs is where the completions lie.
func (p *UringParams) CQEs() uint32 { return p.CQ.X[1] }

// SetupUring makes a ring and returns its descriptor, which is closed on exec.
func SetupUring(entries uint32, p *UringParams) (int, syscall.Errno) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// EnterUring hands submit submissions to the kernel and, with UringGetEvents,
// waits until there are at least wait completions (io_uring_enter(2)). It
// returns EINTR as it comes: how much was submitted then, the ring tells.
func EnterUring(fd int, submit, wait, flags uint32) syscall.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(submit), uintptr(wait), uintptr(flags), 0, 0)
	return errno
}

// RegisterMemory tells a ring of memory that transfers will use: the kernel looks
// up its pages once, and keeps them in memory until the ring is closed
// (io_uring_register(2)). They count against RLIMIT_MEMLOCK, apart from locked
// ones. It becomes registered memory 0; at most 1 GiB, and once a ring.
func RegisterMemory(fd int, b []byte) error {
	var pin runtime.Pinner // the vector holds an address that only the kernel follows
	defer pin.Unpin()
	pin.Pin(unsafe.SliceData(b))
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	const registerBuffers = 0 // IORING_REGISTER_BUFFERS
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), registerBuffers, uintptr(unsafe.Pointer(&iov)), 1, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_register", errno)
	}
	return nil
}

// Offsets at which a ring's descriptor is mapped.
const (
	UringMapRings = 0
	UringMapSQEs  = 0x10000000
)

// MapUring maps a part of a ring. A forked child does not get it, nor does a
// core dump. It is given back to [Unmap].
func MapUring(fd int, part int64, size int) ([]byte, error) {
	b, err := unix.Mmap(fd, part, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	if err := errors.Join(DontFork(b), DontDump(b)); err != nil {
		return nil, errors.Join(err, Unmap(b))
	}
	return b, nil
}

// MapDevice maps the first size bytes behind off of a device, only to be read, and
// follows what the driver writes there. A forked child does not get it, nor does a
// core dump. It is given back to [Unmap].
func MapDevice(fd int, off int64, size int) ([]byte, error) {
	b, err := unix.Mmap(fd, off, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	if err := errors.Join(DontFork(b), DontDump(b)); err != nil {
		return nil, errors.Join(err, Unmap(b))
	}
	return b, nil
}

// UringError explains why there is no ring.
func UringError(errno syscall.Errno) error {
	why := ""
	switch errno {
	case unix.ENOSYS:
		why = ": this kernel has no io_uring"
	case unix.EPERM:
		why = ": the sysctl kernel.io_uring_disabled, or a seccomp filter, forbids it"
	case unix.ENOMEM:
		why = ": no memory, or over RLIMIT_MEMLOCK (before Linux 5.12)"
	case unix.EMFILE:
		why = ": RLIMIT_NOFILE is reached"
	}
	return fmt.Errorf("io_uring_setup: %w%s", errno, why)
}
