package sys

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Files and block devices that hold tenants' data. Descriptors are plain
// numbers: an os.File that the collector closes would give up a drive's fence.
// Pread, Pwrite, PwriteSync and Fdatasync return the count and the errno of the
// kernel, allocate nothing, and repeat themselves after EINTR.

// An OpenMode says how [OpenStorage] opens.
type OpenMode uint8

const (
	// ReadWrite opens for both; without it only for reading.
	ReadWrite OpenMode = 1 << iota
	// Direct goes past the page cache (O_DIRECT).
	Direct
	// Exclusive fails with EBUSY on a block device that is mounted, held by
	// another driver, or open exclusively elsewhere (O_EXCL without O_CREAT,
	// open(2)). It is for block devices only.
	Exclusive
)

// OpenStorage opens a file or block device; symbolic links are followed. The
// error is an *os.PathError with the errno. Close it with [CloseFD].
func OpenStorage(path string, m OpenMode) (int, error) {
	// O_NONBLOCK: a FIFO must not make the caller wait. It means nothing to
	// regular files and block devices.
	flags := unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK
	if m&ReadWrite != 0 {
		flags |= unix.O_RDWR
	}
	if m&Direct != 0 {
		flags |= unix.O_DIRECT
	}
	if m&Exclusive != 0 {
		flags |= unix.O_EXCL
	}
	for {
		fd, err := unix.Open(path, flags, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// Buffered turns O_DIRECT off again.
func Buffered(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl F_GETFL", err)
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_DIRECT)
	return os.NewSyscallError("fcntl F_SETFL", err)
}

// Pread reads at most len(p) bytes at off. 0 bytes without an errno is the end
// of the file or device.
func Pread(fd int, p []byte, off int64) (int, syscall.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_PREAD64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off), 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// Pwrite writes at most len(p) bytes at off.
func Pwrite(fd int, p []byte, off int64) (int, syscall.Errno) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_PWRITE64, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off), 0, 0)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// PwriteSync writes at most len(p) bytes at off, and returns when they are on
// the medium (pwritev2(2) with RWF_DSYNC, since Linux 4.7).
func PwriteSync(fd int, p []byte, off int64) (int, syscall.Errno) {
	var pin runtime.Pinner // the vector holds an address that only the kernel follows
	defer pin.Unpin()
	pin.Pin(unsafe.SliceData(p))
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	for {
		// The offset comes in two halves; the kernel takes the low one whole on
		// 64-bit machines.
		n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_DSYNC)
		if errno != unix.EINTR {
			return count(n, errno)
		}
	}
}

// Fdatasync returns when what was written is on the medium.
func Fdatasync(fd int) syscall.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_FDATASYNC, uintptr(fd), 0, 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// LockExclusive takes the lock of the open file description (flock(2)) without
// waiting; EWOULDBLOCK says that another description holds it. The lock ends
// with the last use of the description: I/O that the kernel has accepted
// counts as one, even after the process has ended.
func LockExclusive(fd int) syscall.Errno { return flock(fd, unix.LOCK_EX|unix.LOCK_NB) }

// LockShared is LockExclusive for a lock that other shared locks do not exclude.
func LockShared(fd int) syscall.Errno { return flock(fd, unix.LOCK_SH|unix.LOCK_NB) }

func flock(fd, how int) syscall.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_FLOCK, uintptr(fd), uintptr(how), 0)
		if errno != unix.EINTR {
			return errno
		}
	}
}

// RecordLocked reports whether anyone else holds a record lock (fcntl(2)) on
// any byte of the file: QEMU marks images in use that way.
func RecordLocked(fd int) (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk); err != nil {
		return false, os.NewSyscallError("fcntl F_OFD_GETLK", err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// A FileType is what kind of object a path names.
type FileType uint8

// The file types that matter for storage.
const (
	OtherFile FileType = iota
	RegularFile
	BlockDevice
	Directory
	CharDevice
)

// A FileStat is what stat(2) says, without what nobody here needs.
type FileStat struct {
	Type         FileType
	Size         int64  // bytes; 0 for devices
	Major, Minor uint32 // of a device
	Dev, Inode   uint64 // where the inode lies, and its number: together its identity
}

// LockID is how /proc/locks names the file (proc_locks(5)).
func (s FileStat) LockID() string {
	return fmt.Sprintf("%02x:%02x:%d", unix.Major(s.Dev), unix.Minor(s.Dev), s.Inode)
}

// Stat describes what a path names, without opening it.
func Stat(path string) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileStat{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fileStat(&st), nil
}

// StatFD describes an open file.
func StatFD(fd int) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return FileStat{}, os.NewSyscallError("fstat", err)
	}
	return fileStat(&st), nil
}

// SizeFD returns the size of an open regular file. It allocates nothing.
func SizeFD(fd int) (int64, syscall.Errno) {
	var st unix.Stat_t
	_, _, errno := unix.RawSyscall(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(&st)), 0)
	return st.Size, errno
}

// End returns the size of an open file or block device, in bytes, as it is now. It
// moves the descriptor's offset, of which nothing here makes use.
func End(fd int) (int64, error) {
	size, err := unix.Seek(fd, 0, io.SeekEnd)
	return size, os.NewSyscallError("lseek", err)
}

func fileStat(st *unix.Stat_t) FileStat {
	rdev, dev := uint64(st.Rdev), uint64(st.Dev)
	s := FileStat{Size: st.Size, Major: unix.Major(rdev), Minor: unix.Minor(rdev), Dev: dev, Inode: st.Ino}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		s.Type = RegularFile
	case unix.S_IFBLK:
		s.Type = BlockDevice
	case unix.S_IFDIR:
		s.Type = Directory
	case unix.S_IFCHR:
		s.Type = CharDevice
	}
	return s
}

// Writable returns nil if this process may write what path names.
func Writable(path string) error {
	if err := unix.Access(path, unix.W_OK); err != nil {
		return &os.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

// A BlockGeometry is what a block device says about itself.
type BlockGeometry struct {
	Size              int64 // bytes
	Logical, Physical int   // bytes
	ReadOnly          bool
}

// BlockInfo asks a block device for its geometry.
func BlockInfo(fd int) (BlockGeometry, error) {
	var g BlockGeometry
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return g, os.NewSyscallError("ioctl BLKGETSIZE64", errno)
	}
	g.Size = int64(size)
	for _, q := range []struct {
		name string
		req  uint
		set  func(int)
	}{
		{"ioctl BLKSSZGET", unix.BLKSSZGET, func(v int) { g.Logical = v }},
		{"ioctl BLKPBSZGET", unix.BLKPBSZGET, func(v int) { g.Physical = v }},
		{"ioctl BLKROGET", unix.BLKROGET, func(v int) { g.ReadOnly = v != 0 }},
	} {
		v, err := unix.IoctlGetInt(fd, q.req)
		if err != nil {
			return g, os.NewSyscallError(q.name, err)
		}
		q.set(v)
	}
	return g, nil
}

// DirectAlign returns the alignment, in bytes, that direct I/O on path needs of
// offsets and lengths (statx(2), STATX_DIOALIGN, since Linux 6.1). 0 means that
// the file has no direct I/O; known is false where the kernel or the file
// system does not say.
func DirectAlign(path string) (offset int, known bool) {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_DIOALIGN, &st) != nil || st.Mask&unix.STATX_DIOALIGN == 0 {
		return 0, false
	}
	return int(st.Dio_offset_align), true
}

// fsNames names the file systems that drives' files are likely to lie on
// (include/uapi/linux/magic.h, statfs(2)).
var fsNames = map[uint32]string{
	0x01021994: "tmpfs", 0x858458f6: "ramfs", 0xef53: "ext4", 0x58465342: "xfs",
	0x9123683e: "btrfs", 0xf2f52010: "f2fs", 0x2fc12fc1: "zfs", 0xca451a4e: "bcachefs",
	0x794c7630: "overlayfs", 0x6969: "nfs", 0xff534d42: "cifs", 0xfe534d42: "smb2",
	0x01021997: "9p", 0x65735546: "fuse", 0x00c36400: "ceph", 0x4d44: "vfat",
	0x2011bab0: "exfat", 0x7366746e: "ntfs3",
}

// FileSystem names the file system that an open file lies on, by its magic
// number when the name is not known.
func FileSystem(fd int) (string, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return "", os.NewSyscallError("fstatfs", err)
	}
	if name, ok := fsNames[uint32(st.Type)]; ok {
		return name, nil
	}
	return fmt.Sprintf("file system %#x", uint32(st.Type)), nil
}
