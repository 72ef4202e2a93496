package daemon

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"vacate/internal/config"
	"vacate/internal/handoff"
	"vacate/internal/sys"
)

// A RefusedError says that the daemon must not be started like this. Its exit
// code is 4.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return e.Text }

// CommandExit is docs/ARCHITECTURE.md's "refused".
func (e *RefusedError) CommandExit() int { return 4 }

// A place is what a daemon has in its folder for sockets.
type place struct {
	lock       *os.File // keeps a second daemon away
	alive      *os.File // locked; engines have it too (docs/spec/handoff.md)
	alivePath  string
	api, admin *socket
}

// prepare makes the folders that are missing, takes the locks, and listens. With
// --dev it makes the file that will be the drive.
func prepare(cfg config.Config) (p *place, err error) {
	if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder for sockets: %w: make it, or name another with run_dir or --dev", err)
	}
	p = new(place)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	path := filepath.Join(cfg.RunDir, "lock")
	p.lock, err = locked(path, os.O_CREATE)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return p, &RefusedError{fmt.Sprintf("another vacate daemon serves %s (it holds %s): use that one, stop it first, or choose another folder", cfg.RunDir, path)}
	}
	if err != nil {
		return p, fmt.Errorf("locking the folder for sockets: %w", err)
	}
	if err := makeDevDrive(cfg); err != nil {
		return p, err
	}
	var id [8]byte
	rand.Read(id[:]) //nolint:errcheck // never fails (crypto/rand)
	p.alivePath = filepath.Join(cfg.RunDir, fmt.Sprintf("engine-%x.lock", id))
	if p.alive, err = locked(p.alivePath, os.O_CREATE|os.O_EXCL); err != nil {
		return p, fmt.Errorf("making the lock of engines: %w", err)
	}
	if err := os.Setenv(aliveEnv, p.alivePath); err != nil { // for this process's next program
		return p, err
	}
	if p.api, err = listen(cfg.APISocket(), 0o666); err != nil { // callers are told apart by their uid
		return p, err
	}
	p.admin, err = listen(cfg.AdminSocket(), 0o600)
	return p, err
}

// inherit is the place of an earlier program of this process; of none, if h is
// nil.
func inherit(cfg config.Config, h *handoff.Handoff) *place {
	if h == nil {
		return nil
	}
	sys.SetName("vacate") //nolint:errcheck // for people: else the process has a descriptor's number for a name
	return &place{
		lock: h.Lock.File, alive: h.Alive.File, alivePath: os.Getenv(aliveEnv),
		api: &socket{cfg.APISocket(), h.API.File}, admin: &socket{cfg.AdminSocket(), h.Admin.File},
	}
}

// close leaves nothing behind but the folder and its lock's file.
func (p *place) close() error {
	errs := []error{p.api.close(), p.admin.close()}
	if p.alive != nil {
		errs = append(errs, os.Remove(p.alivePath), p.alive.Close())
	}
	if p.lock != nil {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

// locked opens a file and locks it for this process, and those that get it. After
// an error nothing is open.
func locked(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return f, nil
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
	if s == nil {
		return nil
	}
	return errors.Join(s.file.Close(), os.Remove(s.path))
}
