package engine

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/export/ublk"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
)

// A testDevice stands for an [ublk.Server]: it has one queue of the volume while it is
// served. A request of it hangs if hung is not nil.
type testDevice struct {
	t    testing.TB
	gone chan struct{}

	mu     sync.Mutex
	calls  []string
	queue  blk.Queue
	size   int64
	fails  int           // so many resumes
	hung   chan struct{} // closed when the drive answers
	closed bool
}

func (d *testDevice) call(what string) { d.calls = append(d.calls, what) }

func (d *testDevice) called(what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.calls, what)
}

func (d *testDevice) Resume(v blk.Device) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.call("resume")
	switch {
	case d.closed:
		return nil
	case d.queue != nil:
		return ublk.ErrServed
	case d.fails > 0:
		d.fails--
		return syscall.ENOMEM
	}
	d.queue, err = v.NewQueue(1)
	d.size = v.Geometry().Size
	return err
}

// rest gives the queue back once nothing hangs.
func (d *testDevice) rest(ctx context.Context) error {
	d.mu.Lock()
	hung := d.hung
	d.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-ctx.Done():
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if d.queue != nil {
		check(d.t, d.queue.Close())
		d.queue = nil
	}
	return nil
}

func (d *testDevice) Pause(ctx context.Context) error {
	err := d.rest(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.call("paused")
	}
	return err
}

func (d *testDevice) Hurry() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.call("hurry")
}

func (d *testDevice) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.call("close")
	d.closed = true
}

func (d *testDevice) Wait()                 { _ = d.rest(context.Background()) }
func (d *testDevice) Gone() <-chan struct{} { return d.gone }

// reads reports whether a request is carried out.
func (d *testDevice) reads() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.queue == nil {
		return false
	}
	buf := buffer(d.t, blk.BlockSize)
	r := blk.Request{Op: blk.OpRead, Off: d.size - blk.BlockSize, Len: blk.BlockSize, Buf: buf}
	blk.Do(d.queue, &r)
	return r.Errno == 0
}

// withDevices is a host whose engines serve devices of the test; made has them all.
func withDevices(t testing.TB, change ...func(*Config)) (h *host, made func() []*testDevice) {
	var mu sync.Mutex
	var all []*testDevice
	serve := func(cfg *Config) {
		cfg.serveBlock = func(*os.File, ublk.Config) (blockDevice, error) {
			mu.Lock()
			defer mu.Unlock()
			d := &testDevice{t: t, gone: make(chan struct{})}
			all = append(all, d)
			return d, nil
		}
	}
	h = newHost(t, append(change, serve)...)
	return h, func() []*testDevice {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

func (h *host) attach(id string) error {
	h.t.Helper()
	null, err := os.Open(os.DevNull)
	check(h.t, err)
	defer null.Close() //nolint:errcheck // only read
	_, err = do[ipc.Empty](h, ipc.MethodDeviceServe, ipc.DeviceServeRequest{Lease: id, Queues: 1, Depth: 8, MaxIO: blk.MaxTransfer}, null)
	return err
}

// TestDeviceServe: the device of a lease that is open is served, and no other.
func TestDeviceServe(t *testing.T) {
	h, made := withDevices(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	wantCode(t, h.attach(req.Lease), ipc.CodeNotFound)
	h.open(req)
	for _, r := range []ipc.DeviceServeRequest{{Lease: req.Lease}, {Lease: req.Lease, Queues: 1, Depth: 8, MaxIO: blk.MaxTransfer}} {
		body, err := json.Marshal(r)
		check(t, err)
		_, err = h.Handle(t.Context(), ipc.MethodDeviceServe, body, nil)
		wantCode(t, err, ipc.CodeInvalid)
	}
	check(t, h.attach(req.Lease))
	if d := made()[0]; !d.reads() {
		t.Error("a device's requests are not carried out")
	}
	wantCode(t, h.attach(req.Lease), ipc.CodeBusy)
	first := made()[0]
	check(t, first.rest(t.Context()))
	close(first.gone) // detached
	check(t, h.attach(req.Lease))
	if all := made(); len(all) != 2 || !all[1].reads() {
		t.Errorf("%d devices were begun", len(all))
	}
	h.keeper.set(func() { h.keeper.wipeErr = errors.New("the keeper says no") })
	if _, err := h.close(req.Lease); err == nil {
		t.Fatal("control: the keeper failed, and the close did not")
	}
	wantCode(t, h.attach(req.Lease), ipc.CodeNotFound)
	h.keeper.set(func() { h.keeper.wipeErr = nil })
	_, err := h.close(req.Lease)
	check(t, err)
	h.drained(req.Lease)
	wantCode(t, h.attach(req.Lease), ipc.CodeNotFound)
	held := request(2, uuid, 1)
	held.Hold = true
	h.open(held)
	wantCode(t, h.attach(held.Lease), ipc.CodeBusy)
	if n := len(made()); n != 2 {
		t.Errorf("%d devices were begun, want 2", n)
	}
}

// TestDeviceNoMemory: requests of a device that cannot be carried out for lack of
// memory wait, and do not fail: it may be mounted.
func TestDeviceNoMemory(t *testing.T) {
	h, made := withDevices(t)
	serve := h.cfg.serveBlock
	h.Engine.cfg.serveBlock = func(f *os.File, cfg ublk.Config) (blockDevice, error) {
		d, err := serve(f, cfg)
		d.(*testDevice).fails = 2
		return d, err
	}
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	h.open(req)
	check(t, h.attach(req.Lease))
	d := made()[0]
	if d.reads() {
		t.Fatal("control: there is memory")
	}
	eventually(t, "the device to be served", d.reads)
	if d.called("close") {
		t.Error("a device whose requests wait was closed")
	}
	wantCode(t, h.attach(req.Lease), ipc.CodeBusy)
}

// TestL5CloseWithDevice: a close waits for no request of a device; what is in a cipher
// call is hurried, since the wipe waits for it.
func TestL5CloseWithDevice(t *testing.T) {
	h, made := withDevices(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	h.open(req)
	check(t, h.attach(req.Lease))
	d := made()[0]
	d.hung = make(chan struct{})
	hurried := false
	h.keeper.onWipe = func(int) { hurried = d.called("hurry") }
	er, err := h.close(req.Lease)
	if err != nil || !er.ReadBack || er.Drained {
		t.Errorf("closed: %+v, %v", er, err)
	}
	if !hurried {
		t.Error("L5: the key was wiped before the device's threads were hurried")
	}
	if !d.called("close") {
		t.Error("the device was not closed")
	}
	wantCode(t, h.attach(req.Lease), ipc.CodeNotFound)
	if h.tenancy(req.Lease).isGone() {
		t.Error("it has drained, and a request is in flight")
	}
	close(d.hung)
	h.drained(req.Lease)
}

// TestDeviceOfDamaged: no device is served of a lease whose close could not be noted.
func TestDeviceOfDamaged(t *testing.T) {
	h, made := withDevices(t)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	h.open(req)
	release := h.hang(req.Lease)
	h.damage(int64(req.Slot))
	_, err := h.close(req.Lease)
	check(t, err)
	wantCode(t, h.attach(req.Lease), ipc.CodeNotFound)
	if n := len(made()); n != 0 {
		t.Errorf("%d devices were begun", n)
	}
	release()
	h.drained(req.Lease)
}

// TestDeviceResize: a resize brings a device to rest, one that comes meanwhile waits,
// and both go on with the new size. Where there is no memory for that at first, it is
// tried again.
func TestDeviceResize(t *testing.T) {
	for what, fails := range map[string]int{"at once": 0, "without memory": 2} {
		t.Run(what, func(t *testing.T) {
			h, made := withDevices(t)
			_, uuid := h.drive(h.dir)
			before, within := request(1, uuid, 0), request(2, uuid, 1)
			h.open(before)
			h.open(within)
			check(t, h.attach(before.Lease))
			d := made()[0]
			d.fails = fails
			check(t, h.resize(larger(before, 2, 16)))
			eventually(t, "the device to be served", d.reads)
			if d.size != 10<<20 || !d.called("paused") {
				t.Errorf("after a resize to 10 MiB the device has %d bytes; %q", d.size, d.calls)
			}
			answer := h.hang(within.Lease)
			resized := make(chan error, 1)
			go func() { resized <- h.resize(larger(within, 2, 24)) }()
			in := h.tenancy(within.Lease)
			eventually(t, "the resize to wait", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.parting })
			check(t, h.attach(within.Lease))
			d = made()[1]
			if d.reads() {
				t.Error("a device is served by a path that comes to rest")
			}
			d.mu.Lock()
			d.fails = fails
			d.mu.Unlock()
			answer()
			check(t, <-resized)
			eventually(t, "the device to be served", d.reads)
			if d.size != 10<<20 {
				t.Errorf("after a resize to 10 MiB the device has %d bytes", d.size)
			}
		})
	}
}

// TestL5CloseWithinDeviceResize: a resize waits for a device whose drive hangs, and a
// close does not.
func TestL5CloseWithinDeviceResize(t *testing.T) {
	h, made := withDevices(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	h.open(req)
	check(t, h.attach(req.Lease))
	d := made()[0]
	d.hung = make(chan struct{})
	resized := make(chan error, 1)
	go func() { resized <- h.resize(larger(req, 2, 8)) }()
	in := h.tenancy(req.Lease)
	eventually(t, "the resize to wait", func() bool { in.mu.Lock(); defer in.mu.Unlock(); return in.parting })
	er, err := h.close(req.Lease)
	if err != nil || !er.ReadBack || er.Drained || !d.called("close") {
		t.Errorf("closed: %+v, %v; %q", er, err, d.calls)
	}
	if err := <-resized; err == nil {
		t.Error("resized, and it was closed")
	}
	close(d.hung)
	h.drained(req.Lease)
}

// TestLeaveWithDevice: an engine that leaves brings devices to rest, whatever other
// clients of their leases do, and waits for those whose drive hangs no longer than
// for connections.
func TestLeaveWithDevice(t *testing.T) {
	h, made := withDevices(t)
	_, uuid := h.drive(h.dir)
	busy, hung := request(1, uuid, 0), request(2, uuid, 1)
	_, cut := dial(t, h.open(busy), nbdclient.Options{})
	h.open(hung)
	check(t, h.attach(busy.Lease))
	check(t, h.attach(hung.Lease))
	all := made()
	all[1].hung = make(chan struct{})
	halfWrite(t, cut, make([]byte, 8192))
	eventually(t, "it to be received, else it is passed as it is", func() bool { return unread(t, cut) == 0 })
	began := time.Now()
	h.leave(t.Context())
	if took := time.Since(began); took < leaveWithin || took > leaveWithin+time.Minute {
		t.Errorf("leaving took %v, want %v", took, leaveWithin)
	}
	if !all[0].called("paused") {
		t.Error("a device had no time to come to rest, since a connection took it all")
	}
	if all[1].called("paused") || all[0].called("close") || all[1].called("close") {
		t.Errorf("devices were told %q and %q", all[0].calls, all[1].calls)
	}
	close(all[1].hung)
	check(t, all[1].rest(t.Context()))
	h.crash()()
	h.takeOver()
	for _, req := range []ipc.LeaseOpenRequest{busy, hung} {
		check(t, h.attach(req.Lease))
	}
	for _, d := range made()[2:] {
		eventually(t, "the device to be served by the next engine", d.reads)
	}
}
