// Package control is the control plane's process: it opens the journal, calls
// the engine, owns leases and drives (package node), and answers the API and
// the admin socket (package server). It never sees a key, and may be killed and
// started again while the engine serves on.
//
// # Start
//
//  1. The journal is opened, which only one daemon can. Where it cannot be
//     written and the engine holds leases, they can at least be closed
//     (waiting.go).
//  2. API and admin sockets are answered: alive, not ready.
//  3. The keeper sends a connection to the engine. The node recovers: journal and
//     engine are brought together.
//  4. With --dev and no drive yet, the file of --dev is enrolled. Ready, and the
//     keeper is told.
//
// # Life
//
// For every engine that takes the place of another the keeper sends a connection
// to it. Calls on the old one end; the node recovers with the new one, and opens
// no lease meanwhile. Closing goes on.
//
// # End
//
//	asked for by signal or by Stop   refused with leases open, unless they may be
//	                                 erased; when granted, the keeper is told to
//	                                 end the daemon, when the answer is out
//	the keeper's link is down        the keeper is gone, and so are all keys
//	the journal is broken            exit with 1: the keeper starts control anew
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/attach"
	"vacate/internal/config"
	"vacate/internal/fail"
	"vacate/internal/lease"
	"vacate/internal/metrics"
	"vacate/internal/node"
	"vacate/internal/sandbox"
	"vacate/internal/server"
	"vacate/internal/sys"
	"vacate/internal/version"
	"vacate/internal/volatile"
)

// grace is how long calls in progress may take to end when control does.
const grace = 2 * time.Second

// Files are the descriptors that the keeper gives control.
type Files struct {
	API, Admin *os.File // listening sockets
	Link       *os.File // the socket to the keeper; see volatile.ControlLink
	Death      *os.File // a pipe whose other end only the keeper holds
}

// A process is one run of control.
type process struct {
	cfg      config.Config
	log      *slog.Logger
	link     *volatile.ControlLink
	engine   *engine
	waiting  *waiting // nil: the journal was opened
	node     *node.Node
	devices  *net.UnixListener // nil: leases get no devices
	attacher *attach.Attacher  // likewise
	proof    *prover           // nil: nothing is signed
	unproven error             // why, where it is a fault
	metrics  *metrics.Metrics
	confined sandbox.Report
	on       effects
	up       atomic.Bool   // the start is done
	started  chan struct{} // closed when up is set
	granted  chan struct{} // closed when a stop was granted
	grant    func()
}

// Run is control's process. It returns nil when a stop was granted and the keeper
// was told.
func Run(ctx context.Context, cfg config.Config, f Files, log *slog.Logger) error {
	if err := errors.Join(sys.ExitOnEOF(f.Death), sys.Harden()); err != nil {
		return fmt.Errorf("hardening control: %w", err)
	}
	return run(ctx, cfg, f, log, effects{sandbox.Control, sys.TrimProgram})
}

// effects are what run changes in the process.
type effects struct {
	confine func(sandbox.ControlOptions) (sandbox.Report, error)
	trim    func() error // called once, when the start is done
}

// run is Run but for what it does to the process itself.
func run(ctx context.Context, cfg config.Config, f Files, log *slog.Logger, on effects) (err error) {
	fail.At(fail.ControlStarted)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &process{cfg: cfg, log: log, engine: newEngine(), on: on, started: make(chan struct{}), granted: make(chan struct{})}
	p.grant = sync.OnceFunc(func() { close(p.granted) })
	if p.link, err = volatile.NewControlLink(f.Link); err != nil {
		return err
	}
	var engines sync.WaitGroup
	engines.Go(func() { cancel(p.takeEngines()) })
	defer engines.Wait()
	defer p.link.Close() //nolint:errcheck // what was to be said was said
	if err := p.run(ctx, f); err != nil {
		return err
	}
	return p.link.Stop() // journal and sockets are closed: nothing is left to do here
}

// takeEngines calls the newest engine that the keeper has sent, until its link is
// down.
func (p *process) takeEngines() error {
	for f := range p.link.Engine() {
		if err := p.engine.swap(f); err != nil {
			p.log.Error("taking a new engine", "error", err)
		}
	}
	p.engine.close()
	return errors.New("the keeper is gone")
}

func (p *process) run(ctx context.Context, f Files) (err error) {
	p.metrics = metrics.New(metrics.Config{
		PerLease: p.cfg.Metrics.PerLease,
		Snapshot: func(ctx context.Context) metrics.Snapshot {
			snap := server.Snapshot(ctx, p.shown(), processes())
			snap.Proof = p.proof.metrics()
			return snap
		},
	})
	store, err := p.openJournal(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if err := p.listenDevices(); err != nil {
		return cannotStart(err)
	}
	if p.devices != nil {
		defer p.devices.Close() //nolint:errcheck // the attacher may have closed it
	}
	sockets, err := node.NewFolders(p.cfg.LeasesDir())
	if err != nil {
		return cannotStart(err)
	}
	defer func() { err = errors.Join(err, sockets.Close()) }()
	if err := p.prove(ctx, store); err != nil {
		return err
	}
	defer func() {
		// What the log has not published it publishes when it is opened again, and what
		// it has not taken waits in the journal: neither keeps anybody from ending.
		if err := p.proof.close(); err != nil {
			p.log.Error("closing the log", "error", err)
		}
	}()
	if err := p.confine(); err != nil {
		return cannotStart(err)
	}
	cfg := node.Config{
		Store: store, Engine: p.engine, Sockets: sockets, Log: p.log,
		DrainDeadline: p.cfg.DrainDeadline, ForceForward: p.cfg.ForceForward(),
		PredecessorGone: func() error { return predecessorGone(p.cfg.RunDir, os.Getenv(aliveEnv)) },
	}
	if p.waiting != nil {
		cfg.Unwritable = p.waiting.Unwritable
	}
	if p.proof != nil {
		cfg.Beacon, cfg.Annex = p.proof.Beacon, p.proof.annexOf
	}
	if p.node, err = node.New(cfg); err != nil {
		return cannotStart(err)
	}
	defer p.node.Shutdown()
	if p.attacher, err = p.newAttacher(); err != nil {
		return cannotStart(err)
	}
	if p.attacher != nil {
		defer p.attacher.Close()
	}
	return p.serve(ctx, f)
}

// processes are the versions and the history that control was told.
func processes() server.Processes {
	self, err := os.Executable()
	if err != nil {
		self = "" // shown as unknown
	}
	return server.Processes{Control: version.String(), Keeper: os.Getenv("VACATE_KEEPER_VERSION"), LastUpgrade: os.Getenv("VACATE_UPGRADE"), Binary: self}
}

// serve answers calls until control ends, for whatever reason.
func (p *process) serve(ctx context.Context, f Files) error {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	ended := make(chan error, 6)
	n := p.shown()
	api, err := server.New(server.Config{
		Proof: p.serverProof(), Devices: p.serverDevices(),
		Node: n, UID: uint32(os.Geteuid()), Operators: p.cfg.Operators, Auditors: p.cfg.Auditors, Log: p.log, Processes: processes(),
		DangerZone: p.cfg.DangerInForce(), Warnings: p.warnings(), Observe: p.metrics.Called, End: p.grant, Upgrade: p.link.Upgrade,
	})
	if err != nil {
		return err
	}
	admin := server.Admin{Node: n, Metrics: p.metrics.Handler(), Log: p.log}
	for _, s := range []struct {
		file  *os.File
		serve func(context.Context, net.Listener, time.Duration) error
	}{{f.API, api.Serve}, {f.Admin, admin.Serve}} {
		l, err := net.FileListener(s.file)
		if err != nil {
			return fmt.Errorf("using descriptor %d as a listening socket: %w", s.file.Fd(), err)
		}
		if ul, ok := l.(*net.UnixListener); ok {
			ul.SetUnlinkOnClose(false) // the next control answers on it
		}
		serving.Go(func() { ended <- s.serve(ctx, l, grace) })
	}
	run := func(f func(context.Context) error) {
		serving.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				ended <- err
			}
		})
	}
	if p.proof != nil {
		serving.Go(func() { p.proof.Run(ctx) })
	}
	run(p.follow)
	if p.attacher != nil {
		run(p.attachDevices)
	}
	run(func(ctx context.Context) error { return server.Erasures(ctx, n, p.metrics.Erased) })
	if p.waiting != nil {
		run(func(ctx context.Context) error { return p.waiting.retry(ctx, retryJournal) })
	}
	return p.wait(ctx, ended)
}

// wait returns when control must end; nil when a stop was granted.
func (p *process) wait(ctx context.Context, ended <-chan error) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	defer signal.Stop(signals)
	for {
		select {
		case <-signals:
			if _, err := p.node.Stop(ctx, false); err != nil {
				p.log.Warn("not stopping", "reason", err)
				continue
			}
			return nil
		case <-p.granted:
			return nil
		case err := <-p.node.Fatal():
			return fmt.Errorf("the journal cannot be written any more: %w", err)
		case err := <-ended:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A facade is the node as it is shown: not ready before all of the start is done, nor
// while records have nowhere to go. Until the start is done nobody knows which of the
// journal's leases are open, so that who asks for them waits, for a moment.
type facade struct {
	server.Node
	mayRecord func() error
	up        *atomic.Bool
	started   <-chan struct{} // closed when up is set
}

// shown is the node as it is shown.
func (p *process) shown() facade { return facade{server.Of(p.node), p.mayRecord, &p.up, p.started} }

// startPatience is how long a question may wait for the start.
const startPatience = 2 * time.Second

func (f facade) wait() {
	select {
	case <-f.started:
	case <-time.After(startPatience):
	}
}

func (f facade) Get(id string) (lease.Lease, error) {
	f.wait()
	return f.Node.Get(id)
}

func (f facade) List(ended bool) []lease.Lease {
	f.wait()
	return f.Node.List(ended)
}

func (f facade) Status() node.Status {
	s := f.Node.Status()
	if s.Ready && !f.up.Load() {
		s.Ready, s.ReadyWhy = false, "the daemon is starting"
	}
	if err := f.mayRecord(); s.Ready && err != nil {
		s.Ready, s.ReadyWhy = false, err.Error()
	}
	return s
}

// A startError is one that another try will not mend.
type startError struct{ error }

func cannotStart(err error) error { return &startError{err} }

// Unwrap returns what is wrong.
func (e *startError) Unwrap() error { return e.error }

// CommandExit tells the keeper that starting control again is of no use.
func (e *startError) CommandExit() int { return 4 }
