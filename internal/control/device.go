package control

import (
	"context"
	"os"
	"path/filepath"

	"vacate/internal/attach"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/server"
)

// listenDevices makes the socket to which the process that makes block devices connects,
// if there is to be one. Confined, control makes none there, and connects to nobody.
func (p *process) listenDevices() (err error) {
	if p.cfg.DeviceDir != "" {
		p.devices, err = attach.Listen(p.cfg.DevicesSocket())
	}
	return err
}

// newAttacher makes what gives the node's leases block devices; nil: nothing does.
func (p *process) newAttacher() (*attach.Attacher, error) {
	if p.devices == nil {
		return nil, nil
	}
	return attach.New(attach.Config{Listener: p.devices, Engine: p.engine, Lease: p.node.Get, Log: p.log,
		NBDSocket: func(id string) string { return p.node.SocketPath(id, lease.NBD) },
		Linked: func(id string) bool {
			_, err := os.Lstat(filepath.Join(p.cfg.DeviceDir, id))
			return err == nil
		}})
}

// serverDevices is what the API asks about devices, or nil.
func (p *process) serverDevices() server.Devices {
	if p.attacher == nil {
		return nil
	}
	return p.attacher
}

// ServeDevice has the engine serve a block device.
func (e *engine) ServeDevice(ctx context.Context, req ipc.DeviceServeRequest, char *os.File) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodDeviceServe, req, char)
	return err
}

// ServesDevice asks the engine whether it serves a block device of a lease.
func (e *engine) ServesDevice(ctx context.Context, id string) (bool, error) {
	s, err := call[ipc.DeviceServed](ctx, e, ipc.MethodDeviceServed, ipc.LeaseRef{Lease: id})
	return s.Served, err
}

// attachDevices looks after the leases' devices until ctx is done, from when the start
// is done on: before that nobody knows which leases are open.
func (p *process) attachDevices(ctx context.Context) error {
	w, err := p.node.Watch()
	if err != nil {
		return err
	}
	defer w.Close()
	select {
	case <-p.started:
	case <-ctx.Done():
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		p.attacher.Run(ctx)
	}()
	defer func() { cancel(); <-ran }()
	for {
		c, err := w.Next(ctx)
		switch {
		case err != nil:
			return err
		case c.Missed > 0:
			p.attacher.EndedSince()
		case c.Lease.State.Ended():
			p.attacher.Ended(c.Lease.ID)
		}
	}
}
