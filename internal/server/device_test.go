package server

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// fakeDevices are devices in a map.
type fakeDevices struct {
	mu      sync.Mutex
	all     map[string]ipc.Device
	resized map[string]int64
	none    error // of Ready
	fail    error // of Attach and Detach
	once    bool  // a second Attach of a lease fails
}

// set has calls end with these errors.
func (f *fakeDevices) set(none, fail error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.none, f.fail = none, fail
}

func (f *fakeDevices) size(id string) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.resized[id]
}

func (f *fakeDevices) Ready(context.Context, lease.Exports) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.none
}

func (f *fakeDevices) Attach(_ context.Context, l lease.Lease) (ipc.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return ipc.Device{}, f.fail
	}
	if f.all == nil {
		f.all = map[string]ipc.Device{}
	}
	if _, has := f.all[l.ID]; has && f.once {
		return ipc.Device{}, errors.New("attached again")
	}
	d := ipc.Device{Lease: l.ID, Kind: ipc.DeviceUblk, Path: "/dev/vacate/" + l.ID}
	f.all[l.ID] = d
	return d, nil
}

func (f *fakeDevices) Detach(_ context.Context, id string, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	delete(f.all, id)
	return nil
}

func (f *fakeDevices) Resized(_ context.Context, id string, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.resized == nil {
		f.resized = map[string]int64{}
	}
	f.resized[id] = bytes
}

func (f *fakeDevices) Device(id string) (ipc.Device, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.all[id]
	return d, ok
}

func (f *fakeDevices) Status(context.Context) (ipc.DevicesHello, int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return ipc.DevicesHello{Kind: ipc.DeviceUblk}, len(f.all)
}

// TestDevices: a lease shows its device, from its attach to its detach.
func TestDevices(t *testing.T) {
	d := start(t)
	c := d.as(uidTenant)
	res, err := c.Leases.Attach(t.Context(), &vacatev1.LeaseServiceAttachRequest{Id: idOwn})
	if l := res.GetLease(); err != nil || l.GetDevice() != "/dev/vacate/"+idOwn || l.GetDeviceKind() != ipc.DeviceUblk {
		t.Fatalf("%v, %v", l, err)
	}
	got, err := c.Leases.Get(t.Context(), &vacatev1.LeaseServiceGetRequest{Id: idOwn})
	if err != nil || got.GetLease().GetDevice() == "" {
		t.Errorf("%v, %v", got, err)
	}
	d.devs.set(nil, &node.Error{Kind: node.Refused, Object: idOwn, Text: "it is mounted at /srv", Next: "unmount it"})
	_, err = c.Leases.Detach(t.Context(), &vacatev1.LeaseServiceDetachRequest{Id: idOwn})
	if p := client.ProblemOf(err); connect.CodeOf(err) != connect.CodeFailedPrecondition || p.GetNext() != "unmount it" || !strings.Contains(err.Error(), "/srv") {
		t.Errorf("%v, %v", err, p)
	}
	d.devs.set(nil, nil)
	out, err := c.Leases.Detach(t.Context(), &vacatev1.LeaseServiceDetachRequest{Id: idOwn})
	if err != nil || out.GetLease().GetDevice() != "" || out.GetLease().GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN {
		t.Errorf("%v, %v", out, err)
	}
	d.devs.set(nil, &node.Error{Kind: node.Refused, Text: "busy"})
	if _, err := c.Leases.Close(t.Context(), &vacatev1.LeaseServiceCloseRequest{Id: idOwn}); err != nil {
		t.Errorf("a device keeps a lease from being closed: %v", err)
	}
}

// TestDeviceOperator: status counts devices, and a resize, but not its plan, is told.
func TestDeviceOperator(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	if _, err := c.Leases.Attach(t.Context(), &vacatev1.LeaseServiceAttachRequest{Id: idOwn}); err != nil {
		t.Fatal(err)
	}
	st, err := c.Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
	if dv := st.GetDevices(); err != nil || dv.GetKind() != ipc.DeviceUblk || dv.GetCount() != 1 {
		t.Errorf("%v, %v", dv, err)
	}
	if _, err := c.Leases.Resize(t.Context(), &vacatev1.LeaseServiceResizeRequest{Id: idOwn, SizeBytes: 2 << 30, Plan: true}); err != nil || d.devs.size(idOwn) != 0 {
		t.Errorf("a plan resized it to %d, %v", d.devs.size(idOwn), err)
	}
	if _, err := c.Leases.Resize(t.Context(), &vacatev1.LeaseServiceResizeRequest{Id: idOwn, SizeBytes: 2 << 30}); err != nil || d.devs.size(idOwn) != 2<<30 {
		t.Errorf("resized to %d, %v", d.devs.size(idOwn), err)
	}
}

// TestOpenAttached: with attach, a lease has its device when it is open, or is not
// opened.
func TestOpenAttached(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	req := &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096, Attach: true}
	d.devs.once = true // whose failure would leave a lease that nobody knows of
	res, err := c.Leases.Open(t.Context(), req)
	if l := res.GetLease(); err != nil || l.GetDevice() != "/dev/vacate/"+l.GetId() {
		t.Fatalf("%v, %v", l, err)
	}
	open := func() int { return len(d.node.List(true)) }
	was := open()
	d.devs.set(nil, &node.Error{Kind: node.Full, Text: "no more devices"})
	if _, err := c.Leases.Open(t.Context(), req); connect.CodeOf(err) != connect.CodeResourceExhausted || open() != was {
		t.Errorf("%v, %d leases, were %d", err, open(), was)
	}
	d.devs.set(errNoDevices, nil)
	if _, err := c.Leases.Open(t.Context(), req); connect.CodeOf(err) != connect.CodeUnimplemented || client.ProblemOf(err).GetKind() != "unsupported" || open() != was {
		t.Errorf("%v, %d leases, were %d", err, open(), was)
	}
	if _, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096}); err != nil || open() != was+1 {
		t.Errorf("without a device: %v", err)
	}
}

// TestNoDevices: a server without devices says so.
func TestNoDevices(t *testing.T) {
	d := start(t, func(c *Config) { c.Devices = nil })
	c := d.as(uidOperator)
	if _, err := c.Leases.Attach(t.Context(), &vacatev1.LeaseServiceAttachRequest{Id: idOwn}); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Error(err)
	}
	if _, err := c.Leases.Detach(t.Context(), &vacatev1.LeaseServiceDetachRequest{Id: idOwn}); err != nil {
		t.Error(err)
	}
	st, err := c.Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
	if err != nil || st.GetDevices().GetKind() != "" || st.GetDevices().GetWhy() == "" {
		t.Errorf("%v, %v", st.GetDevices(), err)
	}
}

// TestOpenAttachedAgain: who repeats an opening, whose answer was lost, while no device
// can be had any more, learns which lease there is.
func TestOpenAttachedAgain(t *testing.T) {
	d := start(t)
	l := fakeLease("cccccccccccccccc", uidTenant, lease.Open)
	l.Key = "mine"
	d.node.mu.Lock()
	d.node.put(l)
	d.node.found = l.ID
	d.node.mu.Unlock()
	d.devs.set(errNoDevices, &node.Error{Kind: node.Unsupported, Object: l.ID, Text: "none any more"})
	c := d.as(uidOperator)
	req := &vacatev1.LeaseServiceOpenRequest{SizeBytes: l.SizeBytes, Tenant: l.Tenant, Attach: true, IdempotencyKey: l.Key}
	_, err := c.Leases.Open(t.Context(), req)
	if p := client.ProblemOf(err); p.GetObject() != l.ID {
		t.Errorf("%v, %v", err, p)
	}
	for _, other := range []*vacatev1.LeaseServiceOpenRequest{
		{SizeBytes: l.SizeBytes, Tenant: l.Tenant, Attach: true, IdempotencyKey: "another"},
		{SizeBytes: l.SizeBytes, Tenant: "another", Attach: true, IdempotencyKey: l.Key},
		{SizeBytes: l.SizeBytes, Tenant: l.Tenant, Attach: true},
	} {
		_, err := c.Leases.Open(t.Context(), other)
		if p := client.ProblemOf(err); p.GetKind() != "unsupported" || p.GetObject() != "" {
			t.Errorf("%v: %v, %v", other, err, p)
		}
	}
}
