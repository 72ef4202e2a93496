package engine

import (
	"context"
	"fmt"
	"os"

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
	s, err := ublk.Serve(files[0], cfg)
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
func (e *Engine) giveDevice(t *tenancy, s *ublk.Server) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.undeviced(t); err != nil {
		return err
	}
	t.device = s
	if t.server == nil || t.parting {
		return nil
	}
	if err := s.Resume(t.path.volume); err != nil {
		t.device = nil
		return fmt.Errorf("serving the block device of lease %s: %w", t.id, err)
	}
	return nil
}

// resumeDevice has the requests of t's device carried out, if it has one, by the path
// that t has. REQUIRES: t.mu is held.
func (e *Engine) resumeDevice(t *tenancy) {
	if t.device == nil || t.path == nil {
		return
	}
	if err := t.device.Resume(t.path.volume); err != nil {
		e.cfg.Log.Error("a block device's requests wait; they are carried out by the next engine", "lease_id", t.id, "error", err)
	}
}

// pauseDevice brings a device, which may be nil, to rest.
func pauseDevice(ctx context.Context, d *ublk.Server) error {
	if d == nil {
		return nil
	}
	return d.Pause(ctx)
}

// closeDevice has a device, which may be nil, fail its requests.
func closeDevice(d *ublk.Server) {
	if d != nil {
		d.Hurry()
		d.Close()
	}
}
