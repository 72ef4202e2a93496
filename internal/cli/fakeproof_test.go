package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
)

// proofFake is what a fake says of proof.
type proofFake struct {
	bundles    map[string]string // certificates by lease
	unready    bool              // no certificate has the witnesses' quorum
	receipt    []byte
	receiptWhy string
	prepared   []byte
	policy     []byte
	statement  []byte
	leaves     [][]byte
	checkpoint []byte
	failing    bool // a tenant's second lease cannot be closed
	rotate     *vacatev1.TrustServiceRotateRequest
	seal       func(recipient []byte) []byte
	raw        func(blocks []uint64) [][]byte
}

func (f leaseFake) Prepare(context.Context, *vacatev1.LeaseServicePrepareRequest) (*vacatev1.LeaseServicePrepareResponse, error) {
	return &vacatev1.LeaseServicePrepareResponse{LeaseId: idOpen, Prepared: f.prepared, ExpiresAt: timestamppb.New(fakeTime.Add(10 * time.Minute))}, nil
}

func (f leaseFake) ReleaseKey(_ context.Context, req *vacatev1.LeaseServiceReleaseKeyRequest) (*vacatev1.LeaseServiceReleaseKeyResponse, error) {
	return &vacatev1.LeaseServiceReleaseKeyResponse{Sealed: f.seal(req.GetRecipient())}, nil
}

func (f leaseFake) RawBlocks(_ context.Context, req *vacatev1.LeaseServiceRawBlocksRequest) (*vacatev1.LeaseServiceRawBlocksResponse, error) {
	return &vacatev1.LeaseServiceRawBlocksResponse{Blocks: f.raw(req.GetBlocks())}, nil
}

type certificateFake struct{ *fake }

func (f certificateFake) Get(ctx context.Context, req *vacatev1.CertificateServiceGetRequest) (*vacatev1.CertificateServiceGetResponse, error) {
	b, ok := f.bundles[req.GetLeaseId()]
	if !ok {
		return nil, noSuchLease(req.GetLeaseId())
	}
	if req.GetWait() && f.unready {
		<-ctx.Done()
		return nil, connect.NewError(connect.CodeDeadlineExceeded, ctx.Err())
	}
	return &vacatev1.CertificateServiceGetResponse{Bundle: []byte(b)}, nil
}

func (f certificateFake) List(_ context.Context, req *vacatev1.CertificateServiceListRequest) (*vacatev1.CertificateServiceListResponse, error) {
	if req.GetTenant() == "nobody" {
		return &vacatev1.CertificateServiceListResponse{}, nil
	}
	return &vacatev1.CertificateServiceListResponse{Certificates: []*vacatev1.Certificate{
		{LeaseId: idClosed, Tenant: "acme", Result: "ok", ClosedAt: timestamppb.New(fakeTime), State: "ready", SizeBytes: 12000},
		{LeaseId: idLost, Tenant: "acme\x1b[31m", Result: "lost_engine", ClosedAt: timestamppb.New(fakeTime), State: "no-quorum", StateWhy: "1 of 2 witnesses", SizeBytes: 11000},
		{LeaseId: idErased, Tenant: "", Result: "ok", ClosedAt: timestamppb.New(fakeTime), State: "pending", StateWhy: "the log is away"},
	}}, nil
}

func (f certificateFake) Receipt(_ context.Context, req *vacatev1.CertificateServiceReceiptRequest) (*vacatev1.CertificateServiceReceiptResponse, error) {
	if fakeLease(req.GetLeaseId()) == nil {
		return nil, noSuchLease(req.GetLeaseId())
	}
	return &vacatev1.CertificateServiceReceiptResponse{Receipt: []byte("receipt\n")}, nil
}

type tenantFake struct{ *fake }

func (f tenantFake) Close(_ context.Context, req *vacatev1.TenantServiceCloseRequest) (*vacatev1.TenantServiceCloseResponse, error) {
	res := &vacatev1.TenantServiceCloseResponse{}
	switch {
	case req.GetTenant() == "nobody":
	case req.GetPlan():
		res.Leases = []*vacatev1.Lease{fakeLease(idOpen)}
	default:
		res.Leases = []*vacatev1.Lease{fakeLease(idClosed), fakeLease(idLost)}
		if f.failing {
			res.Leases = res.Leases[:1]
			res.Failures = []*vacatev1.TenantFailure{{LeaseId: idLost, Text: "the engine does not answer", Problem: &vacatev1.Problem{Kind: "unavailable", Next: "wait"}}}
		}
	}
	return res, nil
}

type trustFake struct{ *fake }

func (f trustFake) Policy(context.Context, *vacatev1.TrustServicePolicyRequest) (*vacatev1.TrustServicePolicyResponse, error) {
	return &vacatev1.TrustServicePolicyResponse{Policy: f.policy}, nil
}

func fakeKey(role, public string) *vacatev1.Key {
	return &vacatev1.Key{Role: role, Name: "abcd", PublicKey: public, KeyId: "00ff", Where: "file", Since: timestamppb.New(fakeTime)}
}

func (f trustFake) Keys(context.Context, *vacatev1.TrustServiceKeysRequest) (*vacatev1.TrustServiceKeysResponse, error) {
	old := fakeKey("node", "ed25519:OLD")
	old.Where, old.Until = "", timestamppb.New(fakeTime.Add(time.Hour))
	return &vacatev1.TrustServiceKeysResponse{Keys: []*vacatev1.Key{fakeKey("node", "ed25519:NEW"), fakeKey("log", "log.example/1+00+KEY"), old}}, nil
}

func (f trustFake) Rotate(_ context.Context, req *vacatev1.TrustServiceRotateRequest) (*vacatev1.TrustServiceRotateResponse, error) {
	f.rotate = req
	if req.GetRole() == "log" {
		return nil, fakeError(connect.CodeInvalidArgument, `there is no key of role "log" to rotate`, &vacatev1.Problem{Kind: "invalid", Next: "write node or operator"})
	}
	res := &vacatev1.TrustServiceRotateResponse{Old: fakeKey(req.GetRole(), "ed25519:OLD")}
	if !req.GetPlan() {
		res.New, res.NodeSeq = fakeKey(req.GetRole(), "ed25519:NEW"), 12
	}
	return res, nil
}

func (f trustFake) Statement(context.Context, *vacatev1.TrustServiceStatementRequest) (*vacatev1.TrustServiceStatementResponse, error) {
	return &vacatev1.TrustServiceStatementResponse{Statement: f.statement}, nil
}

type logFake struct{ *fake }

func (f logFake) Status(context.Context, *vacatev1.LogServiceStatusRequest) (*vacatev1.LogServiceStatusResponse, error) {
	return &vacatev1.LogServiceStatusResponse{Origin: "log.example/1", Where: "/var/lib/vacate/log", Checkpoint: f.checkpoint, Size: uint64(len(f.leaves)),
		Witnesses: []string{"w1"}, Spool: 3, SpoolMax: 16384, SpoolOldest: timestamppb.New(fakeTime), LastError: "dial tcp: refused",
		DeadlinesMet: 7, DeadlinesMissed: 1, DeadlinesPending: 2, Certificates: 9, KeepSeconds: 6 * 366 * 24 * 3600}, nil
}

func (f logFake) Records(_ context.Context, req *vacatev1.LogServiceRecordsRequest) (*vacatev1.LogServiceRecordsResponse, error) {
	res := &vacatev1.LogServiceRecordsResponse{Checkpoint: f.checkpoint}
	for i := req.GetFrom(); i < min(uint64(len(f.leaves)), req.GetFrom()+uint64(min(req.GetLimit(), 2))); i++ { // fewer than were asked for
		res.Leaves = append(res.Leaves, &vacatev1.Leaf{Index: i, Envelope: f.leaves[i]})
	}
	return res, nil
}
