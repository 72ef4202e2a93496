package sys

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// MapStorage maps size bytes of an open file from off on, for reading and
// writing; off is a multiple of [PageSize]. What is written is in the file at
// once. A forked child does not get the mapping, which would hold the file open,
// nor does a core dump.
//
// With dax it is refused (EOPNOTSUPP) unless the mapping is the medium itself,
// without a page cache between (mmap(2), MAP_SYNC, since Linux 4.15).
//
// Touching what is not there (the file was cut, no space is left, the memory is
// broken) is a SIGBUS. The mapping holds the file open until [Unmap].
func MapStorage(fd int, off int64, size int, dax bool) ([]byte, error) {
	how := unix.MAP_SHARED
	if dax {
		how = unix.MAP_SHARED_VALIDATE | unix.MAP_SYNC
	}
	b, err := unix.Mmap(fd, off, size, unix.PROT_READ|unix.PROT_WRITE, how)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	if err := errors.Join(DontFork(b), DontDump(b)); err != nil {
		return nil, errors.Join(err, Unmap(b))
	}
	return b, nil
}

// DirectAccess reports whether an open file of at least a page is memory that is
// mapped as it is, without a page cache (statx(2), STATX_ATTR_DAX, since Linux
// 5.8), and that holds what was stored without being asked to. Files of a virtual
// machine's host (virtiofs, virtio-pmem) do not, although they are mapped so: the
// host's page cache lies between (MAP_SYNC is refused there).
func DirectAccess(fd int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st)
	if err != nil || st.Attributes_mask&st.Attributes&unix.STATX_ATTR_DAX == 0 {
		return false
	}
	b, err := unix.Mmap(fd, 0, PageSize, unix.PROT_READ, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)
	return err == nil && Unmap(b) == nil
}
