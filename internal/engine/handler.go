package engine

import (
	"context"
	"os"

	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// Handle carries out one call of control's. It is an [ipc.Handler].
func (e *Engine) Handle(ctx context.Context, method string, body []byte, files []*os.File) (any, error) {
	defer func() {
		for _, f := range files {
			f.Close() //nolint:errcheck // what needs it has a duplicate
		}
	}()
	switch method {
	case ipc.MethodHello:
		return e.cfg.Hello, nil
	case ipc.MethodInspect:
		return call(body, func(req *ipc.InspectRequest) (*ipc.Inspection, error) { return e.inspect(ctx, req) })
	case ipc.MethodEnroll:
		return call(body, func(req *ipc.EnrollRequest) (*ipc.DriveInfo, error) { return e.enroll(ctx, req) })
	case ipc.MethodDriveOpen:
		return call(body, func(req *ipc.DriveOpenRequest) (*ipc.DriveInfo, error) { return e.openDrive(ctx, req) })
	case ipc.MethodDriveClose:
		return call(body, func(req *ipc.DriveCloseRequest) (*ipc.Empty, error) { return e.closeDrive(ctx, req) })
	case ipc.MethodLeaseOpen:
		return call(body, func(req *ipc.LeaseOpenRequest) (*ipc.LeaseOpened, error) { return e.openLease(req, files) })
	case ipc.MethodLeaseServe:
		return call(body, func(ref *ipc.LeaseRef) (*ipc.Empty, error) { return e.serveLease(ref.Lease) })
	case ipc.MethodLeasePrepare:
		return call(body, func(ref *ipc.LeaseRef) (*ipc.LeasePrepared, error) { return e.prepareLease(ref.Lease) })
	case ipc.MethodLeaseRelease:
		return call(body, func(req *ipc.LeaseReleaseRequest) (*ipc.LeaseReleased, error) { return e.releaseKey(req) })
	case ipc.MethodLeaseRaw:
		return call(body, func(req *ipc.LeaseRawRequest) (*ipc.LeaseRaw, error) { return e.rawBlocks(ctx, req) })
	case ipc.MethodLeaseLimit:
		return call(body, func(req *ipc.LeaseLimitRequest) (*ipc.Empty, error) { return e.limitLease(req) })
	case ipc.MethodLeaseResize:
		return call(body, func(req *ipc.LeaseResizeRequest) (*ipc.Empty, error) { return e.resizeLease(ctx, req) })
	case ipc.MethodLeaseClose:
		return call(body, func(ref *ipc.LeaseRef) (*ipc.Erasure, error) { return e.closeLease(ref.Lease) })
	case ipc.MethodLeaseDrain:
		return call(body, func(ref *ipc.LeaseRef) (*ipc.Empty, error) { return e.drain(ctx, ref.Lease) })
	case ipc.MethodLeaseList:
		return e.list(), nil
	case ipc.MethodDeviceServe:
		return call(body, func(req *ipc.DeviceServeRequest) (*ipc.Empty, error) { return e.serveDevice(req, files) })
	case ipc.MethodDeviceServed:
		return call(body, func(ref *ipc.LeaseRef) (*ipc.DeviceServed, error) { return e.deviceServed(ref.Lease), nil })
	case ipc.MethodLosses:
		return call(body, func(req *ipc.LossesRequest) (*ipc.Losses, error) { return e.awaitLosses(ctx, req.Seen) })
	case ipc.MethodStats:
		return e.stats(), nil
	}
	return nil, invalid("the engine knows no call %q", method)
}

// call decodes a request strictly and hands it to fn.
func call[Req, Resp any](body []byte, fn func(*Req) (*Resp, error)) (any, error) {
	var req Req
	if err := ipc.Decode(body, &req); err != nil {
		return nil, &ipc.RemoteError{Code: ipc.CodeInvalid, Text: err.Error()}
	}
	resp, err := fn(&req)
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// drain waits until nothing of the lease is in flight, and its slot and space
// are free in this engine. A lease that the engine does not hold has drained.
func (e *Engine) drain(ctx context.Context, id string) (*ipc.Empty, error) {
	t, _, _ := e.lease(id)
	if t == nil {
		return &ipc.Empty{}, nil
	}
	select {
	case <-t.gone:
		return &ipc.Empty{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (e *Engine) list() *ipc.LeaseList {
	list := &ipc.LeaseList{Leases: []ipc.LeaseStatus{}}
	for _, t := range e.tenancies() {
		t.mu.Lock()
		list.Leases = append(list.Leases, ipc.LeaseStatus{Lease: t.id, Slot: t.slot, Erased: t.erasure != nil,
			Held: t.rec.State == volatile.StateOpening, SizeBytes: int64(t.rec.SizeBytes), Limits: fromRecord(t.rec.Limits)})
		t.mu.Unlock()
	}
	return list
}

func (e *Engine) tenancies() []*tenancy {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*tenancy, 0, len(e.ready))
	for _, t := range e.ready {
		all = append(all, t)
	}
	return all
}
