package power

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"vacate/test/vm/disk"
	"vacate/test/vm/wire"
)

// maxCrashes is how often the emulated kernel may fail, or not start, in one
// cycle: that says nothing about vacate.
const maxCrashes = 4

// cycle boots the machine, checks what the last cut left, lets it work, and cuts
// its power.
func (h *hunt) cycle(cut int) error {
	r := draw(h.o.seed, cut)
	d := decide(r, cut)
	if d.fresh {
		if err := h.freshDisks(); err != nil {
			return err
		}
	}
	start := time.Now()
	for crashes := 0; ; {
		err := h.live(d)
		if err == nil {
			break
		}
		// Where it strikes is nobody's fault, so that what else went wrong counts for
		// nothing. For the disks it is one more loss of power.
		if h.machine == nil || !h.machine.Crashed() {
			return err
		}
		console := h.machine.Console(30)
		h.logf("the emulated kernel has failed:\n%s", console)
		if crashes, h.total.crashes = crashes+1, h.total.crashes+1; crashes > maxCrashes {
			return fmt.Errorf("the emulated kernel fails again and again:\n%s", console)
		}
		h.supply.Cut()
		h.machine.Kill()
		h.supply.PowerOn(r)
	}
	h.mu.Lock()
	wrong, c := h.wrong, h.book.count()
	h.mu.Unlock()
	if err := found("in the machine", wrong); err != nil {
		return err
	}
	stats := []disk.Stats{h.state.Stats(), h.data.Stats()}
	if err := h.search(); err != nil {
		return err
	}
	losses := h.supply.PowerOn(r)
	if err := h.search(); err != nil {
		return err
	}
	fmt.Printf("cut %d (%v): %d leases opening, %d open, %d closing, %d closed; lost of state %v; of drive %v; %v\n",
		cut, d, c[opening], c[opened], c[closing], c[closed], losses[0], losses[1], time.Since(start).Round(100*time.Millisecond))
	h.logf("requests to state %+v, to drive %+v", stats[0], stats[1])
	return nil
}

// live is one life of the machine, until its power is cut. It returns nil at the
// cut.
func (h *hunt) live(d decision) error {
	ctx, cancel := context.WithCancelCause(h.ctx)
	defer cancel(nil)
	if err := h.boot(ctx); err != nil {
		return err
	}
	defer h.machine.Kill()
	off := h.supply.Off()
	go func() {
		select {
		case <-off:
			cancel(errCut)
		case <-ctx.Done():
		}
	}()
	err := h.moments(ctx, d, append(h.beginning(), moment{duringLoad, h.load})...)
	if errors.Is(err, errCut) {
		h.machine.Kill()
		return nil
	}
	return err
}

// A moment is a part of a life.
type moment struct {
	name string
	do   func(context.Context, decision) error
}

// beginning is what comes before the load.
func (h *hunt) beginning() []moment {
	return []moment{{duringStart, h.serve}, {duringEnrol, h.enrol}, {duringCheck, h.check}}
}

// moments goes through the moments of a life; the one that was drawn ends in a
// cut, which is the error.
func (h *hunt) moments(ctx context.Context, d decision, moments ...moment) error {
	for _, m := range moments {
		cutHere := m.name == d.during
		if cutHere {
			h.plan(d)
		}
		if err := m.do(ctx, d); err != nil {
			return h.judge(ctx, m.name, err)
		}
		if cutHere {
			h.supply.Cut()
			return errCut
		}
	}
	return nil
}

// judge tells what a failed moment means: nothing, once the power was cut; else
// that the node did not come back as it should.
func (h *hunt) judge(ctx context.Context, moment string, err error) error {
	select {
	case <-h.supply.Off():
		return errCut
	case <-h.machine.Done():
		return err
	default:
	}
	var f *finding
	if ctx.Err() != nil || errors.As(err, &f) {
		return err
	}
	log := ""
	if h.machine.Call(h.ctx, "log", nil, &log) != nil {
		log = "(there is no log of the daemon)"
	}
	return found("the node does not come back", []string{moment + ": " + err.Error(), "the daemon's log:\n" + log})
}

// plan makes the cut come.
func (h *hunt) plan(d decision) {
	switch d.disk {
	case stateName:
		h.state.CutAt(d.at, d.done)
	case dataName:
		h.data.CutAt(d.at, d.done)
	}
	supply, off := h.supply, h.supply.Off()
	go func() {
		select {
		case <-off:
		case <-time.After(d.after):
			supply.CutIf(off)
		}
	}()
}

// settleTime is how long a node may take to show all leases as ended.
const settleTime = 30 * time.Second

// A drive is one as `drive list -o json` prints it.
type drive struct {
	Path  string `json:"path"`
	State string `json:"state"`
}

// enrol takes the drive into use if it is not. An enrolment that a cut ended half
// way may be repeated, by force; one that was done must stay.
func (h *hunt) enrol(ctx context.Context, _ decision) error {
	var drives []drive
	if err := h.machine.JSON(ctx, &drives, "drive", "list"); err != nil {
		return err
	}
	if slices.Contains(drives, drive{dataPath, "ready"}) {
		h.enrolled = true
		return nil
	}
	if h.enrolled {
		return &finding{fmt.Sprintf("the drive was enrolled before the cut and is not ready: %+v", drives)}
	}
	ran, err := h.machine.Run(ctx, "drive", "enroll", dataPath)
	if err == nil && ran.Code != 0 {
		h.logf("enrolling: %s", strings.TrimSpace(ran.Stderr))
		ran, err = h.machine.Run(ctx, "drive", "enroll", "--force", "--confirm", wire.SerialPrefix+dataName, dataPath)
	}
	if err == nil && ran.Code != 0 {
		err = fmt.Errorf("enrolling the drive: exit code %d: %s (drives: %+v)", ran.Code, ran.Stderr, drives)
	}
	h.enrolled = err == nil
	return err
}

// check compares what the node shows with the book, and looks at the whole drive.
func (h *hunt) check(ctx context.Context, _ decision) error {
	for deadline := time.Now().Add(settleTime); ; {
		var list []view
		if err := h.machine.JSON(ctx, &list, "lease", "list", "--all"); err != nil {
			return err
		}
		h.mu.Lock()
		wrong, unsettled := h.book.check(list)
		if len(wrong)+len(unsettled) == 0 {
			h.settle(list)
		}
		h.mu.Unlock()
		if time.Now().After(deadline) {
			wrong = append(wrong, unsettled...)
		}
		if err := found("after the cut", wrong); err != nil {
			return err
		}
		if len(unsettled) == 0 {
			break
		}
	}
	c := wire.Check{Drive: dataPath, Canary: wire.Canary{Hunt: h.id, Tag: h.boots << 24}}
	start := time.Now()
	if err := h.machine.Call(ctx, "check", c, nil); err != nil {
		return err
	}
	h.logf("the drive was looked at in %v", time.Since(start).Round(10*time.Millisecond))
	return nil
}

// settle closes the book over what was shown. The caller holds h.mu.
func (h *hunt) settle(list []view) {
	c := h.book.count()
	h.total.lost += c[opened]
	h.total.closed += c[closed]
	h.total.between += c[opening] + c[closing]
	h.book.settle(list)
}

// load lets tenants work until the power is cut, or something is wrong.
func (h *hunt) load(ctx context.Context, d decision) error {
	l := wire.Load{Drive: dataPath, Hunt: h.id, Seed: d.load, Boot: h.boots, Tenants: d.tenants}
	if err := h.machine.Call(ctx, "load", l, nil); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.machine.Done():
			return h.machine.Death()
		case err := <-h.served:
			return fmt.Errorf("serving a disk: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
		h.mu.Lock()
		wrong := h.wrong
		h.mu.Unlock()
		if err := found("under load", wrong); err != nil {
			return err
		}
	}
}

// last boots once more, checks, stops the daemon in order and audits its records.
func (h *hunt) last() error {
	for crashes := 0; ; crashes++ {
		err := h.end()
		if err == nil || h.machine == nil || !h.machine.Crashed() || crashes == maxCrashes {
			return err
		}
		h.total.crashes++
		h.supply.Cut()
		h.machine.Kill()
		h.supply.PowerOn(draw(h.o.seed, -1-crashes))
	}
}

func (h *hunt) end() error {
	if err := h.boot(h.ctx); err != nil {
		return err
	}
	defer h.machine.Kill()
	if err := h.moments(h.ctx, decision{}, append(h.beginning(), moment{"stop", h.stop})...); err != nil {
		return err
	}
	h.mu.Lock()
	wrong := h.wrong
	h.mu.Unlock()
	if err := errors.Join(found("in the machine", wrong), h.search()); err != nil {
		return err
	}
	if err := h.machine.Off(h.ctx); err != nil {
		return err
	}
	var err error
	h.total.records, err = h.audit()
	return err
}

// stop ends the daemon in order.
func (h *hunt) stop(ctx context.Context, _ decision) error {
	ran, err := h.machine.Run(ctx, "stop")
	if err == nil && ran.Code != 0 {
		err = fmt.Errorf("vacate stop: exit code %d: %s", ran.Code, ran.Stderr)
	}
	return err
}
