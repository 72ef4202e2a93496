// Package keeper is the parent process: it owns the volatile memory, destroys
// keys, and starts, watches and restarts the engine and control. It parses
// nothing from outside and never holds a drive.
//
// # What is started
//
//	engine   3 link   4 death pipe   5 keys   6 lease table
//	control  3 API    4 admin        5 engine 6 death pipe
//
// "Link" is package volatile's protocol; "engine" is a stream socket of which
// the engine gets the other end over the link; a child ends on EOF of its death
// pipe (sys.ExitOnEOF), so none outlives its keeper.
//
// # What happens when one ends
//
//	K1: control crashes: the engine and its leases go on; a new control is
//	    started, and both get a new socket to each other.
//	K2: the engine ends, however: every key is destroyed at once and read back,
//	    maps and table are emptied, control is ended, and both start afresh.
//	    The leases are lost; control's recovery records them. That is not put
//	    off while the kernel holds a thread of it, which waits for a drive that
//	    hangs: until that answers, there is neither an exit code nor an EOF.
//	K3: control exits with code 0: it grants a stop. The engine is ended, then
//	    every key is destroyed, then Run returns nil.
//	K4: the keeper is killed: the children end on their pipes, and the memory
//	    is gone with the last of the three.
//	K5: keys are overwritten only when no instruction of the engine can run any
//	    more, except for the slots that it asks for itself: a cipher that goes on
//	    with half a key would leave plaintext on a drive.
//
// A stop is asked for by SIGTERM, SIGINT or SIGHUP, which control gets as
// SIGTERM, and refuses by going on.
package keeper

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A Config says what to start. The keeper passes on arguments and environments
// as they are.
type Config struct {
	// Self starts this binary: a path, then arguments. The name of the child,
	// "engine" or "control", and then its own arguments are appended.
	Self []string

	EngineArgs, EngineEnv   []string
	ControlArgs, ControlEnv []string

	API, Admin *os.File // listening sockets, for control; they stay the caller's

	LockedMemfd bool         // keep keys in a locked memfd although there is memfd_secret
	Log         *slog.Logger // nil: slog.Default()
}

func (c *Config) validate() error {
	var errs []error
	if len(c.Self) == 0 {
		errs = append(errs, errors.New("keeper: Config.Self is empty"))
	}
	if c.API == nil || c.Admin == nil {
		errs = append(errs, errors.New("keeper: Config.API and Config.Admin must be open"))
	}
	return errors.Join(errs...)
}

// exitRefused is the exit code of a child that says that starting it again will
// not help: refused (docs/ARCHITECTURE.md). All others are crashes; 2, wrong
// usage, too: Go ends a program with it that panics.
const exitRefused = 4

// A ChildError is a child that cannot start. It has said why on its standard
// error.
type ChildError struct {
	Name string // "engine" or "control"
	Code int    // its exit code
}

func (e *ChildError) Error() string {
	return fmt.Sprintf("%s cannot start (exit code %d); what it printed above says why", e.Name, e.Code)
}

// Run creates the volatile memory, starts engine and control, and keeps them
// running until control grants a stop: then it returns nil, and every key is
// destroyed.
//
// It returns early, also with every key destroyed, when the volatile memory
// cannot be had, when ctx is done (the caller's order to end at once, with
// leases open or not), and, as a [*ChildError], when a child exits as one that
// cannot start while no lease is open. Anything else is restarted for ever.
//
// Run changes the process: it makes it undumpable and takes over its signals.
func Run(ctx context.Context, cfg Config) error {
	k, err := newKeeper(cfg)
	if err != nil {
		return err
	}
	if err := sys.TrimProgram(); err != nil {
		k.log.Debug("giving back pages of the program", "error", err) // it only costs memory
	}
	return errors.Join(k.run(ctx), k.close())
}

// A keeper belongs to the goroutine of Run, but for what its links own.
type keeper struct {
	cfg     Config
	log     *slog.Logger
	keys    *volatile.Keys
	table   *volatile.Table
	header  volatile.TableHeader
	signals chan os.Signal
}

func newKeeper(cfg Config) (*keeper, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if err := sys.Harden(); err != nil {
		return nil, fmt.Errorf("keeping memory out of core dumps: %w", err)
	}
	k := &keeper{cfg: cfg, log: cfg.Log, signals: make(chan os.Signal, 8)}
	rand.Read(k.header.KeeperID[:]) //nolint:errcheck // never fails (crypto/rand)
	var err error
	if k.header.BootID, err = sys.BootID(); err != nil {
		return nil, err
	}
	create := volatile.CreateKeys
	if cfg.LockedMemfd {
		create = volatile.CreateLockedKeys
	}
	if k.keys, err = create(); err != nil {
		return nil, err
	}
	if k.table, err = volatile.CreateTable(k.header); err != nil {
		return nil, errors.Join(err, k.keys.Close())
	}
	if why := k.keys.Why(); why != nil {
		k.log.Warn("keys are in a locked memfd: the kernel gives no memfd_secret", "error", why)
	}
	return k, nil
}

// close destroys every key, also after a run that did so.
func (k *keeper) close() error {
	return errors.Join(k.keys.WipeAll(), k.keys.Close(), k.table.Close())
}

func (k *keeper) run(ctx context.Context) error {
	watch := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) { // nohup stays nohup
		watch = append(watch, syscall.SIGHUP)
	}
	signal.Notify(k.signals, watch...)
	defer signal.Stop(k.signals)
	// A reader of the log that goes away must not erase the tenants: without
	// this, Go ends a process that writes to a broken standard error.
	signal.Ignore(syscall.SIGPIPE)
	debug.SetGCPercent(20) // nothing here is in a hurry, and memory is for tenants

	var wait backoff
	for {
		k.header.Generation++
		k.table.Reset(k.header)
		done, err := k.generation(ctx, &wait)
		if done {
			return err
		}
		k.log.Error("the engine ended; its leases are lost, their keys destroyed", "error", err,
			"generation", k.header.Generation, "restart_in", wait.next())
		select {
		case <-wait.timer():
		case <-k.signals: // no lease is open: nobody is left to refuse
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
