package devices

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"vacate/internal/ipc"
)

// A server carries out what the daemon asks for.
type server struct {
	cfg     *Config
	openers []opener
	links   links
	size    func(name string) int64 // of a block device
	holds   holds

	mu     sync.Mutex
	opened []driver // in the order of openers; nil where it is not open
	why    []error  // why not
}

// newServer opens the drivers that there are. Only the best is loaded.
func newServer(c *Config, o []opener) *server {
	s := &server{cfg: c, openers: o, links: links{c.DeviceDir}, size: realHost.sizeOf, opened: make([]driver, len(o)), why: make([]error, len(o))}
	_, _ = s.best() // hello says why there is none
	for i := range o {
		s.open(i, false) // it may have devices, of before
	}
	return s
}

// close gives the drivers up.
func (s *server) close() {
	for _, d := range s.drivers() {
		if err := d.close(); err != nil {
			s.cfg.Log.Warn("a driver was not given up", "driver", d.kind(), "error", err)
		}
	}
}

// open opens a driver if it is not open.
func (s *server) open(i int, load bool) driver {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opened[i] == nil {
		s.opened[i], s.why[i] = s.openers[i].open(s.cfg, load)
		if s.why[i] != nil {
			s.opened[i] = nil
		}
	}
	return s.opened[i]
}

// drivers is those that are open.
func (s *server) drivers() []driver {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.opened), func(d driver) bool { return d == nil })
}

// best is the driver for new devices, nil if there is none, and why no better one.
func (s *server) best() (driver, string) {
	var why []string
	for i, o := range s.openers {
		if d := s.open(i, true); d != nil {
			return d, strings.Join(why, "; ")
		}
		s.mu.Lock()
		why = append(why, reason(o.kind, s.why[i]))
		s.mu.Unlock()
	}
	return nil, strings.Join(why, "; ")
}

// reason is why a driver is not open, with its name once.
func reason(kind string, err error) string {
	text := err.Error()
	if strings.HasPrefix(text, kind) {
		return text
	}
	return kind + ": " + text
}

// handle is an ipc.Handler.
func (s *server) handle(ctx context.Context, method string, body []byte, files []*os.File) (any, error) {
	for _, f := range files {
		f.Close() //nolint:errcheck // no method takes any
	}
	switch method {
	case ipc.MethodDeviceHello:
		return s.hello(), nil
	case ipc.MethodDeviceMake:
		return with(body, func(r *ipc.DeviceMakeRequest) (any, error) { return s.make(ctx, r) })
	case ipc.MethodDeviceStart:
		return with(body, func(r *ipc.DeviceStartRequest) (any, error) { return s.start(ctx, r) })
	case ipc.MethodDeviceRemove:
		return with(body, func(r *ipc.DeviceRemoveRequest) (any, error) { return ipc.Empty{}, s.remove(ctx, r) })
	case ipc.MethodDeviceResize:
		return with(body, func(r *ipc.DeviceResizeRequest) (any, error) { return ipc.Empty{}, s.resize(ctx, r) })
	case ipc.MethodDeviceList:
		return s.list(ctx)
	}
	return nil, refuse(ipc.CodeInvalid, "there is no method %q", method)
}

// with decodes and checks a request.
func with[T any](body []byte, do func(*T) (any, error)) (any, error) {
	r := new(T)
	if err := ipc.Decode(body, r); err != nil {
		return nil, refuse(ipc.CodeInvalid, "%v", err)
	}
	if err := check(r); err != nil {
		return nil, err
	}
	return do(r)
}

func (s *server) hello() ipc.DevicesHello {
	h := ipc.DevicesHello{Version: s.cfg.Version, PID: os.Getpid()}
	d, why := s.best()
	h.Why = why
	if d != nil {
		h.Kind = d.kind()
		r, ok := d.(interface{ resizes() bool })
		h.Resize = ok && r.resizes()
	}
	return h
}

func (s *server) make(ctx context.Context, r *ipc.DeviceMakeRequest) (any, error) {
	ctx, release, err := s.holds.take(ctx, r.Lease, false)
	if err != nil {
		return nil, err
	}
	defer release()
	d, err := s.driverFor(ctx, r.Lease)
	if err != nil {
		return nil, err
	}
	made, f, err := d.make(ctx, r)
	if err != nil {
		return nil, err
	}
	if f == nil {
		return made, nil
	}
	return ipc.WithFiles{Body: made, Files: []*os.File{f}}, nil
}

// driverFor is the driver that has a lease's device, or else the best.
func (s *server) driverFor(ctx context.Context, lease string) (driver, error) {
	best, why := s.best()
	if best == nil {
		return nil, refuse(ipc.CodeUnsupported, "this host can have no block devices of leases: %s", why)
	}
	for _, d := range s.drivers() {
		if d == best {
			continue
		}
		list, err := d.list(ctx)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(d ipc.Device) bool { return d.Lease == lease }) {
			return d, nil
		}
	}
	return best, nil
}

// each asks drivers until one has the lease's device.
func (s *server) each(lease string, ask func(driver) error) error {
	for _, d := range s.drivers() {
		if err := ask(d); !errors.Is(err, errNoDevice) {
			return err
		}
	}
	return refuse(ipc.CodeNotFound, "lease %s has no block device", lease)
}

func (s *server) start(ctx context.Context, r *ipc.DeviceStartRequest) (any, error) {
	ctx, release, err := s.holds.take(ctx, r.Lease, false)
	if err != nil {
		return nil, err
	}
	defer release()
	dev := ipc.Device{Lease: r.Lease, Path: s.links.path(r.Lease), Live: true}
	err = s.each(r.Lease, func(d driver) (err error) {
		dev.Kind = d.kind()
		if r.Served {
			if err := d.served(ctx, r.Lease, r.UID); err != nil {
				return err
			}
		}
		dev.Node, err = d.start(ctx, r.Lease, r.PID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.links.set(r.Lease, dev.Node); err != nil {
		return nil, fmt.Errorf("linking %s to %s: %w", dev.Path, dev.Node, err)
	}
	dev.SizeBytes = s.size(filepath.Base(dev.Node))
	return dev, nil
}

// remove succeeds where there is nothing to remove.
func (s *server) remove(ctx context.Context, r *ipc.DeviceRemoveRequest) error {
	ctx, release, err := s.holds.take(ctx, r.Lease, r.Force)
	if err != nil {
		return err
	}
	defer release()
	err = s.each(r.Lease, func(d driver) error { return d.remove(ctx, r.Lease, r.Force) })
	var remote *ipc.RemoteError
	if errors.As(err, &remote) && remote.Code == ipc.CodeNotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	return s.links.remove(r.Lease)
}

func (s *server) resize(ctx context.Context, r *ipc.DeviceResizeRequest) error {
	ctx, release, err := s.holds.take(ctx, r.Lease, false)
	if err != nil {
		return err
	}
	defer release()
	return s.each(r.Lease, func(d driver) error { return d.resize(ctx, r.Lease, r.SizeBytes) })
}

func (s *server) list(ctx context.Context) (any, error) {
	all := ipc.DeviceList{Devices: []ipc.Device{}}
	for _, d := range s.drivers() {
		list, err := d.list(ctx)
		if err != nil {
			return nil, err
		}
		for _, dev := range list {
			if leaseID(dev.Lease) {
				dev.Path = s.links.path(dev.Lease)
				all.Devices = append(all.Devices, dev)
			}
		}
	}
	slices.SortFunc(all.Devices, func(a, b ipc.Device) int { return cmp.Compare(a.Lease, b.Lease) })
	return all, nil
}

// clear removes every device of this run folder.
func (s *server) clear(ctx context.Context) (err error) {
	for _, d := range s.drivers() {
		err = errors.Join(err, d.clear(ctx))
	}
	return err
}

// tidy removes what processes of before have left half made.
func (s *server) tidy(ctx context.Context) (err error) {
	for _, d := range s.drivers() {
		if t, ok := d.(interface{ tidy(context.Context) error }); ok {
			err = errors.Join(err, t.tidy(ctx))
		}
	}
	return err
}
