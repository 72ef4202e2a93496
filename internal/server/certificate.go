package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// certificates answers CertificateService.
type certificates struct{ s *Server }

// Get implements CertificateService. A lease that is open has no certificate,
// and waiting for its end is what Watch is for.
func (h certificates) Get(ctx context.Context, req *vacatev1.CertificateServiceGetRequest) (*vacatev1.CertificateServiceGetResponse, error) {
	p, err := h.s.proof("certificates")
	if err != nil {
		return nil, err
	}
	l, err := h.s.find(ctx, req.GetLeaseId())
	if err != nil {
		return forgotten(ctx, p, req.GetLeaseId(), err)
	}
	if !l.State.Ended() {
		return nil, &node.Error{Kind: node.Refused, Object: l.ID, Text: fmt.Sprintf("lease %s is %s: a certificate tells of a lease that ended", l.ID, l.State),
			Next: "close it first: `vacate lease close " + l.ID + "`"}
	}
	ctx, cancel := untilEnd(ctx)
	defer cancel()
	b, err := p.Certificate(ctx, l.ID, req.GetWait())
	if err != nil {
		return nil, err
	}
	return &vacatev1.CertificateServiceGetResponse{Bundle: b}, nil
}

// forgotten answers with the certificate of a lease that ended so long ago that the
// node has forgotten it, which is sooner than its certificate goes. Whose it was is
// not known any more: so only who may see all of them gets it. why is the answer
// where there is none.
func forgotten(ctx context.Context, p Proof, id string, why error) (*vacatev1.CertificateServiceGetResponse, error) {
	if callerOf(ctx).access != All || !lease.ValidID(id) {
		return nil, why
	}
	b, err := p.Certificate(ctx, id, false)
	if err != nil {
		return nil, why
	}
	return &vacatev1.CertificateServiceGetResponse{Bundle: b}, nil
}

// List implements CertificateService.
func (h certificates) List(ctx context.Context, req *vacatev1.CertificateServiceListRequest) (*vacatev1.CertificateServiceListResponse, error) {
	p, err := h.s.proof("certificates")
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	res := &vacatev1.CertificateServiceListResponse{}
	for _, l := range h.s.cfg.Node.List(true) {
		if !l.State.Ended() || !c.sees(l) || req.GetTenant() != "" && l.Tenant != req.GetTenant() {
			continue
		}
		st := p.CertificateState(l.ID)
		res.Certificates = append(res.Certificates, &vacatev1.Certificate{LeaseId: l.ID, Tenant: l.Tenant, Result: string(l.Result),
			ClosedAt: timestamp(l.ClosedAt), State: st.State, StateWhy: st.Why, SizeBytes: st.Bytes})
	}
	return res, nil
}

// Receipt implements CertificateService.
func (h certificates) Receipt(ctx context.Context, req *vacatev1.CertificateServiceReceiptRequest) (*vacatev1.CertificateServiceReceiptResponse, error) {
	p, err := h.s.proof("receipts")
	if err != nil {
		return nil, err
	}
	l, err := h.s.find(ctx, req.GetLeaseId())
	if err != nil {
		return nil, err
	}
	b, err := p.Receipt(ctx, l.ID)
	if err != nil {
		return nil, err
	}
	return &vacatev1.CertificateServiceReceiptResponse{Receipt: b}, nil
}

// receiptWithin bounds how long Open waits for a signature: the lease is open
// already, and the receipt can be had later.
const receiptWithin = 5 * time.Second

// receipt is the receipt of a lease that was opened, or why there is none.
func (s *Server) receipt(ctx context.Context, id string) (b []byte, why string) {
	if s.cfg.Proof == nil {
		return nil, noProof("receipts").Error()
	}
	ctx, cancel := context.WithTimeout(ctx, receiptWithin)
	defer cancel()
	b, err := s.cfg.Proof.Receipt(ctx, id)
	if err != nil {
		return nil, err.Error()
	}
	return b, ""
}

// tenants answers TenantService.
type tenants struct{ s *Server }

// Close implements TenantService: all the tenant's leases that the caller may
// close, and those that are opened meanwhile. A caller that goes away does not
// stop it.
func (h tenants) Close(ctx context.Context, req *vacatev1.TenantServiceCloseRequest) (*vacatev1.TenantServiceCloseResponse, error) {
	if req.GetTenant() == "" {
		return nil, &node.Error{Kind: node.Invalid, Object: "tenant", Text: "the tenant's name is missing", Next: "leases without a tenant are closed one by one"}
	}
	ctx = context.WithoutCancel(ctx)
	res := &vacatev1.TenantServiceCloseResponse{}
	if req.GetPlan() {
		res.Leases = h.s.leaseMessages(ctx, h.open(ctx, req.GetTenant())...)
		return res, nil
	}
	var closed []lease.Lease
	tried := make(map[string]bool)
	for {
		todo := slices.DeleteFunc(h.open(ctx, req.GetTenant()), func(l lease.Lease) bool { return tried[l.ID] })
		if len(todo) == 0 {
			break
		}
		for _, l := range todo {
			tried[l.ID] = true
			done, err := h.s.cfg.Node.Close(ctx, l.ID)
			if err != nil {
				res.Failures = append(res.Failures, failureOf(l.ID, err))
				continue
			}
			closed = append(closed, done)
		}
	}
	res.Leases = h.s.leaseMessages(ctx, closed...)
	return res, nil
}

// open are a tenant's leases that have not ended and that the caller sees.
func (h tenants) open(ctx context.Context, tenant string) []lease.Lease {
	c := callerOf(ctx)
	return slices.DeleteFunc(h.s.cfg.Node.List(false), func(l lease.Lease) bool {
		return l.State.Ended() || l.Tenant != tenant || !c.sees(l)
	})
}

func failureOf(id string, err error) *vacatev1.TenantFailure {
	e := toError(err)
	return &vacatev1.TenantFailure{LeaseId: id, Text: textOf(err, e),
		Problem: &vacatev1.Problem{Kind: string(e.Kind), Object: e.Object, Next: e.Next}}
}
