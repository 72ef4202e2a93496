package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"vacate/internal/mem"
	"vacate/internal/sys"
)

// useDrive does what the engine does with a drive.
func useDrive(w world) error {
	fd, err := sys.OpenStorage(w.drive(), sys.ReadWrite|sys.Direct)
	if errors.Is(err, syscall.EINVAL) { // the file system of the test has no O_DIRECT
		fd, err = sys.OpenStorage(w.drive(), sys.ReadWrite)
	}
	if err != nil {
		return err
	}
	defer sys.CloseFD(fd)
	r, err := mem.Map(8192, mem.TryLock)
	if err != nil {
		return err
	}
	defer r.Close()
	if !r.Locked() {
		return fmt.Errorf("memory is not locked: %w", r.LockError())
	}
	b := r.Bytes()
	copy(b, "vacate")
	if errno := sys.LockExclusive(fd); errno != 0 {
		return fmt.Errorf("flock: %w", errno)
	}
	for name, do := range map[string]func() (int, syscall.Errno){
		"pwrite": func() (int, syscall.Errno) { return sys.Pwrite(fd, b[:4096], 4096) },
		"sync":   func() (int, syscall.Errno) { return sys.PwriteSync(fd, b[:4096], 8192) },
	} {
		if n, errno := do(); n != 4096 || errno != 0 {
			return fmt.Errorf("%s: %d bytes, %w", name, n, errno)
		}
	}
	if errno := sys.Fdatasync(fd); errno != 0 {
		return fmt.Errorf("fdatasync: %w", errno)
	}
	if n, errno := sys.Pread(fd, b[4096:8192], 4096); n != 4096 || errno != 0 || !bytes.HasPrefix(b[4096:], []byte("vacate")) {
		return fmt.Errorf("pread: %d bytes, %v", n, errno)
	}
	// As the engine "mmap" does, and what comes after a fault in a cipher call.
	area, err := sys.MapStorage(fd, 4096, 4096, false)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(area, []byte("vacate")) {
		return errors.New("what was written is not in the mapping")
	}
	if err := sys.Unmap(area); err != nil {
		return err
	}
	sys.OverwriteSignalFrame()
	if _, err := sys.FileSystem(fd); err != nil {
		return err
	}
	if _, err := sys.RecordLocked(fd); err != nil {
		return err
	}
	sys.DirectAlign(w.drive())
	_, err = os.ReadDir("/sys/block")
	return errors.Join(err, sys.Writable(w.drive()))
}

// keepState does what control does in its folders.
func keepState(w world) error {
	path := filepath.Join(w.state(), "a")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(4096), f.Sync(), syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)); err != nil {
		return err
	}
	named := filepath.Join(w.state(), "b")
	if err := errors.Join(os.Link(path, named), os.Remove(path), os.Rename(named, path)); err != nil {
		return err
	}
	dir, err := os.Open(w.state())
	if err != nil {
		return err
	}
	defer dir.Close()
	return errors.Join(dir.Sync(), os.Remove(path))
}

// leaseSocket makes a socket as package node does, for another user where that
// may be.
func leaseSocket(w world) error {
	root, err := os.OpenRoot(w.leases())
	if err != nil {
		return err
	}
	defer root.Close()
	if err := errors.Join(root.Mkdir("lease", 0o711), root.Chmod("lease", 0o711)); err != nil {
		return err
	}
	dir, err := root.Open("lease")
	if err != nil {
		return err
	}
	defer dir.Close()
	uid := uint32(os.Geteuid())
	if uid == 0 {
		uid = 4711
	}
	l, err := sys.ListenAt(dir, "nbd.sock", uid, 16)
	if err != nil {
		return err
	}
	info, err := root.Lstat("lease/nbd.sock")
	if err != nil {
		return err
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != uid || info.Mode().Perm() != 0o600 {
		return fmt.Errorf("the socket is %v of uid %d", info.Mode(), st.Uid)
	}
	return errors.Join(l.Close(), root.Remove("lease/nbd.sock"), root.Remove("lease"))
}
