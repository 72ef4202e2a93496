package server

import (
	"context"
	"fmt"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/node"
)

// maxRaw is how many blocks are read at once: 1 MiB.
const maxRaw = 256

// Prepare implements LeaseService.
func (h leases) Prepare(ctx context.Context, _ *vacatev1.LeaseServicePrepareRequest) (*vacatev1.LeaseServicePrepareResponse, error) {
	p, err := h.s.proof("tenants' shares")
	if err != nil {
		return nil, err
	}
	r, err := p.Prepare(ctx)
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServicePrepareResponse{LeaseId: r.LeaseID, Prepared: r.Document, ExpiresAt: timestamp(r.ExpiresAt)}, nil
}

// ReleaseKey implements LeaseService. A caller that goes away does not stop it:
// its record may be durable.
func (h leases) ReleaseKey(ctx context.Context, req *vacatev1.LeaseServiceReleaseKeyRequest) (*vacatev1.LeaseServiceReleaseKeyResponse, error) {
	ctx = context.WithoutCancel(ctx)
	p, err := h.s.proof("key release")
	if err != nil {
		return nil, err
	}
	if _, err := h.s.find(ctx, req.GetId()); err != nil {
		return nil, err
	}
	if len(req.GetRecipient()) == 0 {
		return nil, &node.Error{Kind: node.Invalid, Object: "recipient", Text: "the key to seal to is missing", Next: "use `vacate certificate audit-ciphertext`, which makes one"}
	}
	sealed, err := p.ReleaseKey(ctx, req.GetId(), req.GetRecipient())
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceReleaseKeyResponse{Sealed: sealed}, nil
}

// RawBlocks implements LeaseService.
func (h leases) RawBlocks(ctx context.Context, req *vacatev1.LeaseServiceRawBlocksRequest) (*vacatev1.LeaseServiceRawBlocksResponse, error) {
	p, err := h.s.proof("raw blocks")
	if err != nil {
		return nil, err
	}
	l, err := h.s.find(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	if n := len(req.GetBlocks()); n == 0 || n > maxRaw {
		return nil, &node.Error{Kind: node.Invalid, Object: "blocks", Text: fmt.Sprintf("%d blocks were asked for; 1 to %d are read at once", n, maxRaw)}
	}
	for _, b := range req.GetBlocks() {
		if b >= uint64(l.SizeBytes)/4096 {
			return nil, &node.Error{Kind: node.Invalid, Object: "blocks", Text: fmt.Sprintf("lease %s has %d blocks, and no block %d", l.ID, l.SizeBytes/4096, b)}
		}
	}
	blocks, err := p.RawBlocks(ctx, l.ID, req.GetBlocks())
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceRawBlocksResponse{Blocks: blocks}, nil
}
