package sys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"unsafe"
)

func openTemp(t *testing.T, size int64) (string, int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := OpenStorage(path, ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = CloseFD(fd) })
	return path, fd
}

func TestStorageReadWrite(t *testing.T) {
	_, fd := openTemp(t, 8192)
	want := bytes.Repeat([]byte{0xa5}, 4096)
	if n, errno := Pwrite(fd, want, 1024); n != 4096 || errno != 0 {
		t.Fatalf("Pwrite = %d, %v", n, errno)
	}
	if n, errno := PwriteSync(fd, want[:512], 6144); n != 512 || errno != 0 {
		t.Fatalf("PwriteSync = %d, %v", n, errno)
	}
	if errno := Fdatasync(fd); errno != 0 {
		t.Fatal(errno)
	}
	got := make([]byte, 4096)
	if n, errno := Pread(fd, got, 1024); n != 4096 || errno != 0 || !bytes.Equal(got, want) {
		t.Fatalf("Pread = %d, %v; equal: %v", n, errno, bytes.Equal(got, want))
	}
	if n, errno := Pread(fd, got[:512], 6144); n != 512 || errno != 0 || !bytes.Equal(got[:512], want[:512]) {
		t.Fatalf("Pread of the synchronous write = %d, %v", n, errno)
	}
	// What lies past the end is short, then nothing, without an errno.
	if n, errno := Pread(fd, got, 6144); n != 2048 || errno != 0 {
		t.Errorf("Pread across the end = %d, %v, want 2048", n, errno)
	}
	if n, errno := Pread(fd, got, 8192); n != 0 || errno != 0 {
		t.Errorf("Pread at the end = %d, %v, want 0", n, errno)
	}
	if _, errno := Pread(-1, got, 0); errno != syscall.EBADF {
		t.Errorf("Pread of no descriptor: %v, want EBADF", errno)
	}
	if size, errno := SizeFD(fd); size != 8192 || errno != 0 {
		t.Errorf("SizeFD = %d, %v", size, errno)
	}
}

func TestStorageAllocatesNothing(t *testing.T) {
	_, fd := openTemp(t, 8192)
	p := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		Pread(fd, p, 0)
		Pwrite(fd, p, 0)
		PwriteSync(fd, p, 0)
		SizeFD(fd)
	}); n != 0 {
		t.Errorf("%v allocations a run, want 0", n)
	}
	runtime.KeepAlive(p)
}

func TestLocks(t *testing.T) {
	path, a := openTemp(t, 4096)
	b, err := OpenStorage(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if errno := LockExclusive(a); errno != 0 {
		t.Fatal(errno)
	}
	for name, lock := range map[string]func(int) syscall.Errno{"shared": LockShared, "exclusive": LockExclusive} {
		if errno := lock(b); errno != syscall.EWOULDBLOCK {
			t.Errorf("%s lock beside an exclusive one: %v, want EWOULDBLOCK", name, errno)
		}
	}
	if locked, err := RecordLocked(b); locked || err != nil {
		t.Errorf("RecordLocked = %v, %v; flock is no record lock", locked, err)
	}
	// A second reference keeps the lock, as I/O in flight does.
	dup, err := syscall.Dup(a)
	if err != nil {
		t.Fatal(err)
	}
	lk := syscall.Flock_t{Type: syscall.F_WRLCK, Start: 100, Len: 1}
	const setlk = 37 // F_OFD_SETLK
	if _, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(a), setlk, address(asBytes(&lk))); errno != 0 {
		t.Fatal(errno)
	}
	if locked, err := RecordLocked(b); !locked || err != nil {
		t.Errorf("RecordLocked = %v, %v, want true", locked, err)
	}
	if errno := LockShared(b); errno != syscall.EWOULDBLOCK {
		t.Errorf("LockShared with a duplicate open: %v", errno)
	}
	_ = CloseFD(dup)
	_ = CloseFD(b)
}

func TestStat(t *testing.T) {
	path, fd := openTemp(t, 12345)
	byPath, err := Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	byFD, err := StatFD(fd)
	if err != nil || byPath != byFD || byFD.Type != RegularFile || byFD.Size != 12345 {
		t.Errorf("Stat = %+v, StatFD = %+v, %v", byPath, byFD, err)
	}
	for path, want := range map[string]FileType{"/": Directory, "/dev/null": CharDevice} {
		if st, err := Stat(path); err != nil || st.Type != want {
			t.Errorf("Stat(%s) = %+v, %v", path, st, err)
		}
	}
	if _, err := Stat(path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Stat of nothing: %v", err)
	}
	if _, err := OpenStorage(path+"x", 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("OpenStorage of nothing: %v", err)
	}
	if _, err := BlockInfo(fd); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("BlockInfo of a file: %v, want ENOTTY", err)
	}
	if name, err := FileSystem(fd); err != nil || name == "" {
		t.Errorf("FileSystem = %q, %v", name, err)
	}
	if err := Buffered(fd); err != nil {
		t.Error(err)
	}
	if err := Writable(path); err != nil {
		t.Error(err)
	}
	if err := Writable("/proc/version"); err == nil && os.Getuid() != 0 {
		t.Error("/proc/version is writable")
	}
}

func asBytes(lk *syscall.Flock_t) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(lk)), unsafe.Sizeof(*lk))
}
