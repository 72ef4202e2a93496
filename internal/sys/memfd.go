package sys

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// PageSize is the size of a page of memory, in bytes.
var PageSize = os.Getpagesize()

// MapAnonymous maps size bytes of zeroed memory that no other process sees.
// The result must be given back to [Unmap] as it is.
func MapAnonymous(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return b, os.NewSyscallError("mmap", err)
}

// MapShared maps the first size bytes of f; what is written is seen by every
// process that maps the same file. The mapping outlives f.
func MapShared(f *os.File, size int) (b []byte, err error) {
	cerr := control(f, func(fd int) {
		b, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	})
	if cerr != nil {
		return nil, cerr
	}
	return b, os.NewSyscallError("mmap", err)
}

// Unmap ends a mapping that MapAnonymous or MapShared made.
func Unmap(b []byte) error { return os.NewSyscallError("munmap", unix.Munmap(b)) }

// Guard makes every access to b a fault. b starts at a page and fills pages.
func Guard(b []byte) error {
	return os.NewSyscallError("mprotect", unix.Mprotect(b, unix.PROT_NONE))
}

// LockOnFault keeps the pages of b out of swap from the moment they are first
// touched (mlock2(2), MLOCK_ONFAULT): the whole length counts against
// RLIMIT_MEMLOCK, but only what is used takes memory.
func LockOnFault(b []byte) error {
	_, _, errno := unix.Syscall(unix.SYS_MLOCK2, address(b), uintptr(len(b)), unix.MLOCK_ONFAULT)
	runtime.KeepAlive(b)
	if errno != 0 {
		return os.NewSyscallError("mlock2", errno)
	}
	return nil
}

// DontDump leaves b out of core dumps.
func DontDump(b []byte) error {
	return os.NewSyscallError("madvise", unix.Madvise(b, unix.MADV_DONTDUMP))
}

// WipeOnFork gives a forked child zeros in place of b, which is private and
// anonymous (madvise(2), since Linux 4.14).
func WipeOnFork(b []byte) error {
	return os.NewSyscallError("madvise", unix.Madvise(b, unix.MADV_WIPEONFORK))
}

// DontFork gives a forked child no mapping in place of b.
func DontFork(b []byte) error {
	return os.NewSyscallError("madvise", unix.Madvise(b, unix.MADV_DONTFORK))
}

// SmallPages keeps the kernel from backing b with huge pages, of which one touch
// of a sparse file would take 2 MiB. A kernel that has none (EINVAL) is fine.
func SmallPages(b []byte) error {
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		return os.NewSyscallError("madvise", err)
	}
	return nil
}

// Memlock returns how many bytes this process may lock, and how many it has
// locked. The limit does not bind a process with CAP_IPC_LOCK.
func Memlock() (limit, locked uint64) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &r); err != nil {
		return 0, 0
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return r.Cur, 0
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmLck:"); ok {
			kib, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return r.Cur, kib << 10
		}
	}
	return r.Cur, 0
}

// MemfdSecret makes a file of size bytes whose pages the kernel itself cannot
// reach but through the mappings of its holders (memfd_secret(2), since Linux
// 5.14, on by default since 6.5). They are locked and count against
// RLIMIT_MEMLOCK of each process that maps them. ENOSYS means that this kernel
// has none.
func MemfdSecret(size int64) (*os.File, error) {
	fd, err := unix.MemfdSecret(unix.O_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_secret", err)
	}
	f := os.NewFile(uintptr(fd), "memfd_secret")
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Memfd makes a sparse file of size bytes in memory and seals its size and its
// seals (memfd_create(2)). Its name is shown in /proc and need not be unique.
func Memfd(name string, size int64) (*os.File, error) {
	if size <= 0 || size > math.MaxInt64-int64(PageSize) {
		return nil, fmt.Errorf("making memfd %s of %d bytes: %w", name, size, unix.EINVAL)
	}
	// MFD_NOEXEC_SEAL is Linux 6.3 and newer; without it a memfd could be
	// executed, and newer kernels warn.
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := f.Truncate(size); err != nil {
		f.Close()
		return nil, err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl F_ADD_SEALS", err)
	}
	runtime.KeepAlive(f)
	return f, nil
}

// SizeSealed reports whether no holder of f can change its size any more: only
// then is a mapping of it safe from SIGBUS.
func SizeSealed(f *os.File) (bool, error) {
	var seals int
	var err error
	cerr := control(f, func(fd int) { seals, err = unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0) })
	if cerr != nil {
		return false, cerr
	}
	if err != nil {
		return false, os.NewSyscallError("fcntl F_GET_SEALS", err)
	}
	const want = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	return seals&want == want, nil
}

// IsSecretMem reports whether f came from [MemfdSecret], whose size is fixed by
// the kernel (a second ftruncate is EINVAL).
func IsSecretMem(f *os.File) bool {
	const secretmemMagic = 0x5345434d // SECRETMEM_MAGIC, include/uapi/linux/magic.h
	var st unix.Statfs_t
	var err error
	cerr := control(f, func(fd int) { err = unix.Fstatfs(fd, &st) })
	return cerr == nil && err == nil && int64(st.Type) == secretmemMagic
}

// control runs fn with the descriptor of f, which stays open meanwhile.
func control(f *os.File, fn func(fd int)) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { fn(int(fd)) })
}

// MemlockBound returns how many bytes this process may lock, and whether that
// binds it: not where the limit is infinite, nor with CAP_IPC_LOCK.
func MemlockBound() (limit uint64, bound bool) {
	limit, _ = Memlock()
	if limit == unix.RLIM_INFINITY {
		return limit, false
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return limit, true
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return limit, err != nil || caps&(1<<unix.CAP_IPC_LOCK) == 0
		}
	}
	return limit, true
}
