package nodesim

import (
	"context"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
)

func (s Store) ResizeLease(id string, size int64, pieces []extent.Piece) (lease.Lease, error) {
	return run(s.F, "journal ResizeLease", func() (lease.Lease, error) { return s.Store.ResizeLease(id, size, pieces) })
}

func (e *Engine) ResizeLease(ctx context.Context, req ipc.LeaseResizeRequest) error {
	_, err := call(ctx, e, "engine ResizeLease", func() (struct{}, error) {
		v := e.leases[req.Lease]
		if v == nil || v.erasure != nil {
			return struct{}{}, refuse(ipc.CodeNotFound, "the engine holds no open lease %s", req.Lease)
		}
		more, err := extent.Beyond(v.req.Pieces, req.Pieces)
		if err != nil || req.SizeBytes < v.req.SizeBytes || req.SizeBytes == v.req.SizeBytes && len(more) > 0 {
			e.violated("lease %s of %d bytes on %v is to have %d on %v", req.Lease, v.req.SizeBytes, v.req.Pieces, req.SizeBytes, req.Pieces)
		}
		for _, p := range req.Pieces {
			if e.open[p.Drive] == nil {
				return struct{}{}, refuse(ipc.CodeBusy, "drive %s is not open", p.Drive)
			}
		}
		if e.busy(v) {
			return struct{}{}, refuse(ipc.CodeBusy, "lease %s is being resized, and waits for its drive", req.Lease)
		}
		if e.HasSpace != nil && !e.HasSpace(req.Lease, req.SizeBytes, req.Pieces) {
			e.violated("N2: lease %s gets %d bytes on %v, and the journal does not have that", req.Lease, req.SizeBytes, req.Pieces)
		}
		e.apart(req.Lease, more)
		v.req.SizeBytes, v.req.Pieces = req.SizeBytes, slices.Clone(req.Pieces)
		return struct{}{}, nil
	})
	return err
}

// apart checks that no other lease has any of the pieces that one gets.
func (e *Engine) apart(lease string, more []extent.Piece) {
	for id, other := range e.leases {
		for _, p := range more {
			for _, q := range other.req.Pieces {
				if id != lease && p.Drive == q.Drive && p.Overlaps(q.Range) {
					e.violated("N2: extents %v of drive %s are given to lease %s, and lease %s has them", p.Range, p.Drive, lease, id)
				}
			}
		}
	}
}

// Sizes are those of the volumes of the leases that are open.
func (e *Engine) Sizes() map[string]int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := map[string]int64{}
	for id, v := range e.leases {
		if v.erasure == nil {
			all[id] = v.req.SizeBytes
		}
	}
	return all
}
