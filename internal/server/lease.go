package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// leases answers LeaseService.
type leases struct{ s *Server }

// Open implements LeaseService.
func (h leases) Open(ctx context.Context, req *vacatev1.LeaseServiceOpenRequest) (*vacatev1.LeaseServiceOpenResponse, error) {
	r := node.OpenRequest{SizeBytes: req.GetSizeBytes(), Tenant: req.GetTenant(), Drive: req.GetDrive(),
		LogicalBlock: int(req.GetLogicalBlock()), UID: callerOf(ctx).UID, Key: req.GetIdempotencyKey(),
		Limits: limitsOf(req.GetLimits())}
	if req.Uid != nil {
		if r.UID = req.GetUid(); r.UID == 1<<32-1 {
			return nil, &node.Error{Kind: node.Invalid, Object: "uid", Text: fmt.Sprintf("no user has the uid %d", r.UID), Next: "give the uid as `id -u NAME` prints it"}
		}
	}
	var err error
	if r.Exports, err = exportsOf(req); err != nil {
		return nil, err
	}
	if ttl := req.GetTtl(); ttl != nil {
		if err := ttl.CheckValid(); err != nil {
			return nil, &node.Error{Kind: node.Invalid, Object: "ttl", Text: "the time to live is not a duration", Err: err}
		}
		if r.TTL = ttl.AsDuration(); r.TTL < time.Second {
			return nil, &node.Error{Kind: node.Invalid, Object: "ttl", Text: fmt.Sprintf("a time to live of %v is under a second", r.TTL),
				Next: "give a second or more, or leave it out for a lease that lives until it is closed"}
		}
	}
	if err := promise(req, &r); err != nil {
		return nil, err
	}
	l, err := h.s.open(ctx, r, req.GetAttach())
	if err != nil {
		return nil, err
	}
	res := &vacatev1.LeaseServiceOpenResponse{Lease: h.s.leaseMessages(ctx, l)[0]}
	res.Receipt, res.ReceiptWhy = h.s.receipt(ctx, l.ID)
	return res, nil
}

// promise is what the caller wants to be in the OPEN record: by when the key is
// gone, and that the tenant has a share in it.
func promise(req *vacatev1.LeaseServiceOpenRequest, r *node.OpenRequest) error {
	if by := req.GetEraseBy(); by != nil {
		if err := by.CheckValid(); err != nil {
			return &node.Error{Kind: node.Invalid, Object: "erase_by", Text: "the time to erase by is none", Err: err}
		}
		r.EraseBy = by.AsTime()
	}
	if s := req.GetShare(); s != nil {
		if s.GetLeaseId() == "" || len(s.GetSealed()) == 0 {
			return &node.Error{Kind: node.Invalid, Object: "share", Text: "a share names the lease that was prepared, and has what was sealed",
				Next: "give what `vacate tenant share` wrote"}
		}
		r.Prepared, r.Sealed = s.GetLeaseId(), string(s.GetSealed())
	}
	return nil
}

// exportsOf are the exports that a caller asks for. What they may be together,
// the node says.
func exportsOf(req *vacatev1.LeaseServiceOpenRequest) (lease.Exports, error) {
	x, err := lease.ParseExports(req.GetExports())
	if err != nil {
		return x, &node.Error{Kind: node.Invalid, Object: "exports", Text: err.Error()}
	}
	if req.GetQueues() > lease.MaxQueues {
		return x, &node.Error{Kind: node.Invalid, Object: "queues",
			Text: fmt.Sprintf("a vhost-user export has at most %d queues, not %d", lease.MaxQueues, req.GetQueues())}
	}
	x.Queues, x.ReadOnly = int(req.GetQueues()), req.GetReadOnly()
	return x, nil
}

// List implements LeaseService.
func (h leases) List(ctx context.Context, req *vacatev1.LeaseServiceListRequest) (*vacatev1.LeaseServiceListResponse, error) {
	c := callerOf(ctx)
	all := slices.DeleteFunc(h.s.cfg.Node.List(req.GetIncludeEnded()), func(l lease.Lease) bool {
		return !c.sees(l) || req.GetTenant() != "" && l.Tenant != req.GetTenant()
	})
	return &vacatev1.LeaseServiceListResponse{Leases: h.s.leaseMessages(ctx, all...)}, nil
}

// find is a lease that the caller may see. One that it may not see does not
// exist: an id must not tell a tenant whether it is somebody's.
func (s *Server) find(ctx context.Context, id string) (lease.Lease, error) {
	if !lease.ValidID(id) {
		return lease.Lease{}, noLease(id)
	}
	l, err := s.cfg.Node.Get(id)
	if e := (*node.Error)(nil); errors.As(err, &e) && e.Kind == node.NotFound || err == nil && !callerOf(ctx).sees(l) {
		return lease.Lease{}, noLease(id)
	}
	return l, err
}

// Get implements LeaseService.
func (h leases) Get(ctx context.Context, req *vacatev1.LeaseServiceGetRequest) (*vacatev1.LeaseServiceGetResponse, error) {
	l, err := h.s.find(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceGetResponse{Lease: h.s.leaseMessages(ctx, l)[0]}, nil
}

// Limit implements LeaseService. A caller that goes away does not stop it.
func (h leases) Limit(ctx context.Context, req *vacatev1.LeaseServiceLimitRequest) (*vacatev1.LeaseServiceLimitResponse, error) {
	ctx = context.WithoutCancel(ctx)
	if _, err := h.s.find(ctx, req.GetId()); err != nil {
		return nil, err
	}
	l, err := h.s.cfg.Node.Limit(ctx, req.GetId(), limitsOf(req.GetLimits()))
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceLimitResponse{Lease: h.s.leaseMessages(ctx, l)[0]}, nil
}

// Resize implements LeaseService. A caller that goes away does not stop it.
func (h leases) Resize(ctx context.Context, req *vacatev1.LeaseServiceResizeRequest) (*vacatev1.LeaseServiceResizeResponse, error) {
	ctx = context.WithoutCancel(ctx)
	if _, err := h.s.find(ctx, req.GetId()); err != nil {
		return nil, err
	}
	l, err := h.s.cfg.Node.Resize(ctx, req.GetId(), req.GetSizeBytes(), req.GetPlan())
	if err != nil {
		return nil, err
	}
	if !req.GetPlan() {
		h.s.devices().Resized(ctx, l.ID, l.SizeBytes)
	}
	return &vacatev1.LeaseServiceResizeResponse{Lease: h.s.leaseMessages(ctx, l)[0]}, nil
}

// Close implements LeaseService. A caller that goes away does not stop a close.
func (h leases) Close(ctx context.Context, req *vacatev1.LeaseServiceCloseRequest) (*vacatev1.LeaseServiceCloseResponse, error) {
	ctx = context.WithoutCancel(ctx)
	if _, err := h.s.find(ctx, req.GetId()); err != nil {
		return nil, err
	}
	l, err := h.s.cfg.Node.Close(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &vacatev1.LeaseServiceCloseResponse{Lease: h.s.leaseMessages(ctx, l)[0]}, nil
}

// Watch implements LeaseService: all leases first, then each that changes. A
// caller that reads slowly misses changes, and is then sent all leases again.
func (h leases) Watch(ctx context.Context, req *vacatev1.LeaseServiceWatchRequest, stream *connect.ServerStream[vacatev1.LeaseServiceWatchResponse]) error {
	ctx, cancel := untilEnd(ctx)
	defer cancel()
	for _, id := range req.GetIds() {
		if _, err := h.s.find(ctx, id); err != nil {
			return err
		}
	}
	w, err := h.s.cfg.Node.Watch() // before the list, so that no change falls between
	if err != nil {
		return err
	}
	defer w.Close()
	c := callerOf(ctx)
	send := func(all ...lease.Lease) error {
		all = slices.DeleteFunc(all, func(l lease.Lease) bool {
			return !c.sees(l) || req.GetTenant() != "" && l.Tenant != req.GetTenant() ||
				len(req.GetIds()) > 0 && !slices.Contains(req.GetIds(), l.ID)
		})
		for _, m := range h.s.leaseMessages(ctx, all...) {
			if err := stream.Send(&vacatev1.LeaseServiceWatchResponse{Lease: m}); err != nil {
				return err
			}
		}
		return nil
	}
	ended := len(req.GetIds()) > 0 // who names a lease wants to know that it has ended
	if err := send(h.s.cfg.Node.List(ended)...); err != nil {
		return err
	}
	for {
		change, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if change.Missed > 0 {
			err = send(h.s.cfg.Node.List(true)...)
		} else {
			err = send(change.Lease)
		}
		if err != nil {
			return err
		}
	}
}
