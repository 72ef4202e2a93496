// Package keeper is the parent process: it owns the volatile memory, destroys
// keys, holds what an engine's successor needs, and starts, watches, restarts
// and upgrades engine and control. It parses nothing from outside and never
// opens a drive.
//
// # What is started
//
//	engine   3 link   4 death pipe   5 keys   6 lease table   7 alive
//	control  3 API    4 admin        5 link   6 death pipe
//
// "Link" is package volatile's protocol, by which both also get their ends of a
// stream socket to each other: a new one whenever one of them is new. A child
// ends on EOF of its death pipe (sys.ExitOnEOF), so none outlives its keeper.
// "Alive" is a lock that ends with the last process that has it. One descriptor
// more, the program's own, is what a child was started by: a file that is
// replaced on disk is never half used.
//
// # What happens when one ends
//
//	K1: the engine ends, however: the next one is started at once, with the same
//	    keys, table, maps and sockets. That is not put off while the kernel holds
//	    a thread of it, which waits for a drive that hangs.
//	K2: ten engines in a row end before they were up: every key is destroyed and
//	    read back, all else is forgotten, and the next starts with nothing. The
//	    leases are lost; control's recovery records them.
//	K3: keys are overwritten only when no instruction of an engine can run any
//	    more, except for the slots that it asks for itself: a cipher that goes on
//	    with half a key would leave plaintext on a drive.
//	K4: control ends, however, or is ended as it does not become ready: a new one is
//	    started; the leases go on.
//	K5: control says that a stop is granted: the engine is ended, then every key
//	    is destroyed, then Run returns nil.
//	K6: the keeper is killed: the children end on their pipes, and the memory is
//	    gone with the last of the three.
//
// A stop is asked for by SIGTERM, SIGINT or SIGHUP, which control gets as
// SIGTERM once it is ready, and refuses by going on. With no lease and no
// control that is ready, nobody is left to refuse.
package keeper

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"vacate/internal/child"
	"vacate/internal/handoff"
	"vacate/internal/held"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A Recipe is what the children are started with, besides descriptors. The
// keeper passes it on as it is.
type Recipe struct {
	EngineArgs  []string `json:"engineArgs,omitempty"`
	EngineEnv   []string `json:"engineEnv,omitempty"`
	ControlArgs []string `json:"controlArgs,omitempty"`
	ControlEnv  []string `json:"controlEnv,omitempty"`

	Layout int `json:"layout,omitempty"` // [volatile.Layout] of this program

	// Rights bounds the capabilities of a child, by its name; others have all.
	Rights map[string][]sys.Capability `json:"rights,omitempty"`
}

// A Config says what to start.
type Config struct {
	// Self is the path of this program's file, which an upgrade opens anew. Args
	// are the keeper's own arguments, by which an upgrade starts it again; a
	// child has its name, "engine" or "control", and those of Recipe instead.
	Self string
	Args []string
	Recipe

	API, Admin *os.File // listening sockets, for control
	Alive      *os.File // locked, for engines
	Lock       *os.File // kept over upgrades; may be nil

	// Place must be the same before and after an upgrade.
	Place string
	// Settings is what this program makes of its configuration, as JSON: it gets
	// them back if the next one, after all, cannot go on.
	Settings []byte
	// Handoff is what an earlier program of this process left, or nil. Its files
	// are those above.
	Handoff *handoff.Handoff

	// Notify tells the service manager (sd_notify(3)); nil: nobody. It gets
	// WATCHDOG=1 at least every 200 ms while all is well.
	Notify func(state string)

	LockedMemfd bool         // keep keys in a locked memfd although there is memfd_secret
	Log         *slog.Logger // nil: slog.Default()
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

// Run creates the volatile memory, or takes over what Config.Handoff describes,
// and keeps engine and control running until control grants a stop: then it
// returns nil, and every key is destroyed.
//
// It returns early, also with every key destroyed, when the volatile memory
// cannot be had, when ctx is done (the caller's order to end at once, with
// leases open or not), and, as a [*ChildError], when a child exits as one that
// cannot start while no lease is open. Anything else is restarted for ever.
//
// With the hand-off of a check it only says whether it could take over, on its
// standard output.
//
// Run changes the process: it makes it undumpable and takes over its signals.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Handoff != nil && cfg.Handoff.Checking {
		return answer(cfg)
	}
	oom := sys.ProtectFromOOM() // children inherit it; before newKeeper, which takes the right away
	k, err := newKeeper(cfg)
	if err != nil {
		return cfg.Handoff.Return(err)
	}
	if err := errors.Join(oom, sys.TrimProgram()); err != nil { // it only matters where memory is short
		k.log.Debug("hiding from the out-of-memory killer, and giving back pages", "error", err)
	}
	return errors.Join(k.run(ctx), k.close())
}

// A keeper belongs to the goroutine of Run.
type keeper struct {
	cfg    Config
	log    *slog.Logger
	keys   *volatile.Keys
	table  *volatile.Table
	header volatile.TableHeader
	held   *held.Held
	build  build // this binary, or in an upgrade the new one

	engine, control       *child.Child     // nil while none runs
	engineDue, controlDue <-chan time.Time // when the next is due; nil while one runs
	engineFailures        int              // engines in a row that ended before they were up
	controlFailures       int              // controls in a row that did not live long
	ends                  int              // of children that nobody wanted to end

	signals chan os.Signal
	asks    chan volatile.Message // from control: stop, upgrade
	changed chan struct{}         // gets a value when a child is up
	asked   bool                  // a signal is to be forwarded
	told    bool                  // the service manager knows that all is ready

	upgrading bool
	outcome   string // how the last upgrade ended, for control
	patience  patience

	ctx  context.Context //nolint:containedctx // run's
	over bool            // run is to end, with err
	err  error
}

// newKeeper takes over all of Config.Handoff or nothing.
func newKeeper(cfg Config) (k *keeper, err error) {
	if cfg.Self == "" || cfg.API == nil || cfg.Admin == nil || cfg.Alive == nil {
		return nil, errors.New("keeper: Config.Self, API, Admin and Alive must be there")
	}
	if cfg.Notify == nil {
		cfg.Notify = func(string) {}
	}
	if err := sys.Harden(); err != nil {
		return nil, err
	}
	k = &keeper{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.Default()), build: build{Recipe: cfg.Recipe}, patience: inService,
		signals: make(chan os.Signal, 8), asks: make(chan volatile.Message, 8), changed: make(chan struct{}, 1),
	}
	if cfg.Handoff != nil {
		return k, k.inherit(cfg.Handoff)
	}
	rand.Read(k.header.KeeperID[:]) //nolint:errcheck // never fails (crypto/rand)
	if k.header.BootID, err = sys.BootID(); err != nil {
		return nil, err
	}
	if k.build.file, err = sys.OpenProgram("/proc/self/exe"); err != nil {
		return nil, err
	}
	create := volatile.CreateKeys
	if cfg.LockedMemfd {
		create = volatile.CreateLockedKeys
	}
	if k.keys, err = create(); err != nil {
		return nil, err
	}
	if why := k.keys.Why(); why != nil {
		k.log.Warn("keys are in a locked memfd: the kernel gives no memfd_secret", "error", why)
	}
	if k.table, err = volatile.CreateTable(k.header); err != nil {
		return nil, err
	}
	k.held = held.New(k.keys)
	return k, nil
}

// close destroys every key, also after a run that did so.
func (k *keeper) close() error {
	err := k.held.Destroy()
	k.held.Wait()
	return errors.Join(err, k.keys.Close(), k.table.Close(), k.build.file.Close())
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

	k.ctx = ctx
	if h := k.cfg.Handoff; h != nil {
		k.resume(h)
	} else {
		k.startEngine()
		k.startControl()
	}
	for !k.over {
		k.next(nil)
	}
	k.cfg.Notify("STOPPING=1")
	// K5's order: engine, keys, the rest.
	var ended error
	if k.engine != nil {
		ended = k.engine.End()
	}
	errs := []error{k.err, k.held.Destroy()}
	if k.control != nil {
		errs = append(errs, k.control.End())
	}
	return errors.Join(append(errs, k.engine.Reaped(ended))...) // no key waits for that
}

// end makes run return err.
func (k *keeper) end(err error) {
	if !k.over {
		k.over, k.err = true, err
	}
}
