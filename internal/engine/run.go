package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/sandbox"
	"vacate/internal/sys"
	"vacate/internal/volatile"
	"vacate/internal/xts"
)

// Settings is what the keeper's caller wants of the engine. It travels as JSON
// in the environment, which the keeper does not read.
type Settings struct {
	MaxConns    int           `json:"maxConns"`              // connections at once, over all leases
	DriveEngine string        `json:"driveEngine,omitempty"` // of package drive; "": the best for each drive
	Poll        time.Duration `json:"pollNs,omitempty"`      // of a connection, before its thread sleeps; 0: none
	LockBuffers bool          `json:"lockBuffers"`           // refuse to serve from memory that cannot be locked
	Version     string        `json:"version"`

	Sandbox sandbox.EngineOptions `json:"sandbox"`
}

// Files are the descriptors that a keeper gives its engine.
type Files struct {
	Link  *os.File // to the keeper
	Death *os.File // a pipe whose other end only the keeper holds
	Keys  *os.File
	Table *os.File
	Alive *os.File // a locked file, only held: the lock ends with the last process that has it
}

// Run is the engine's process. It takes over what its predecessors left, and
// serves one control after the other, until the keeper is gone or wants it to
// leave. In the first case the process is ended, by the death pipe or here; in
// the second it has passed on its connections, and returns nil.
func Run(ctx context.Context, f Files, s Settings, log *slog.Logger) error {
	defer runtime.KeepAlive(f.Alive)
	if err := errors.Join(sys.ExitOnEOF(f.Death), sys.Harden()); err != nil {
		return fmt.Errorf("hardening the engine: %w", err)
	}
	confined, err := confine(s, log)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(processors())
	debug.SetGCPercent(hasty)
	debug.SetMaxThreads(threads(s.MaxConns))
	link, err := volatile.NewLink(f.Link)
	if err != nil {
		return err
	}
	e, err := assemble(link, f, s, log)
	if err != nil {
		return errors.Join(err, link.Close())
	}
	e.cfg.Hello.Sandbox = confined.String()
	e.at(fail.EngineStarted)
	if err := e.TakeOver(); err != nil {
		return errors.Join(err, link.Close())
	}
	trim := time.AfterFunc(restored, func() {
		go e.collect(ctx)
		if err := sys.TrimProgram(); err != nil {
			log.Debug("giving back pages of the program", "error", err) // it only costs memory
		}
	})
	defer trim.Stop()
	return e.serve(ctx, link)
}

// serve serves controls until the keeper wants this engine to leave, or is gone.
func (e *Engine) serve(ctx context.Context, link *volatile.Link) error {
	calls, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		select {
		case <-link.Leave():
			cancel() // ends the calls that wait, and the control of the moment
		case <-calls.Done():
		}
	}()
	defer func() { cancel(); <-stop }()
	for {
		select {
		case <-link.Leave():
			e.leave(ctx)
			return nil
		case conn, ok := <-link.Control():
			if !ok {
				return volatile.ErrLink
			}
			// One control at a time: the keeper starts the next when the last is
			// dead, and then this call has returned.
			err := ipc.Serve(calls, conn, e.Handle)
			e.cfg.Log.Debug("control is gone", "error", err)
			conn.Close() //nolint:errcheck // Serve has its own duplicate
		}
	}
}

// processors is how many threads may run Go code at once. An export's threads
// compute and block in the kernel, and seldom come to Go's scheduler, which
// preempts nobody here (GODEBUG=asyncpreemptoff): with as few as the machine has
// processors, a close waited up to 14 ms for one of two to be given up. So let
// the kernel's scheduler decide, which preempts; each costs some memory.
func processors() int { return runtime.NumCPU() + 14 }

// goThreads is how many threads a Go program may have unless it says otherwise.
const goThreads = 10_000

// threads is how many threads this process may have, beyond which Go ends it:
// each connection and each handshake has one, and a vhost-user session at most one
// a processor. Clients must not get there.
func threads(maxConns int) int {
	return goThreads + maxConns*max(1, runtime.NumCPU()) + volatile.Slots*maxHandshakes
}

// assemble makes the engine from the keeper's volatile memory.
func assemble(k Keeper, f Files, s Settings, log *slog.Logger) (*Engine, error) {
	keys, err := volatile.OpenKeys(f.Keys)
	if err != nil {
		return nil, fmt.Errorf("mapping the keys: %w", err)
	}
	table, err := volatile.OpenTable(f.Table)
	if err != nil {
		return nil, fmt.Errorf("mapping the lease table: %w", err)
	}
	head, err := table.Header()
	if err != nil {
		return nil, fmt.Errorf("reading the lease table: %w", err)
	}
	lock, locked, err := probeLock(s.LockBuffers)
	if err != nil {
		return nil, err
	}
	return New(Config{
		Keeper: k, Keys: keys, Table: table, Generation: head.Generation,
		MaxConns: s.MaxConns, Drives: s.DriveEngine, Poll: s.Poll, Lock: lock, Log: log, Sandbox: s.Sandbox,
		Hello: ipc.Hello{
			Version: s.Version, PID: os.Getpid(), Buffers: locked, Cipher: xts.Implementation(),
			KeeperID: fmt.Sprintf("%x", head.KeeperID),
			EngineID: fmt.Sprintf("%x-%d", head.KeeperID[:4], head.Generation),
			BootID:   fmt.Sprintf("%x", head.BootID), Generation: head.Generation, Emptied: head.Emptied,
		},
	}), nil
}

// bufferProbe is about what one connection needs: see whether that much can be
// locked, beside the keys.
const bufferProbe = 3 << 20

// probeLock finds out whether buffers can be locked. Where they must be and
// cannot, the engine does not start.
func probeLock(must bool) (lock mem.Lock, status string, err error) {
	lock = mem.TryLock
	if must {
		lock = mem.MustLock
	}
	r, err := mem.Map(bufferProbe, lock)
	if err != nil {
		return lock, "", fmt.Errorf("locking buffers: %w", err)
	}
	limit, bound := sys.MemlockBound()
	switch {
	case !r.Locked():
		status = fmt.Sprintf("not locked: %v", r.LockError())
	case bound && !must: // later connections may find nothing left
		status = fmt.Sprintf("locked, as far as RLIMIT_MEMLOCK (%d KiB) reaches: about %d clients", limit>>10, limit/bufferProbe)
	default:
		status = "locked"
	}
	return lock, status, r.Close()
}
