package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Number is that of a device.
type Number struct{ Major, Minor uint32 }

func (n Number) String() string { return fmt.Sprintf("%d:%d", n.Major, n.Minor) }

// OpensBlock reports whether path, followed to what it leads to (/proc/PID/fd/3), is
// the block device of that number.
func OpensBlock(path string, n Number) bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && numberOf(&st) == n
}

func numberOf(st *unix.Stat_t) Number {
	return Number{unix.Major(st.Rdev), unix.Minor(st.Rdev)}
}

// HandOver gives a block device to a user: the node becomes the user's, and only that
// user and root may open it. A node that is no block device is refused, a symbolic
// link not followed.
func HandOver(path string, uid uint32) (err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // it was opened for its name alone
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return fmt.Errorf("%s is no block device: %w", path, unix.ENOTBLK)
	}
	if err := unix.Fchownat(fd, "", int(uid), -1, unix.AT_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "chown", Path: path, Err: err}
	}
	// fchmod(2) takes no descriptor that was opened with O_PATH.
	if err := unix.Chmod(ProgramPath(fd), 0o600); err != nil {
		return &os.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

// Claimable opens a block device as a mount does, and closes it again. EBUSY says that
// somebody else has it so: a mount, swap, or another driver.
func Claimable(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return CloseFD(fd)
}

// OwnerOf is the uid that a file belongs to.
func OwnerOf(path string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Uid, nil
}
