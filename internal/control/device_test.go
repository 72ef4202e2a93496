package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// devices is a devices process that the test plays, and what the engine has of it.
type devices struct {
	mu     sync.Mutex
	all    map[string]ipc.Device
	served []string
	fail   error // of device.start
	forced int
}

// start has it connect to whatever control there is, until the test ends.
func (d *devices) start(w *world) {
	d.all = map[string]ipc.Device{}
	var served sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	served.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(w.cfg.RunDir, "devices.sock"), Net: "unix"})
			if err != nil {
				continue // it does not listen yet
			}
			f, err := c.File()
			c.Close() //nolint:errcheck // the file goes on
			if err == nil {
				ipc.Serve(ctx, f, d.handle) //nolint:errcheck // control may reset it
				f.Close()                   //nolint:errcheck // likewise
			}
		}
	})
	w.t.Cleanup(func() {
		cancel()
		served.Wait()
	})
}

func (d *devices) handle(ctx context.Context, method string, body []byte, _ []*os.File) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch method {
	case ipc.MethodDeviceHello:
		return ipc.DevicesHello{Kind: ipc.DeviceUblk}, nil
	case ipc.MethodDeviceMake:
		return with(ctx, body, func(_ context.Context, r ipc.DeviceMakeRequest) (any, error) {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return nil, err
			}
			d.all[r.Lease] = ipc.Device{Lease: r.Lease, Kind: ipc.DeviceUblk, Path: "/dev/vacate/" + r.Lease, SizeBytes: r.SizeBytes}
			return ipc.WithFiles{Body: ipc.DeviceMade{Kind: ipc.DeviceUblk, Queues: 1, Depth: 2, MaxIO: 4096}, Files: []*os.File{f}}, nil
		})
	case ipc.MethodDeviceStart:
		return with(ctx, body, func(_ context.Context, r ipc.DeviceStartRequest) (ipc.Device, error) {
			v := d.all[r.Lease]
			v.Live = true
			if d.fail == nil {
				d.all[r.Lease] = v
			}
			return v, d.fail
		})
	case ipc.MethodDeviceRemove:
		return with(ctx, body, func(_ context.Context, r ipc.DeviceRemoveRequest) (ipc.Empty, error) {
			if r.Force {
				d.forced++
			}
			delete(d.all, r.Lease)
			return ipc.Empty{}, nil
		})
	case ipc.MethodDeviceList:
		var res ipc.DeviceList
		for _, v := range d.all {
			res.Devices = append(res.Devices, v)
		}
		return res, nil
	}
	return nil, errors.New("no such method: " + method)
}

// serve is the engine's part.
func (d *devices) serve(r ipc.DeviceServeRequest, files []*os.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(files) != 1 || r.Queues != 1 || r.Depth != 2 || r.MaxIO != 4096 {
		return fmt.Errorf("the engine is asked to serve %+v with %d files", r, len(files))
	}
	d.served = append(d.served, r.Lease)
	return nil
}

// stale has all devices wait for the next engine, as the kernel does.
func (d *devices) stale() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, v := range d.all {
		v.Live = false
		d.all[id] = v
	}
}

func (d *devices) live() (all []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, v := range d.all {
		if v.Live {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all
}

func (d *devices) failing(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

// TestDevices: a lease is opened with a device, which the next engine serves, and the
// next control knows, and which goes with the lease.
func TestDevices(t *testing.T) {
	w := newWorld(t)
	w.devices.start(w)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	req := &vacatev1.LeaseServiceOpenRequest{SizeBytes: 1 << 20, Attach: true, IdempotencyKey: "k"}
	var id string
	for range 2 {
		res, err := w.client.Leases.Open(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		id = res.GetLease().GetId()
		if d := res.GetLease(); d.GetDevice() != "/dev/vacate/"+id || d.GetDeviceKind() != ipc.DeviceUblk {
			t.Errorf("opened with %q, %q", d.GetDevice(), d.GetDeviceKind())
		}
	}
	if st := w.status().GetDevices(); st.GetKind() != ipc.DeviceUblk || st.GetCount() != 1 {
		t.Errorf("status %v", st)
	}
	is := func() bool { return slices.Equal(w.devices.live(), []string{id}) }

	w.engine()
	w.devices.stale()
	w.sim.CrashEngine()
	w.connect()
	eventually(t, "the next engine serves it", is)
	if _, err := w.client.Leases.Close(t.Context(), &vacatev1.LeaseServiceCloseRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it went with its lease", func() bool { return w.status().GetDevices().GetCount() == 0 && len(w.devices.live()) == 0 })
	if w.devices.forced != 1 {
		t.Errorf("removed by force %d times", w.devices.forced)
	}
}

// TestDeviceFails: where a device cannot be had, no lease is left, and its idempotency
// key is free.
func TestDeviceFails(t *testing.T) {
	w := newWorld(t)
	w.devices.start(w)
	w.start()
	w.connect()
	w.hear(volatile.KindReady)
	w.devices.failing(&ipc.RemoteError{Code: ipc.CodeUnsupported, Text: "it takes Linux 6.4"})
	req := &vacatev1.LeaseServiceOpenRequest{SizeBytes: 1 << 20, Attach: true, IdempotencyKey: "k"}
	_, err := w.client.Leases.Open(t.Context(), req)
	if p := client.ProblemOf(err); connect.CodeOf(err) != connect.CodeUnimplemented || p.GetKind() != "unsupported" {
		t.Errorf("%v, %v", err, p)
	}
	if st := w.status(); st.GetLeases()["open"] != 0 || st.GetDevices().GetCount() != 0 || st.GetFreeBytes() != st.GetCapacityBytes() {
		t.Errorf("left: %v", st)
	}
	w.devices.failing(nil)
	res, err := w.client.Leases.Open(t.Context(), req)
	if err != nil || res.GetLease().GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN || len(w.devices.live()) != 1 {
		t.Errorf("%v, %v", res, err)
	}
}
