// Package control is the control plane's process: it opens the journal, calls
// the engine, owns leases and drives (package node), and answers the API and
// the admin socket (package server). It never sees a key, and may be killed and
// started again while the engine serves on.
//
// # Start
//
//  1. The journal is opened, which only one daemon can.
//  2. API and admin sockets are answered: alive, not ready.
//  3. The node recovers: journal and engine are brought together.
//  4. With --dev and no drive yet, the file of --dev is enrolled. Ready.
//
// # End
//
//	asked for by signal or by Stop   refused with leases open, unless they may be
//	                                 erased; when granted the process exits with 0,
//	                                 which ends the daemon
//	the engine or the journal fails  exit with 1: the keeper starts control anew
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

	"vacate/internal/config"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/metrics"
	"vacate/internal/node"
	"vacate/internal/server"
	"vacate/internal/sys"
	"vacate/internal/version"
)

// grace is how long calls in progress may take to end when control does.
const grace = 2 * time.Second

// Files are the descriptors that the keeper gives control.
type Files struct {
	API, Admin *os.File // listening sockets
	Engine     *os.File // connected to the engine
	Death      *os.File // a pipe whose other end only the keeper holds
}

// A process is one run of control.
type process struct {
	cfg     config.Config
	log     *slog.Logger
	engine  *ipc.Client
	node    *node.Node
	metrics *metrics.Metrics
	up      atomic.Bool   // the start is done
	granted chan struct{} // closed when a stop was granted
	grant   func()
}

// Run is control's process. It returns nil when a stop was granted.
func Run(ctx context.Context, cfg config.Config, f Files, log *slog.Logger) error {
	if err := errors.Join(sys.ExitOnEOF(f.Death), sys.Harden()); err != nil {
		return fmt.Errorf("hardening control: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &process{cfg: cfg, log: log, granted: make(chan struct{})}
	p.grant = sync.OnceFunc(func() { close(p.granted) })
	return p.run(ctx, f)
}

func (p *process) run(ctx context.Context, f Files) (err error) {
	p.metrics = metrics.New(metrics.Config{
		Version: version.String(), PerLease: p.cfg.Metrics.PerLease,
		Snapshot: func(ctx context.Context) metrics.Snapshot { return server.Snapshot(ctx, server.Of(p.node)) },
	})
	store, err := journal.Open(journal.Options{Dir: p.cfg.StateDir, Observe: func(t journal.Timing) { p.metrics.Committed(t.Sync) }})
	if err != nil {
		return cannotStart(err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	if p.engine, err = ipc.NewClient(f.Engine); err != nil {
		return err
	}
	defer p.engine.Close() //nolint:errcheck // nothing is left to send
	sockets, err := node.NewFolders(p.cfg.LeasesDir())
	if err != nil {
		return cannotStart(err)
	}
	defer func() { err = errors.Join(err, sockets.Close()) }()
	p.node, err = node.New(node.Config{
		Store: store, Engine: engine{p.engine}, Sockets: sockets, Log: p.log,
		DrainDeadline: p.cfg.DrainDeadline, ForceForward: p.cfg.ForceForward(),
	})
	if err != nil {
		return cannotStart(err)
	}
	defer p.node.Shutdown()
	return p.serve(ctx, f)
}

// serve answers calls until control ends, for whatever reason.
func (p *process) serve(ctx context.Context, f Files) error {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer cancel()
	ended := make(chan error, 3)
	n := facade{server.Of(p.node), &p.up}
	api, err := server.New(server.Config{
		Node: n, UID: uint32(os.Geteuid()), Operators: p.cfg.Operators, Auditors: p.cfg.Auditors,
		Log: p.log, Version: version.String(), DangerZone: p.cfg.DangerInForce(), Warnings: hostWarnings(), Observe: p.metrics.Called, End: p.grant,
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
	if err := p.node.Start(ctx); err != nil {
		return cannotStart(err)
	}
	if err := p.enrollDev(ctx); err != nil {
		return err
	}
	p.up.Store(true)
	serving.Go(func() {
		if err := server.Erasures(ctx, n, p.metrics.Erased); err != nil && ctx.Err() == nil {
			ended <- fmt.Errorf("counting erasures: %w", err)
		}
	})
	if err := sys.TrimProgram(); err != nil {
		p.log.Debug("giving back pages of the program", "error", err) // it only costs memory
	}
	p.log.Info("ready", "api", p.cfg.APISocket(), "admin", p.cfg.AdminSocket())
	return p.wait(ctx, ended)
}

// wait returns when control must end.
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
		case <-p.engine.Done():
			return errors.New("the engine is gone")
		case err := <-p.node.Fatal():
			return fmt.Errorf("the journal cannot be written any more: %w", err)
		case err := <-ended:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// enrollDev enrols the file of --dev when there is no drive at all.
func (p *process) enrollDev(ctx context.Context) error {
	path := p.cfg.DevDrive()
	if path == "" || len(p.node.Drives(ctx)) > 0 {
		return nil
	}
	if _, err := p.node.Enroll(ctx, node.EnrollRequest{Path: path}); err != nil {
		return cannotStart(fmt.Errorf("enrolling the drive of --dev: %w", err))
	}
	return nil
}

// A facade is the node as it is shown: not ready before all of the start is done.
type facade struct {
	server.Node
	up *atomic.Bool
}

func (f facade) Status() node.Status {
	s := f.Node.Status()
	if s.Ready && !f.up.Load() {
		s.Ready, s.ReadyWhy = false, "the daemon is starting"
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
