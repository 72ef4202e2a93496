package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"vacate/internal/config"
)

// A RefusedError says that the daemon must not be started like this. Its exit
// code is 4.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return e.Text }

// CommandExit is docs/ARCHITECTURE.md's "refused".
func (e *RefusedError) CommandExit() int { return 4 }

// prepare makes the folders that are missing and takes the lock that keeps a
// second daemon away. With --dev it makes the file that will be the drive.
func prepare(cfg config.Config) (lock *os.File, err error) {
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder for sockets: %w: make it, or name another with run_dir or --dev", err)
	}
	path := filepath.Join(cfg.RunDir, "lock")
	lock, err = os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the folder for sockets: %w", err)
	}
	err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = &RefusedError{fmt.Sprintf("another vacate daemon serves %s (it holds %s): use that one, stop it first, or choose another folder", cfg.RunDir, path)}
	}
	if err == nil {
		err = makeDevDrive(cfg)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// makeDevDrive makes the sparse file of --dev, if there is none.
func makeDevDrive(cfg config.Config) error {
	path := cfg.DevDrive()
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("making a file to serve as a drive: %w", err)
	}
	if err := errors.Join(f.Truncate(config.DevDriveBytes), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("making a file of %d bytes to serve as a drive: %w", int64(config.DevDriveBytes), err), os.Remove(path))
	}
	return nil
}

// A socket is a listening unix socket with a path.
type socket struct {
	path string
	file *os.File
}

// listen replaces the socket that an earlier daemon left at path: the lock says
// that it is gone. What is not a socket is left alone.
func listen(path string, mode os.FileMode) (*socket, error) {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, &RefusedError{fmt.Sprintf("%s is in the way of the daemon's socket and is not a socket: move it", path)}
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing the socket of an earlier daemon: %w", err)
		}
	}
	// Nobody may connect before the mode is right.
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close() //nolint:errcheck // the duplicate below goes on listening
	if err := os.Chmod(path, mode); err != nil {
		return nil, err
	}
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	return &socket{path: path, file: f}, nil
}

func (s *socket) close() error {
	return errors.Join(s.file.Close(), os.Remove(s.path))
}
