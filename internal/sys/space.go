package sys

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FreeSpace returns the bytes that this user may still write to the file system
// of a path, and its name ([FileSystem]).
func FreeSpace(path string) (free int64, fileSystem string, err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // it was only asked
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return 0, "", &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	fileSystem, err = FileSystem(fd)
	return int64(st.Bavail) * st.Frsize, fileSystem, err
}

// ZeroDevice makes n bytes at off of a block device read as zeros (BLKZEROOUT,
// linux block/ioctl.c): by a command of the device where it has one, else by
// writing them. Both numbers are multiples of its logical block.
func ZeroDevice(fd int, off, n int64) error {
	area := [2]uint64{uint64(off), uint64(n)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&area)))
	if errno != 0 {
		return os.NewSyscallError("ioctl BLKZEROOUT", errno)
	}
	return nil
}

// Kernel is the release of the running kernel, as "6.12.9".
func Kernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", os.NewSyscallError("uname", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}
