package sys

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What vhost-user asks of the system: messages that are looked at before they are
// taken, memory of another process, and its event descriptors.

// MaxPassed is how many descriptors may come with what Peek looks at: more than a
// message of vhost-user has.
const MaxPassed = 16

// PeekHead copies the first bytes that wait in a stream socket to p, and leaves
// them and their descriptors there. EAGAIN says that nothing waits; 0 without an
// errno is the end of the stream.
func PeekHead(fd int, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// PeekFiles is PeekHead, and returns duplicates of the descriptors that came with
// the bytes, which become the caller's. It stops at the end of what was sent with
// descriptors, although more may wait behind that: see PeekFrom. EMSGSIZE: more
// than MaxPassed descriptors came, none is returned.
func PeekFiles(fd int, p []byte) (n int, fds []int, e syscall.Errno) {
	oob := make([]byte, unix.CmsgSpace(4*MaxPassed))
	for {
		n, oobn, flags, _, err := unix.Recvmsg(fd, p, oob, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, nil, errno(err)
		}
		fds, err := rights(oob[:oobn])
		if err != nil || flags&unix.MSG_CTRUNC != 0 {
			for _, fd := range fds {
				unix.Close(fd)
			}
			return 0, nil, unix.EMSGSIZE
		}
		return n, fds, 0
	}
}

// PeekFrom makes PeekHead and PeekFiles begin off bytes behind the first one that
// waits, and go on from there each time; -1 ends that (socket(7), SO_PEEK_OFF).
func PeekFrom(fd, off int) error {
	return os.NewSyscallError("setsockopt SO_PEEK_OFF", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, off))
}

// UrgentInline makes bytes that are sent out of band (MSG_OOB, which unix sockets have
// since Linux 5.15) come in their turn. Else such a byte makes the socket readable, and
// a look passes over it: who waits for what is to be seen would spin.
func UrgentInline(fd int) error {
	return os.NewSyscallError("setsockopt SO_OOBINLINE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1))
}

// SendFile sends p, and file along with it if it is not negative. EAGAIN says that
// there is no room.
func SendFile(fd int, p []byte, file int) (int, syscall.Errno) {
	if file < 0 {
		return SendNow(fd, p)
	}
	for {
		n, err := unix.SendmsgN(fd, p, unix.UnixRights(file), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			if err != nil {
				return 0, errno(err)
			}
			return n, 0
		}
	}
}

// UnixStream checks that fd, which a stranger has sent, is a unix stream socket.
// Nobody else is asked: neither sending on one without waiting, nor closing it, waits
// for anybody.
func UnixStream(fd int) error {
	for _, o := range []struct{ option, want int }{{unix.SO_DOMAIN, unix.AF_UNIX}, {unix.SO_TYPE, unix.SOCK_STREAM}} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.option)
		if err == nil && got != o.want {
			err = unix.EPROTOTYPE
		}
		if err != nil {
			return fmt.Errorf("descriptor %d is no unix stream socket: %w", fd, err)
		}
	}
	return nil
}

// Share returns a file of a second descriptor of what fd names.
func Share(fd int, name string) (*os.File, error) {
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	return newFile(again, name), nil
}

// Detach returns a second descriptor of what f names, as it is, and closes f.
func Detach(f *os.File) (fd int, err error) {
	fd = -1
	cerr := control(f, func(raw int) { fd, err = unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(cerr, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err), f.Close()); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return -1, err
	}
	return fd, nil
}

// newFile is os.NewFile, except that Go's poller never hears of an anonymous
// inode: a kick of a guest's would wake every process that holds its eventfd,
// the keeper with it.
func newFile(fd int, name string) *os.File {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != 0 {
		return os.NewFile(uintptr(fd), name)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 { // which os.NewFile goes by
		return os.NewFile(uintptr(fd), name)
	}
	other, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewFile(uintptr(fd), name)
	}
	f := os.NewFile(uintptr(other), name)
	if err := unix.Dup3(fd, other, unix.O_CLOEXEC); err != nil {
		_ = f.Close() // it was never used
		return os.NewFile(uintptr(fd), name)
	}
	unix.Close(fd)
	return f
}

// A Parcel is what sendmsg(2) is told to send: bytes and perhaps a descriptor, all
// of it in memory that does not move.
type Parcel struct {
	memory []byte
	hdr    *unix.Msghdr
}

// The parts of a parcel's memory.
const (
	parcelVector  = 64
	parcelControl = 128
	parcelData    = 256
	parcelSize    = 4096

	// ParcelRoom is how many bytes a parcel takes.
	ParcelRoom = parcelSize - parcelData
)

// NewParcel makes an empty parcel.
func NewParcel() (*Parcel, error) {
	b, err := MapAnonymous(parcelSize)
	if err != nil {
		return nil, err
	}
	return &Parcel{memory: b, hdr: (*unix.Msghdr)(unsafe.Pointer(&b[0]))}, nil
}

// Fill puts p, at most ParcelRoom bytes, and file, if it is not negative, into the
// parcel.
func (c *Parcel) Fill(p []byte, file int) {
	if len(p) > ParcelRoom {
		panic("sys: parcel overfilled")
	}
	clear(c.memory[:parcelData])
	n := copy(c.memory[parcelData:], p)
	v := (*unix.Iovec)(unsafe.Pointer(&c.memory[parcelVector]))
	v.Base = &c.memory[parcelData]
	v.SetLen(n)
	c.hdr.Iov = v
	c.hdr.SetIovlen(1)
	if file >= 0 {
		oob := unix.UnixRights(file)
		copy(c.memory[parcelControl:parcelData], oob)
		c.hdr.Control = &c.memory[parcelControl]
		c.hdr.SetControllen(len(oob))
	}
}

// Address is where the kernel finds the parcel's struct msghdr.
func (c *Parcel) Address() uintptr { return uintptr(unsafe.Pointer(c.hdr)) }

// Close gives the memory back. REQUIRES: nothing sends it.
func (c *Parcel) Close() error { return Unmap(c.memory) }

// MapGuest maps size bytes from off on of a file that another process shares, for
// reading and writing. The file must have them now: later it may be cut under the
// mapping, which makes touching it a SIGBUS. whole is what [Unmap] takes: huge
// pages are mapped whole. Neither a forked child nor a core dump gets it.
//
// The file must lie in memory (tmpfs, hugetlbfs, memfd), else it is ENODEV: only
// there a fault on the mapping takes processor time, and waits for no device and
// for nobody's answer. A key whose cipher met another one could not be destroyed.
// It may wait for the kernel: while somebody punches a hole into the file, who
// touches what lies in it is held up until that is done (mm/shmem.c, shmem_fault);
// that was half a second for 1 GiB, on a busy machine.
func MapGuest(fd int, off, size uint64) (whole, host []byte, err error) {
	// Just such files have seals (mm/memfd.c). It comes first: of a FUSE server's
	// file, fstat(2) and fstatfs(2) ask that server.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil {
		return nil, nil, fmt.Errorf("mapping memory of another process: its file does not lie in memory (tmpfs, hugetlbfs, memfd): %w", unix.ENODEV)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, fmt.Errorf("mapping memory of another process: no memory file: %w", unix.ENODEV)
	}
	if size == 0 || off > math.MaxInt64 || size > math.MaxInt64-off || off+size > uint64(st.Size) {
		return nil, nil, fmt.Errorf("mapping %d bytes at %d of a file of %d: %w", size, off, st.Size, unix.ENXIO)
	}
	page := uint64(PageSize)
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, nil, os.NewSyscallError("fstatfs", err)
	}
	if fs.Type == unix.HUGETLBFS_MAGIC { // mmap(2): offset and length are whole huge pages
		page = max(page, uint64(fs.Bsize))
	}
	start := off &^ (page - 1)
	length := (off - start + size + page - 1) &^ (page - 1)
	if length > math.MaxInt64-start {
		return nil, nil, fmt.Errorf("mapping %d bytes at %d: %w", size, off, unix.EOVERFLOW)
	}
	whole, err = MapStorage(fd, int64(start), int(length), false)
	if err != nil {
		return nil, nil, err
	}
	return whole, whole[off-start:][:size:size], nil
}
