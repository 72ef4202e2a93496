package engine

import (
	"context"
	"errors"
	"os"
	"time"

	"vacate/internal/blk"
	"vacate/internal/export/ublk"
	"vacate/internal/ipc"
)

// A lease's block device is served beside its exports, and unlike those outlives the
// path: while a lease has none, its device is paused, and requests wait.
//
//	D1: control gives its character device to one engine after the other. An engine
//	    that ends, in whatever way, leaves what it has not answered to the next.
//	D2: a close has the device's requests fail, and waits for none of its own: the
//	    device itself is stopped by another process, later.
//	D3: what has a device is a tenancy; t.device is under t.mu, and is nil without.

// A blockDevice is an [ublk.Server], or a test's.
type blockDevice interface {
	Resume(blk.Device) error
	Pause(context.Context) error
	Hurry()
	Close()
	Wait()
	Gone() <-chan struct{}
}

// serveBlock is ublk.Serve, or a test's.
func (e *Engine) serveBlock(char *os.File, cfg ublk.Config) (blockDevice, error) {
	if e.cfg.serveBlock != nil {
		return e.cfg.serveBlock(char, cfg)
	}
	s, err := ublk.Serve(char, cfg)
	if err != nil {
		return nil, err // not a nil server in an interface
	}
	return s, nil
}

// serveDevice takes the requests of the block device of an open lease. When it is
// answered, the device can be started.
func (e *Engine) serveDevice(req *ipc.DeviceServeRequest, files []*os.File) (*ipc.Empty, error) {
	if len(files) != 1 {
		return nil, invalid("lease %s: %d files, want its character device", req.Lease, len(files))
	}
	cfg := ublk.Config{Queues: req.Queues, Depth: req.Depth, MaxIO: req.MaxIO, Lock: e.cfg.Lock, Poll: e.cfg.Poll, Log: e.cfg.Log.With("lease_id", req.Lease)}
	if err := cfg.Validate(); err != nil {
		return nil, invalid("lease %s: %v", req.Lease, err)
	}
	t, ended, err := e.lease(req.Lease)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		return nil, notFound("lease %s has ended", req.Lease)
	}
	if err := e.mayHaveDevice(t); err != nil {
		return nil, err
	}
	s, err := e.serveBlock(files[0], cfg)
	if err != nil {
		return nil, err
	}
	if err := e.giveDevice(t, s); err != nil {
		s.Close() // until it is stopped, it answers with errors
		return nil, err
	}
	return &ipc.Empty{}, nil
}

// deviceServed says whether this engine serves the block device of a lease.
func (e *Engine) deviceServed(id string) *ipc.DeviceServed {
	t, _, err := e.lease(id)
	if err != nil || t == nil {
		return &ipc.DeviceServed{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return &ipc.DeviceServed{Served: t.hasDevice()}
}

// hasDevice reports whether a device of t is served. One that was stopped it forgets.
// REQUIRES: t.mu is held.
func (t *tenancy) hasDevice() bool {
	if t.device == nil {
		return false
	}
	select {
	case <-t.device.Gone():
		t.device = nil
		return false
	default:
		return true
	}
}

// mayHaveDevice refuses what giveDevice would, before anything is begun.
func (e *Engine) mayHaveDevice(t *tenancy) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return e.undeviced(t)
}

// undeviced says that t is open and that no device of it is served. REQUIRES: t.mu is
// held.
func (e *Engine) undeviced(t *tenancy) error {
	if err := e.standing(t); err != nil {
		return err
	}
	if t.hasDevice() {
		return busy("the block device of lease %s is served already", t.id)
	}
	return nil
}

// giveDevice makes s the device of t, and has its requests carried out if t is served;
// else that comes when it is (resume).
func (e *Engine) giveDevice(t *tenancy, s blockDevice) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.undeviced(t); err != nil {
		return err
	}
	t.device = s
	if t.server == nil || t.parting {
		return nil
	}
	// Without memory for that its requests wait. They must not fail: the device may be
	// one that an engine before this one served, and be mounted.
	e.resumeDevice(t)
	return nil
}

// resumeDevice has the requests of t's device carried out, if it has one, by the path
// that t has, or later, once there is memory for that. REQUIRES: t.mu is held.
func (e *Engine) resumeDevice(t *tenancy) {
	if t.device == nil || t.path == nil {
		return
	}
	if err := t.device.Resume(t.path.volume); err != nil && !errors.Is(err, ublk.ErrServed) {
		e.cfg.Log.Error("a block device's requests wait; it is tried again until they can be carried out", "lease_id", t.id, "error", err)
		go e.retryDevice(t, t.device, t.path)
	}
}

// retryEvery is how often a device that could not be resumed is tried again.
const retryEvery = 250 * time.Millisecond

// retryDevice resumes the device d of t until it is served, by p or by another path, or
// is to be served no more.
func (e *Engine) retryDevice(t *tenancy, d blockDevice, p *path) {
	again := time.NewTicker(retryEvery)
	defer again.Stop()
	for done := false; !done; {
		select {
		case <-e.ctx.Done():
			return
		case <-d.Gone():
			return
		case <-again.C:
		}
		t.mu.Lock()
		// An engine that leaves brings it to rest, under t.mu and when ctx has ended.
		done = t.device != d || t.path != p || t.parting || t.shut.GateClosedNs != 0 || e.ctx.Err() != nil
		if !done {
			err := d.Resume(p.volume)
			done = err == nil || errors.Is(err, ublk.ErrServed)
		}
		t.mu.Unlock()
	}
}

// pauseDevice brings a device, which may be nil, to rest.
func pauseDevice(ctx context.Context, d blockDevice) error {
	if d == nil {
		return nil
	}
	return d.Pause(ctx)
}

// closeDevice has a device, which may be nil, fail its requests.
func closeDevice(d blockDevice) {
	if d != nil {
		d.Hurry()
		d.Close()
	}
}
