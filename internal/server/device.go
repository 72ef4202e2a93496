package server

import (
	"context"
	"slices"
	"sync/atomic"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// Devices gives leases block devices of the host. Its methods may be called from any
// goroutine; an error that is no [*node.Error] is an internal one.
type Devices interface {
	// Ready returns nil when a lease with these exports can be given a device.
	Ready(ctx context.Context, x lease.Exports) error
	// Attach returns the lease's device when it can be opened. A lease that has one
	// keeps it; after an error there is none that was not there before.
	Attach(ctx context.Context, l lease.Lease) (ipc.Device, error)
	// Detach takes it away, where there is one; one in use by force only.
	Detach(ctx context.Context, id string, force bool) error
	// Resized has the kernel see the new size, where it can.
	Resized(ctx context.Context, id string, bytes int64)
	Device(id string) (ipc.Device, bool)
	// Status says what makes devices, and how many there are.
	Status(ctx context.Context) (hello ipc.DevicesHello, count int)
}

// devices is what gives leases devices here, or what says that nothing does.
func (s *Server) devices() Devices {
	if s.cfg.Devices == nil {
		return noDevices{}
	}
	return s.cfg.Devices
}

// open opens a lease, with a device where one is wanted. Where it cannot be had no
// lease is opened. A lease that an idempotency key finds stays as it is, and gets one.
func (s *Server) open(ctx context.Context, req node.OpenRequest, attach bool) (lease.Lease, error) {
	if !attach {
		return s.cfg.Node.Open(ctx, req)
	}
	if err := s.devices().Ready(ctx, req.Exports); err != nil && !s.opened(req) {
		return lease.Lease{}, err
	}
	a := &attaching{d: s.devices()}
	req.Attach = a
	l, err := s.cfg.Node.Open(ctx, req)
	if err == nil && l.State == lease.Open && !a.done.Load() { // it was found
		_, err = s.devices().Attach(context.WithoutCancel(ctx), l)
	}
	return l, err
}

// opened reports whether the idempotency key finds a lease: what is refused then is
// its device, and the error names it.
func (s *Server) opened(req node.OpenRequest) bool {
	return req.Key != "" && slices.ContainsFunc(s.cfg.Node.List(false), func(l lease.Lease) bool {
		return l.Tenant == req.Tenant && l.Key == req.Key
	})
}

// attaching gives a lease its device while it is opened.
type attaching struct {
	d    Devices
	done atomic.Bool
}

func (a *attaching) Attach(ctx context.Context, l lease.Lease) error {
	_, err := a.d.Attach(ctx, l)
	a.done.Store(err == nil)
	return err
}

// Attach implements LeaseService. A caller that goes away does not stop it.
func (h leases) Attach(ctx context.Context, req *vacatev1.LeaseServiceAttachRequest) (*vacatev1.LeaseServiceAttachResponse, error) {
	ctx = context.WithoutCancel(ctx)
	l, err := h.s.find(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	if _, err := h.s.devices().Attach(ctx, l); err != nil {
		return nil, err
	}
	m, err := h.s.again(ctx, l.ID)
	return &vacatev1.LeaseServiceAttachResponse{Lease: m}, err
}

// Detach implements LeaseService. A caller that goes away does not stop it.
func (h leases) Detach(ctx context.Context, req *vacatev1.LeaseServiceDetachRequest) (*vacatev1.LeaseServiceDetachResponse, error) {
	ctx = context.WithoutCancel(ctx)
	l, err := h.s.find(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	if err := h.s.devices().Detach(ctx, l.ID, false); err != nil {
		return nil, err
	}
	m, err := h.s.again(ctx, l.ID)
	return &vacatev1.LeaseServiceDetachResponse{Lease: m}, err
}

// again is a lease that was found before, as it is now.
func (s *Server) again(ctx context.Context, id string) (*vacatev1.Lease, error) {
	l, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	return s.leaseMessages(ctx, l)[0], nil
}

// noDevices are none.
type noDevices struct{}

func (noDevices) Ready(context.Context, lease.Exports) error { return errNoDevices }

func (noDevices) Attach(context.Context, lease.Lease) (ipc.Device, error) {
	return ipc.Device{}, errNoDevices
}

func (noDevices) Detach(context.Context, string, bool) error { return nil }

func (noDevices) Resized(context.Context, string, int64) {}

func (noDevices) Device(string) (ipc.Device, bool) { return ipc.Device{}, false }

func (noDevices) Status(context.Context) (ipc.DevicesHello, int) {
	return ipc.DevicesHello{Why: errNoDevices.Text}, 0
}

var errNoDevices = &node.Error{Kind: node.Unsupported, Text: "this daemon makes no block devices: device_dir of its configuration is empty",
	Next: "use the lease's NBD or vhost-user socket: see `vacate lease show`"}
