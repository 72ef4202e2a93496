package control

import (
	"context"
	"os"

	"vacate/internal/ipc"
)

// engine calls the engine over the socket that the keeper made. It is a
// [node.Engine].
type engine struct{ c *ipc.Client }

func call[Resp any](ctx context.Context, e engine, method string, req any, file *os.File) (Resp, error) {
	var resp Resp
	err := e.c.Call(ctx, method, req, &resp, file)
	return resp, err
}

func (e engine) Hello(ctx context.Context) (ipc.Hello, error) {
	return call[ipc.Hello](ctx, e, ipc.MethodHello, ipc.Empty{}, nil)
}

func (e engine) Inspect(ctx context.Context, req ipc.InspectRequest) (ipc.Inspection, error) {
	return call[ipc.Inspection](ctx, e, ipc.MethodInspect, req, nil)
}

func (e engine) Enroll(ctx context.Context, req ipc.EnrollRequest) (ipc.DriveInfo, error) {
	return call[ipc.DriveInfo](ctx, e, ipc.MethodEnroll, req, nil)
}

func (e engine) OpenDrive(ctx context.Context, req ipc.DriveOpenRequest) (ipc.DriveInfo, error) {
	return call[ipc.DriveInfo](ctx, e, ipc.MethodDriveOpen, req, nil)
}

func (e engine) CloseDrive(ctx context.Context, req ipc.DriveCloseRequest) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodDriveClose, req, nil)
	return err
}

func (e engine) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, listener *os.File) (ipc.LeaseOpened, error) {
	return call[ipc.LeaseOpened](ctx, e, ipc.MethodLeaseOpen, req, listener)
}

func (e engine) CloseLease(ctx context.Context, id string) (ipc.Erasure, error) {
	return call[ipc.Erasure](ctx, e, ipc.MethodLeaseClose, ipc.LeaseRef{Lease: id}, nil)
}

func (e engine) Drain(ctx context.Context, id string) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodLeaseDrain, ipc.LeaseRef{Lease: id}, nil)
	return err
}

func (e engine) Leases(ctx context.Context) (ipc.LeaseList, error) {
	return call[ipc.LeaseList](ctx, e, ipc.MethodLeaseList, ipc.Empty{}, nil)
}

func (e engine) Stats(ctx context.Context) (ipc.Stats, error) {
	return call[ipc.Stats](ctx, e, ipc.MethodStats, ipc.Empty{}, nil)
}
