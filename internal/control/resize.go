package control

import (
	"context"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
)

func (w *waiting) ResizeLease(string, int64, []extent.Piece) (lease.Lease, error) {
	return lease.Lease{}, w.refused()
}

func (e *engine) ResizeLease(ctx context.Context, req ipc.LeaseResizeRequest) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodLeaseResize, req)
	return err
}
