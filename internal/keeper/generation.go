package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"vacate/internal/sys"
)

const (
	nameEngine  = "engine"
	nameControl = "control"
)

// engineEnv comes after Config.EngineEnv. A preempted thread's registers, keys
// among them, would be saved to its stack and stay there: so no asynchronous
// preemption. The heap is small: let it stay so.
var engineEnv = []string{"GODEBUG=asyncpreemptoff=1", "GOGC=50"}

// A generation is one engine and the controls that it lives to see.
type generation struct {
	k       *keeper
	link    *link
	engine  *child
	control *child           // nil while none runs
	restart <-chan time.Time // fires when the next control is due; nil while one runs
	wait    backoff          // between controls

	// A signal may reach a control before it listens, and end it. It is sent
	// again to the next one, by ask, unless the control had time to refuse.
	asked time.Time
	ask   <-chan time.Time
}

// settle is how long a control may take until it heeds signals.
const settle = time.Second

// generation starts an engine and watches it to its end, then destroys every
// key. It returns true when Run is to return err.
func (k *keeper) generation(ctx context.Context, wait *backoff) (done bool, err error) {
	g := &generation{k: k}
	start := time.Now()
	if err = g.start(); err == nil {
		done, err = g.watch(ctx)
	}
	wait.lived(time.Since(start))
	return done, errors.Join(err, g.forget())
}

func (g *generation) start() error {
	l, theirs, err := newLink(g.k.keys)
	if err != nil {
		return fmt.Errorf("making the engine's link: %w", err)
	}
	defer theirs.Close() //nolint:errcheck // the engine has its own
	g.link = l
	cfg := &g.k.cfg
	g.engine, err = g.k.start(nameEngine, cfg.EngineArgs, append(cfg.EngineEnv[:len(cfg.EngineEnv):len(cfg.EngineEnv)], engineEnv...),
		[]*os.File{theirs}, []*os.File{g.k.keys.File(), g.k.table.File()})
	if err != nil {
		return err
	}
	g.k.log.Info("keeping keys", "key_store", g.k.keys.Kind(), "wiper", <-l.urgent)
	g.restart = time.After(0)
	return nil
}

// watch returns when the engine has ended or must: done says that no other
// generation follows.
func (g *generation) watch(ctx context.Context) (done bool, err error) {
	linkDown := g.link.done
	look := time.NewTicker(heldAfter)
	defer look.Stop()
	for {
		var controlDone chan struct{}
		if g.control != nil {
			controlDone = g.control.done
		}
		select {
		case <-g.engine.done:
			if g.engine.cannotStart() {
				return true, &ChildError{Name: nameEngine, Code: g.engine.code}
			}
			return false, g.engine.how()
		case <-look.C:
			if g.engine.held() {
				return false, fmt.Errorf("%s: it has ended, and the kernel holds a thread of it: one of its drives does not answer", nameEngine)
			}
		case <-linkDown:
			g.engine.cmd.Process.Kill() //nolint:errcheck // it has ended: engine.done follows
			linkDown = nil
		case <-controlDone:
			if done, err := g.controlEnded(); done {
				return true, err
			}
		case <-g.restart:
			g.restart = nil
			if err := g.startControl(); err != nil {
				g.controlFailed(err)
			}
		case s := <-g.k.signals:
			g.k.log.Info("asked to stop", "signal", s.String())
			g.forward()
		case <-g.ask:
			g.ask = nil
			g.forward()
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// forward asks control to stop, now or when there is one.
func (g *generation) forward() {
	g.asked = time.Now()
	if g.control != nil {
		g.control.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it has ended: its exit tells how
	}
}

func (g *generation) startControl() error {
	engineEnd, controlEnd, err := sys.StreamPair()
	if err != nil {
		return fmt.Errorf("connecting control and engine: %w", err)
	}
	defer controlEnd.Close() //nolint:errcheck // control has its own
	g.link.sendControl(engineEnd)
	cfg := &g.k.cfg
	g.control, err = g.k.start(nameControl, cfg.ControlArgs, cfg.ControlEnv,
		[]*os.File{cfg.API, cfg.Admin, controlEnd}, nil)
	if err == nil && !g.asked.IsZero() {
		g.ask = time.After(settle)
	}
	return err
}

// controlEnded decides what follows: K3, giving up, or K1.
func (g *generation) controlEnded() (done bool, err error) {
	c := g.control
	g.control = nil
	c.death.Close() //nolint:errcheck // nobody reads it any more
	if c.code == 0 {
		g.k.log.Info("control granted the stop")
		return true, nil
	}
	if c.cannotStart() && g.link.mapped.Load() == 0 {
		return true, &ChildError{Name: nameControl, Code: c.code}
	}
	if time.Since(g.asked) > settle {
		g.asked = time.Time{} // it had time to refuse, and did
	}
	g.wait.lived(time.Since(c.since))
	g.controlFailed(c.how())
	return false, nil
}

func (g *generation) controlFailed(err error) {
	g.k.log.Error("control ended; the leases stay open", "error", err, "restart_in", g.wait.next())
	g.restart = g.wait.timer()
}

// forget ends what still runs, in K5's order: engine, keys, the rest.
func (g *generation) forget() error {
	if g.link == nil {
		return nil
	}
	var errs []error
	if g.engine != nil && !g.engine.end() {
		errs = append(errs, fmt.Errorf("the kernel still holds the engine, process %d: it was killed and has not ended", g.engine.cmd.Process.Pid))
	}
	errs = append(errs, g.k.keys.WipeAll(), g.link.close())
	if g.control != nil && !g.control.end() {
		errs = append(errs, fmt.Errorf("the kernel still holds control, process %d: it was killed and has not ended", g.control.cmd.Process.Pid))
	}
	return errors.Join(errs...)
}
