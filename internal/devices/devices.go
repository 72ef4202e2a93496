// Package devices is the process that makes leases' block devices under /dev, `vacate
// devices`. It is the only one with CAP_SYS_ADMIN, and speaks to nobody but the daemon,
// by the methods device.* of package ipc. It connects to the daemon, and not the other way
// round, because the process there that asks may connect to nobody (package sandbox).
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
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"vacate/internal/sys"
	"vacate/internal/ublkctl"
)

// Config is what Run is given.
type Config struct {
	Socket    string       // path, where the daemon listens
	RunDir    string       // the daemon's: devices made for another are left alone
	DeviceDir string       // of the links: /dev/vacate
	Parent    int          // pid of the daemon whose child this is; 0: a service of its own
	Version   string       // of the program
	Log       *slog.Logger // nil: the default one

	exit     func(code int) // os.Exit, but in tests
	patience dialDelays     // zero: dialing
}

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
	if c.patience == (dialDelays{}) {
		c.patience = dialing
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
	c.serve(ctx, s.handle)
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
