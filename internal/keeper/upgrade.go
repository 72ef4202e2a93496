package keeper

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"vacate/internal/child"
	"vacate/internal/fail"
	"vacate/internal/handoff"
	"vacate/internal/held"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// How a new binary takes over, while leases are open:
//
//  1. Check: it is run as it will be in step 4, on a hand-off of the present
//     keys and table, and only says what its children are to be started with.
//     Nothing has changed so far: control is told, 0 or ENOEXEC.
//  2. Engine: the old one passes its clients' connections and ends; the new
//     binary's takes over and says that it is up.
//  3. Control: the old one is ended; the new binary's says that it is ready.
//  4. Keeper: exec, in the same process. The new one adopts what the hand-off
//     describes (docs/spec/handoff.md); the children notice nothing.
//
// When step 2, 3 or 4 fails, or a child ends meanwhile, the old binary's engine
// and control come back by the same steps. A new keeper that cannot adopt execs
// the old binary, which does the same.

// UpgradeEnv is the variable that tells control how the last upgrade ended:
// "done", "failed: …", or empty.
const UpgradeEnv = "VACATE_UPGRADE"

// patience is how long the steps of an upgrade may take.
// start is of control, at any start: it reads what there is, and waits for the disk.
type patience struct{ check, leave, up, ready, start time.Duration }

var inService = patience{check: 10 * time.Second, leave: child.EndTimeout, up: 10 * time.Second, ready: 15 * time.Second, start: 10 * time.Minute}

// A build is a binary and what its children are started with.
type build struct {
	file *os.File
	Recipe
}

// upgrade returns when it has failed, or the keeper is to end.
func (k *keeper) upgrade(m volatile.Message) {
	k.upgrading = true
	defer func() { k.upgrading = false }()
	k.log.Info("upgrading: trying the new binary", "path", k.cfg.Self)
	asker := k.control
	next, err := k.check()
	if err != nil {
		k.note(err)
		k.reply(asker, m, syscall.ENOEXEC)
		return
	}
	k.reply(asker, m, 0)
	k.cfg.Notify("STATUS=upgrading")
	old := k.build
	k.build, k.outcome = next, "done"
	if err = k.replace(); err == nil {
		err = k.exec(old)
	}
	if !k.over {
		k.fallBack(old, err)
	}
}

// note notes why an upgrade has failed.
func (k *keeper) note(why error) {
	k.log.Error("the upgrade has failed; the old binary goes on", "error", why)
	k.outcome = "failed: " + strings.ReplaceAll(why.Error(), "\n", "; ")
}

// fallBack brings the old binary's children back.
func (k *keeper) fallBack(old build, why error) {
	k.note(why)
	k.build = old
	if err := k.replace(); err != nil && !k.over {
		k.log.Error("the old binary's processes are not back yet", "error", err) // K1, K4
	}
	k.cfg.Notify("STATUS=serving")
}

// check is step 1.
func (k *keeper) check() (next build, err error) {
	if next.file, err = sys.OpenProgram(k.cfg.Self); err != nil {
		return next, err
	}
	f, err := (&handoff.Note{Place: k.cfg.Place, Keys: handoff.At(4), Table: handoff.At(5)}).Write()
	if err != nil {
		return next, err
	}
	defer f.Close() //nolint:errcheck // in memory
	var out bytes.Buffer
	cmd := child.Command(next.file, k.argv(), handoff.Check(3), f, k.keys.File(), k.table.File())
	cmd.Stdout, cmd.WaitDelay = &out, time.Second
	if err := cmd.Start(); err != nil {
		return next, fmt.Errorf("starting the new binary: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		k.wake()
	}()
	if !k.until(k.patience.check, func() bool { return len(ended) > 0 }) {
		cmd.Process.Kill() //nolint:errcheck // it has ended meanwhile: fine
		return next, errors.New("the new binary does not say in time that it can take over")
	}
	if err = <-ended; err == nil {
		// It may say more than this version knows. The calls are made in this order.
		err = errors.Join(json.Unmarshal(out.Bytes(), &next.Recipe), k.table.Fits(&next.Layout))
	}
	if err != nil {
		return next, fmt.Errorf("trying the new binary: %w; what it printed above says why", err)
	}
	return next, nil
}

// answer is step 1 in the new binary: it says what its children are to be
// started with.
func answer(cfg Config) error {
	if err := errors.Join(sys.Harden(), (&keeper{cfg: cfg}).open(cfg.Handoff)); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(cfg.Recipe)
}

func (k *keeper) argv() []string { return append([]string{k.cfg.Self}, k.cfg.Args...) }

// replace is steps 2 and 3.
func (k *keeper) replace() error {
	ends := k.ends
	if c := k.engine; c != nil {
		c.Wanted = true
		gone := func() bool { return k.engine != c }
		leaves := c.Up() && c.Send(volatile.Message{Kind: volatile.KindLeave}, nil) == nil
		fail.At(fail.KeeperLeaving)
		if !leaves || !k.until(k.patience.leave, gone) {
			c.Signal(syscall.SIGKILL)
			k.until(child.EndTimeout, gone)
		}
	}
	if k.until(k.patience.up, func() bool { return k.engine.Up() || k.ends != ends }); !k.engine.Up() {
		return errors.New("its engine does not take over")
	}
	if c := k.control; c != nil {
		c.Dismiss()
		k.until(child.EndTimeout, func() bool { return k.control != c })
	}
	if k.until(k.patience.ready, func() bool { return k.control.Up() || k.ends != ends }); k.ends != ends || !k.control.Up() {
		return errors.New("its control does not become ready, or its engine ended")
	}
	return nil
}

// until deals with what happens until ok, but not for longer than d, nor after
// the keeper's end. It returns ok.
func (k *keeper) until(d time.Duration, ok func() bool) bool {
	limit, start := time.After(d), time.Now()
	for !ok() && !k.over && time.Since(start) < d {
		k.next(limit)
	}
	return ok()
}

// exec is step 4. It returns only with an error.
func (k *keeper) exec(old build) error {
	for !k.over && len(k.signals)+len(k.asks) > 0 {
		k.next(nil)
	}
	k.log.Info("upgrading: the new binary goes on") // before the lock: a log may be slow, and a key must not wait for it
	k.held.Mu.Lock()                                // from here on no message is taken from a link
	defer k.held.Mu.Unlock()
	if k.over || len(k.asks) > 0 || !k.engine.Up() || !k.control.Up() {
		return errors.New("something else happened at the last moment")
	}
	n := handoff.Note{
		Place: k.cfg.Place, Settings: k.cfg.Settings, Outcome: k.outcome, Keys: handoff.Of(k.keys.File()), Table: handoff.Of(k.table.File()),
		API: handoff.Of(k.cfg.API), Admin: handoff.Of(k.cfg.Admin), Alive: handoff.Of(k.cfg.Alive), Lock: handoff.Of(k.cfg.Lock),
		Program: handoff.Of(k.build.file), Old: handoff.Of(old.file), Engine: k.engine.Describe(), Control: k.control.Describe(),
		Slots: k.held.Describe(),
	}
	fail.At(fail.KeeperExec)
	return n.Exec(k.build.file, k.argv(), os.Environ())
}

// open maps what h names.
func (k *keeper) open(h *handoff.Handoff) (err error) {
	if h.Place != k.cfg.Place {
		return fmt.Errorf("taking over: the folders were %s and are now %s: an upgrade cannot move them", h.Place, k.cfg.Place)
	}
	if k.keys, err = volatile.OpenKeys(h.Keys.File); err != nil {
		return err
	}
	if k.table, err = volatile.OpenTable(h.Table.File); err != nil {
		return err
	}
	k.header, err = k.table.Header()
	return err
}

// inherit takes over what is held.
func (k *keeper) inherit(h *handoff.Handoff) (err error) {
	if err = k.open(h); err != nil {
		return err
	}
	k.held = held.New(k.keys)
	k.build.file, k.outcome = h.Program.File, h.Outcome
	if h.Failed != "" {
		k.build.file, h.Old = h.Old.File, h.Program
	}
	return k.held.Inherit(h.Slots)
}

// resume goes on with the children that are there.
func (k *keeper) resume(h *handoff.Handoff) {
	fail.At(fail.KeeperAdopted)
	k.log.Info("upgraded: this binary goes on", "generation", k.header.Generation)
	var err error
	if k.engine, err = child.Adopt(nameEngine, k.server(nameEngine), h.Engine); err != nil {
		k.engineFailed(err)
	}
	if k.control, err = child.Adopt(nameControl, k.server(nameControl), h.Control); err != nil {
		k.controlFailed(err)
	}
	if h.Failed != "" {
		k.fallBack(k.build, errors.New(h.Failed))
	}
	h.Done() //nolint:errcheck // nothing was written
}
