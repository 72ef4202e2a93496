package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"vacate/internal/child"
	"vacate/internal/fail"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

const nameEngine, nameControl = "engine", "control"

// engineEnv comes after Recipe.EngineEnv. A preempted thread's registers, keys
// among them, would be saved to its stack and stay there: so no asynchronous
// preemption.
var engineEnv = []string{"GODEBUG=asyncpreemptoff=1"}

// lookEvery is how often the keeper looks at what does not tell it.
const lookEvery = 200 * time.Millisecond

// next waits for something to happen, at most until limit fires, and deals with
// it.
func (k *keeper) next(limit <-chan time.Time) {
	look := time.NewTimer(lookEvery)
	defer look.Stop()
	select {
	case <-k.engine.Ended():
		k.engineEnded(k.engine.How(exitRefused))
	case <-k.control.Ended():
		k.controlEnded()
	case <-k.engine.LinkDown():
		k.engine.CutOff()
	case <-k.control.LinkDown():
		k.control.CutOff()
	case <-k.engineDue:
		k.startEngine()
	case <-k.controlDue:
		k.startControl()
	case m := <-k.asks:
		k.obey(m)
	case s := <-k.signals:
		k.log.Info("asked to stop", "signal", s.String())
		k.asked = true
	case <-look.C:
		switch e, c := k.engine, k.control; {
		case e.Held():
			k.engineEnded(false, errors.New("engine: it has ended, and the kernel holds a thread of it: one of its drives does not answer"))
		case e != nil && !e.Up() && time.Since(e.Since) > 6*k.patience.up:
			e.Signal(syscall.SIGKILL) // no key can be destroyed while it hangs: the next one is better than none
		case e.Up() && c != nil && !c.Up() && min(time.Since(e.Since), time.Since(c.Since)) > k.patience.start:
			c.Signal(syscall.SIGKILL) // nobody can close a lease while it hangs
		}
	case <-k.changed:
	case <-limit:
	case <-k.ctx.Done():
		k.end(context.Cause(k.ctx))
	}
	k.tell()
}

// tell tells others what is new.
func (k *keeper) tell() {
	k.cfg.Notify("WATCHDOG=1")
	if k.control.Up() && !k.told {
		k.told = true
		k.cfg.Notify("READY=1\nSTATUS=serving")
	}
	switch {
	case !k.asked:
	case k.control.Up():
		k.asked = false
		k.control.Signal(syscall.SIGTERM)
	case !k.held.Any():
		k.end(nil) // no lease is open, and nobody is there to refuse
	}
}

// obey does what control asks for.
func (k *keeper) obey(m volatile.Message) {
	switch {
	case m.Kind == volatile.KindStop:
		k.log.Info("control granted the stop")
		k.end(nil)
	case k.upgrading:
		k.reply(k.control, m, syscall.EBUSY)
	case !k.over:
		k.upgrade(m)
	}
}

// reply answers m of control c's, if that is there still.
func (k *keeper) reply(c *child.Child, m volatile.Message, errno syscall.Errno) {
	if c != nil && c == k.control {
		c.Send(volatile.Message{Kind: m.Kind, Reply: true, ID: m.ID, Errno: errno}, nil) //nolint:errcheck // it is ending, and will not know
	}
}

// fromEngine and fromControl are called by the children's own goroutines.
func (k *keeper) fromEngine(c *child.Child, m *volatile.Message, file *os.File) (*os.File, error) {
	give, err := k.held.Answer(m, file)
	if err == nil && m.Kind == volatile.KindUp {
		k.isUp(c)
	}
	return give, err
}

func (k *keeper) fromControl(c *child.Child, m *volatile.Message, _ *os.File) (*os.File, error) {
	switch m.Kind {
	case volatile.KindReady:
		k.isUp(c)
		return nil, nil
	case volatile.KindStop, volatile.KindUpgrade:
		select {
		case k.asks <- *m:
			return nil, nil
		default: // eight wait already
		}
	}
	return nil, fmt.Errorf("control sent a %v: %w", m.Kind, volatile.ErrFormat)
}

func (k *keeper) isUp(c *child.Child) {
	c.SetUp()
	k.wake()
}

// wake makes next look.
func (k *keeper) wake() {
	select {
	case k.changed <- struct{}{}:
	default: // a value waits already
	}
}

func (k *keeper) server(name string) child.Server {
	return map[string]child.Server{nameEngine: {Mu: &k.held.Mu, Handle: k.fromEngine, Urgent: true}, nameControl: {Mu: &k.held.Mu, Handle: k.fromControl}}[name]
}

func (k *keeper) start(name string, args, env []string, files ...*os.File) (*child.Child, error) {
	c, err := child.Start(name, k.server(name), child.Program{File: k.build.file, Args: append([]string{k.cfg.Self, name}, args...), Env: env, Rights: k.build.Rights[name]}, files...)
	if err == nil {
		k.log.Info("started", "child", name, "pid", c.PID(), "generation", k.header.Generation)
	}
	return c, err
}

func (k *keeper) startEngine() {
	k.engineDue = nil
	k.header.Generation++
	k.table.SetHeader(k.header)
	var err error
	if k.engine, err = k.start(nameEngine, k.build.EngineArgs, slices.Concat(k.build.EngineEnv, engineEnv),
		nil, nil, k.keys.File(), k.table.File(), k.cfg.Alive); err != nil {
		k.engineFailed(err)
		k.engineDue = time.After(shortage * delay(k.engineFailures))
		return
	}
	k.log.Info("keeping keys", "key_store", k.keys.Kind(), "wiper", k.engine.Urgency())
	fail.At(fail.KeeperEngineStarted)
	k.connect()
}

// engineEnded is K1.
func (k *keeper) engineEnded(refused bool, how error) {
	c := k.engine
	k.engine = nil
	if err := c.Free(); err != nil {
		k.end(err)
	}
	fail.At(fail.KeeperEngineEnded)
	k.engineDue = time.After(0)
	if c.Up() {
		k.engineFailures = 0 // also one that an upgrade has ended: the row is over
	}
	switch {
	case c.Wanted:
	case refused && !k.upgrading && !k.held.Any():
		k.end(&ChildError{Name: nameEngine, Code: exitRefused})
	case !c.Up():
		k.engineFailed(how)
	default:
		k.ends++
		k.log.Error("the engine ended; the next one takes its leases over", "error", how, "generation", k.header.Generation)
	}
}

// giveUp is K2's ten: some three seconds of trying. Where the host is short of
// processes, memory or descriptors, so that none can even be started, shortage
// makes it 40: tenants are not to pay for what somebody else takes for a moment.
const giveUp, shortage = 10, 16

// engineFailed is K2: an engine was never up.
func (k *keeper) engineFailed(why error) {
	k.ends++
	k.engineFailures++
	k.engineDue = time.After(delay(k.engineFailures))
	k.log.Error("the engine ended before it had taken over", "error", why, "in_a_row", k.engineFailures)
	if k.engineFailures%giveUp != 0 {
		return
	}
	k.log.Error("no engine can take over: leases that were open are lost, and their keys destroyed")
	if err := k.held.Destroy(); err != nil {
		k.end(err)
	}
	k.header.Emptied = k.header.Generation
	k.table.Reset(k.header)
	fail.At(fail.KeeperReset)
}

func (k *keeper) startControl() {
	k.controlDue = nil
	var err error
	if k.control, err = k.start(nameControl, k.build.ControlArgs, append(slices.Clip(k.build.ControlEnv), UpgradeEnv+"="+k.outcome),
		k.cfg.API, k.cfg.Admin, nil, nil); err != nil {
		k.controlFailed(err)
		return
	}
	fail.At(fail.KeeperControlStarted)
	k.connect()
}

// controlEnded is K4.
func (k *keeper) controlEnded() {
	c := k.control
	k.control = nil
	if err := c.Free(); err != nil {
		k.end(err)
	}
	for len(k.asks) > 0 { // its last words: nobody waits for an upgrade any more
		if m := <-k.asks; m.Kind == volatile.KindStop {
			k.obey(m)
		}
	}
	refused, how := c.How(exitRefused)
	switch {
	case k.over:
	case c.Wanted:
		k.controlDue = time.After(0)
	case refused && !k.upgrading && !k.held.Any():
		k.end(&ChildError{Name: nameControl, Code: exitRefused})
	default:
		if time.Since(c.Since) >= longLife {
			k.controlFailures = 0
		}
		k.controlFailed(how)
	}
}

func (k *keeper) controlFailed(why error) {
	k.ends++
	k.controlFailures++
	k.controlDue = time.After(delay(k.controlFailures))
	k.log.Error("control ended; the leases stay open", "error", why, "restart_in", delay(k.controlFailures))
}

// connect gives engine and control, when both are there, a new way to each
// other. One that cannot be told has ended, or is ended: it reads nothing.
func (k *keeper) connect() {
	if k.engine == nil || k.control == nil {
		return
	}
	a, b, err := sys.StreamPair()
	if err != nil {
		k.log.Error("connecting engine and control: control is started anew", "error", err)
		k.control.Signal(syscall.SIGKILL)
		return
	}
	for c, f := range map[*child.Child]*os.File{k.engine: a, k.control: b} {
		if c.Send(volatile.Message{Kind: volatile.KindControl}, f) != nil {
			c.Signal(syscall.SIGKILL)
		}
		f.Close() //nolint:errcheck // the child has its own
	}
}

// How long a child's successor waits: not at all, then longer each time, until
// one has lived for a while.
const minBackoff, maxBackoff, longLife = 10 * time.Millisecond, 2 * time.Second, 10 * time.Second

// delay is how long to wait after the n-th failure in a row, n ≥ 1.
func delay(n int) time.Duration {
	if n == 1 {
		return 0
	}
	return min(minBackoff<<min(n-2, 16), maxBackoff)
}
