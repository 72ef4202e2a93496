// Package devices is the process that makes leases' block devices under /dev, `vacate
// devices`. It is the only one with CAP_SYS_ADMIN, and speaks to nobody but the daemon,
// by the methods device.* of package ipc.
//
// # State
//
// It has none: which devices there are, whose, and what has become of them, the kernel
// knows, whose devices bear a mark, and the links DIR/LEASE, which this package makes.
// It may be killed at any moment: the next one goes on. A command that the kernel does
// not end within half a minute ends the process.
//
// # Ends
//
// Devices outlive this process, and engines; not the daemon, whose end is the leases'
// too. A child of the daemon's learns of it from a descriptor of that process. A
// service of its own removes devices when it starts or is stopped and no daemon lives.
package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/sys"
	"vacate/internal/ublkctl"
)

// Config is what Run is given.
type Config struct {
	Socket    string       // path, where it listens
	RunDir    string       // the daemon's: devices made for another are left alone
	DeviceDir string       // of the links: /dev/vacate
	Parent    int          // pid of the daemon whose child this is; 0: a service of its own
	Version   string       // of the program
	Log       *slog.Logger // nil: the default one

	exit func(code int) // os.Exit, but in tests
}

// maxConns bounds the connections at once. The daemon has one, for a moment two.
const maxConns = 16

// clearTime bounds the removal of all devices at the end: a device takes up to a tenth
// of a second, and each command has a bound of its own (patience).
const clearTime = 10 * time.Minute

// Run serves until ctx ends, and with a parent until that ends. It returns nil for
// either.
func Run(ctx context.Context, c Config) error {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.exit == nil {
		c.exit = os.Exit
	}
	var watching sync.WaitGroup
	defer watching.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	orphan, err := c.follow(ctx, cancel, &watching)
	if err != nil {
		return err
	}
	if err := makeFolder(c.DeviceDir); err != nil {
		return fmt.Errorf("making the folder of devices: %w", err)
	}
	ln, admitted, err := listen(c.Socket, c.RunDir) // first: where another process serves, nothing is touched
	if err != nil {
		return err
	}
	defer ln.Close() //nolint:errcheck // serve has closed it
	s := newServer(&c, openers)
	defer s.close()
	if c.Parent == 0 && !daemonLives(c.RunDir) {
		err = s.clear(ctx)
	} else {
		err = s.tidy(ctx)
	}
	if err != nil {
		c.Log.Warn("block devices of before could not be removed", "error", err)
	}
	if err := c.serve(ctx, ln, admitted, s.handle); err != nil {
		return err
	}
	if orphan() || !daemonLives(c.RunDir) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTime)
		defer cancel()
		return s.clear(ctx)
	}
	return nil
}

// makeFolder makes the folder of links, which any user may look into, whatever this
// process's umask is. One that is there stays as it is.
func makeFolder(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) //nolint:gosec // links for users, the nodes that they lead to have owners
}

// follow has end called when the parent has ended, which orphan then reports.
func (c *Config) follow(ctx context.Context, end func(), watching *sync.WaitGroup) (orphan func() bool, err error) {
	if c.Parent == 0 {
		return func() bool { return false }, nil
	}
	gone := make(chan struct{})
	orphan = func() bool {
		select {
		case <-gone:
			return true
		default:
			return false
		}
	}
	parent, err := sys.OpenProcess(c.Parent)
	if errors.Is(err, syscall.ESRCH) || err == nil && os.Getppid() != c.Parent {
		if parent != nil {
			err = parent.Close()
		} else {
			err = nil
		}
		close(gone)
		end()
		return orphan, err
	}
	if err != nil {
		return nil, err
	}
	watching.Go(func() { // ends soon after ctx
		defer parent.Close() //nolint:errcheck // it was only watched
		for ctx.Err() == nil {
			ended, err := sys.Ended(parent, 250*time.Millisecond)
			if err != nil {
				c.Log.Error("the daemon cannot be watched", "error", err)
				c.exit(1)
			}
			if ended {
				close(gone)
				end()
				return
			}
		}
	})
	return orphan, nil
}

// daemonLives reports whether a daemon has the run folder's lock.
func daemonLives(runDir string) bool {
	f, err := os.Open(filepath.Join(runDir, "lock"))
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	defer f.Close() //nolint:errcheck // gives the lock back, if it was got
	fd, err := sys.Descriptor(f)
	return err != nil || sys.LockShared(fd) != 0
}

// serve answers who connects, until ctx ends.
func (c *Config) serve(ctx context.Context, ln *net.UnixListener, admitted []uint32, h ipc.Handler) error {
	defer context.AfterFunc(ctx, func() { ln.Close() })() //nolint:errcheck // ends Accept
	var conns sync.WaitGroup
	defer conns.Wait()
	defer ln.Close() //nolint:errcheck // it may be closed already
	free := make(chan struct{}, maxConns)
	for {
		conn, err := ln.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close() //nolint:errcheck // it came too late
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting connections: %w", err)
		}
		select {
		case free <- struct{}{}:
			conns.Go(func() {
				defer func() { <-free }()
				if err := converse(ctx, conn, admitted, h); err != nil {
					c.Log.Warn("a connection to the process that makes devices has ended", "error", err)
				}
			})
		default:
			conn.Close() //nolint:errcheck // there are enough
		}
	}
}

// converse answers one connection, which it closes, if it is one of the users'.
func converse(ctx context.Context, conn *net.UnixConn, admitted []uint32, h ipc.Handler) error {
	f, err := conn.File()
	err = errors.Join(err, conn.Close())
	if f != nil {
		defer f.Close() //nolint:errcheck // Serve has its own
	}
	if err != nil {
		return err
	}
	fd, err := sys.Descriptor(f)
	if err != nil {
		return err
	}
	uid, err := sys.PeerUID(fd)
	if err != nil {
		return err
	}
	for _, a := range admitted {
		if uid == a {
			return ipc.Serve(ctx, f, h)
		}
	}
	return fmt.Errorf("uid %d may not ask for devices", uid)
}

// listen makes the socket, for root, this user and the owner of the run folder, who is
// the daemon. One that nobody listens on is replaced.
func listen(path, runDir string) (ln *net.UnixListener, admitted []uint32, err error) {
	st, err := sys.OwnerOf(runDir)
	if err != nil {
		return nil, nil, fmt.Errorf("looking for the daemon's folder: %w", err)
	}
	admitted = []uint32{0, uint32(os.Geteuid()), st}
	if conn, err := net.Dial("unix", path); err == nil {
		return nil, nil, errors.Join(fmt.Errorf("another process makes devices already: it listens on %s", path), conn.Close())
	} else if errors.Is(err, syscall.ECONNREFUSED) {
		if err := os.Remove(path); err != nil {
			return nil, nil, err
		}
	}
	ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, fmt.Errorf("listening: %w", err)
	}
	err = os.Chmod(path, 0o600)
	if err == nil && st != uint32(os.Geteuid()) {
		err = os.Lchown(path, int(st), -1)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("setting who may use %s: %w", path, err), ln.Close())
	}
	return ln, admitted, nil
}

// openUblk opens the driver of ublk devices.
func openUblk(c *Config, load bool) (driver, error) {
	ctl, err := ublkctl.Open()
	if errors.Is(err, ublkctl.ErrNoDriver) && load {
		loadModule("ublk_drv")
		ctl, err = ublkctl.Open()
	}
	if err != nil {
		return nil, err
	}
	if err := ublkctl.AtLeast(ublkMax); err != nil {
		c.Log.Warn("there can be few ublk devices at once", "error", err)
	}
	return newUblk(ctl, c.RunDir, links{c.DeviceDir}, realHost, c.fatal), nil
}

// fatal ends the process: a command to the kernel does not come back.
func (c *Config) fatal(what string) {
	c.Log.Error("the kernel does not end a command: this process ends, the next begins anew", "command", what)
	c.exit(1)
}
