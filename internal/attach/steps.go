package attach

import (
	"context"
	"fmt"
	"os"

	"vacate/internal/ipc"
	"vacate/internal/lease"
)

// steps are the three of package ipc. Where the device is there and served, nothing is
// done. fresh is set when one was made, or may have been, that was not there before.
// Errors that pass wrap ipc.ErrGone, errAbsent or errAgain: all may be asked again.
//
// REQUIRES: the lease's lock is held.
func (a *Attacher) steps(ctx context.Context, l lease.Lease, fresh *bool) (ipc.Device, error) {
	engine, err := a.cfg.Engine.Hello(ctx)
	if err != nil {
		return ipc.Device{}, fmt.Errorf("asking the engine who it is: %w", err)
	}
	all, err := a.list(ctx)
	if err != nil {
		return ipc.Device{}, err
	}
	d, had := all[l.ID]
	if pid := a.servedBy(l.ID); had && d.Live && (d.Kind == ipc.DeviceNBD || pid == 0 || pid == engine.PID) {
		return d, nil
	}
	*fresh = *fresh || !had
	a.touch(l.ID)
	if d, done, err := a.resume(ctx, l, engine.PID); done {
		return d, err
	}
	req := ipc.DeviceMakeRequest{Lease: l.ID, SizeBytes: l.SizeBytes, LogicalBlock: l.LogicalBlock, UID: l.UID}
	if !l.Exports.NoNBD {
		req.Socket = a.cfg.NBDSocket(l.ID)
	}
	made, files, err := callFiles[ipc.DeviceMade](ctx, a, ipc.MethodDeviceMake, req)
	defer func() {
		for _, f := range files {
			f.Close() //nolint:errcheck // the engine has its own
		}
	}()
	if err != nil {
		return ipc.Device{}, a.cannotMake(ctx, l, had, err)
	}
	if err := a.serve(ctx, l.ID, engine.PID, made, files); err != nil {
		return ipc.Device{}, err
	}
	return a.start(ctx, l, ipc.DeviceStartRequest{Lease: l.ID, PID: engine.PID})
}

// resume goes on where the engine of that pid serves the device already: whoever had it do
// so, or made the device, is gone since. done: nothing is left to do, or it failed.
func (a *Attacher) resume(ctx context.Context, l lease.Lease, pid int) (d ipc.Device, done bool, err error) {
	switch served, err := a.cfg.Engine.ServesDevice(ctx, l.ID); {
	case codeOf(err) == ipc.CodeInvalid: // an engine of before an upgrade, which cannot say
		return d, false, nil
	case err != nil:
		return d, true, fmt.Errorf("asking the engine for the block device of lease %s: %w", l.ID, err)
	case !served:
		return d, false, nil
	}
	d, err = a.start(ctx, l, ipc.DeviceStartRequest{Lease: l.ID, PID: pid, Served: true, UID: l.UID})
	// Not there: it was removed, and the engine is just giving it up.
	return d, codeOf(err) != ipc.CodeNotFound, err
}

// start is the third step.
func (a *Attacher) start(ctx context.Context, l lease.Lease, req ipc.DeviceStartRequest) (ipc.Device, error) {
	d, err := call[ipc.Device](ctx, a, ipc.MethodDeviceStart, req)
	if codeOf(err) == ipc.CodeMismatch { // the devices process was started anew since it made it
		err = fmt.Errorf("%w: %w", errAgain, err)
	}
	if err != nil {
		return ipc.Device{}, a.unless(ctx, req.PID, fmt.Errorf("starting the block device of lease %s: %w", l.ID, err))
	}
	if d.Lease != l.ID || d.Path == "" {
		return ipc.Device{}, fmt.Errorf("attach: the devices process started %+v for lease %s", d, l.ID)
	}
	a.mu.Lock()
	a.devices[l.ID], a.served[l.ID] = d, req.PID
	a.change(l.ID)
	a.mu.Unlock()
	a.cfg.Log.Info("block device attached", "lease_id", l.ID, "kind", d.Kind, "device", d.Path, "node", d.Node)
	return d, nil
}

// serve is the second step.
func (a *Attacher) serve(ctx context.Context, id string, pid int, made ipc.DeviceMade, files []*os.File) error {
	switch {
	case made.Kind == ipc.DeviceNBD:
		return nil
	case made.Kind != ipc.DeviceUblk || len(files) != 1:
		return fmt.Errorf("attach: the devices process made %+v for lease %s, with %d files", made, id, len(files))
	}
	req := ipc.DeviceServeRequest{Lease: id, Queues: made.Queues, Depth: made.Depth, MaxIO: made.MaxIO}
	if err := a.cfg.Engine.ServeDevice(ctx, req, files[0]); err != nil {
		if codeOf(err) == ipc.CodeBusy { // the device that was there before, of steps that were cut off, is just ending
			err = fmt.Errorf("%w: %w", errAgain, err)
		}
		return a.unless(ctx, pid, fmt.Errorf("having the engine serve the block device of lease %s: %w", id, err))
	}
	// The kernel is told the pid of who serves it: it may have been the next engine.
	return a.unless(ctx, pid, nil)
}

// unless returns err, or what passes where the engine is not the one of that pid any
// more: then a step came to nothing, or was another engine's.
func (a *Attacher) unless(ctx context.Context, pid int, err error) error {
	engine, herr := a.cfg.Engine.Hello(ctx)
	switch {
	case herr != nil:
		return fmt.Errorf("asking the engine who it is: %w", herr)
	case engine.PID != pid && err != nil:
		return fmt.Errorf("%w: another engine has taken over: %w", errAgain, err)
	case engine.PID != pid:
		return fmt.Errorf("%w: another engine has taken over", errAgain)
	}
	return err
}

// cannotMake is why no device was made. had: there was one.
func (a *Attacher) cannotMake(ctx context.Context, l lease.Lease, had bool, err error) error {
	if codeOf(err) == ipc.CodeBusy {
		if !had { // or there is, and a start that was cut off has been made up for
			if all, lerr := a.list(ctx); lerr == nil {
				_, had = all[l.ID]
			}
		}
		if had { // an engine has it that is just ending, or the one that there is
			return fmt.Errorf("%w: making the block device of lease %s: %w", errAgain, l.ID, err)
		}
	}
	if l.Exports.NoNBD && codeOf(err) != "" {
		if h, herr := a.hello(ctx); herr == nil && h.Kind == ipc.DeviceNBD {
			return needsNBD(l.ID, h.Why)
		}
	}
	return fmt.Errorf("making the block device of lease %s: %w", l.ID, err)
}

// remove takes a lease's device away, where it has one.
//
// REQUIRES: the lease's lock is held.
func (a *Attacher) remove(ctx context.Context, id string, force bool) error {
	_, err := call[ipc.Empty](ctx, a, ipc.MethodDeviceRemove, ipc.DeviceRemoveRequest{Lease: id, Force: force})
	switch codeOf(err) {
	case ipc.CodeNotFound:
		err = nil
	case ipc.CodeBusy:
		return inUse(id, err)
	}
	if err != nil {
		return fmt.Errorf("removing the block device of lease %s: %w", id, err)
	}
	a.mu.Lock()
	_, had := a.devices[id]
	a.forget(id)
	a.mu.Unlock()
	if had {
		a.cfg.Log.Info("block device removed", "lease_id", id, "force", force)
	}
	return nil
}

// list asks for all devices, and remembers them, but those that came or went since it
// asked.
func (a *Attacher) list(ctx context.Context) (map[string]ipc.Device, error) {
	a.mu.Lock()
	a.lists++
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.lists--; a.lists == 0 {
			clear(a.changed)
		}
	}()
	res, err := call[ipc.DeviceList](ctx, a, ipc.MethodDeviceList, ipc.Empty{})
	if err != nil {
		return nil, fmt.Errorf("asking for the block devices: %w", err)
	}
	all := make(map[string]ipc.Device, len(res.Devices))
	for _, d := range res.Devices {
		all[d.Lease] = d
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.devices {
		if _, has := all[id]; !has && !a.changed[id] {
			delete(a.devices, id)
		}
	}
	for id, d := range all {
		if !a.changed[id] {
			a.devices[id], a.touched[id] = d, true
		}
	}
	return all, nil
}

func (a *Attacher) touch(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.touched[id] = true
}

// forget drops all that is known of a device. REQUIRES: a.mu is held.
func (a *Attacher) forget(id string) {
	delete(a.devices, id)
	delete(a.touched, id)
	delete(a.served, id)
	a.change(id)
}

// change notes that lists which were asked for before know no better. REQUIRES: a.mu
// is held.
func (a *Attacher) change(id string) {
	if a.lists > 0 {
		a.changed[id] = true
	}
}

// servedBy is the pid of the engine that was seen to take the device; 0: nobody here
// knows.
func (a *Attacher) servedBy(id string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.served[id]
}
