package control

import (
	"context"

	"vacate/internal/ipc"
)

// ServeLease lets clients into a lease that was opened with Hold.
func (e *engine) ServeLease(ctx context.Context, id string) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodLeaseServe, ipc.LeaseRef{Lease: id})
	return err
}

// PrepareLease makes a recipient key for the tenant's share of a lease's key.
func (e *engine) PrepareLease(ctx context.Context, id string) (ipc.LeasePrepared, error) {
	return call[ipc.LeasePrepared](ctx, e, ipc.MethodLeasePrepare, ipc.LeaseRef{Lease: id})
}

// ReleaseLease seals the key of an open lease to the tenant's recipient key.
//
// REQUIRES: the record of it is durable.
func (e *engine) ReleaseLease(ctx context.Context, req ipc.LeaseReleaseRequest) (ipc.LeaseReleased, error) {
	return call[ipc.LeaseReleased](ctx, e, ipc.MethodLeaseRelease, req)
}

// RawBlocks reads what blocks of an open lease are on its drives.
func (e *engine) RawBlocks(ctx context.Context, req ipc.LeaseRawRequest) (ipc.LeaseRaw, error) {
	return call[ipc.LeaseRaw](ctx, e, ipc.MethodLeaseRaw, req)
}
