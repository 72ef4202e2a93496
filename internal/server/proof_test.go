package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// A fakeProof answers with what tells the calls apart.
type fakeProof struct {
	mu      sync.Mutex
	fail    error // of every call, if not nil
	rotated []string
	limits  []int
}

func (p *fakeProof) err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fail
}

func (p *fakeProof) Prepare(context.Context) (Prepared, error) {
	return Prepared{LeaseID: "eeeeeeeeeeeeeeee", Document: []byte("signed"), ExpiresAt: time.Unix(3e9, 0)}, p.err()
}

func (p *fakeProof) ReleaseKey(_ context.Context, id string, recipient []byte) ([]byte, error) {
	return []byte("sealed " + id + " to " + string(recipient)), p.err()
}

func (p *fakeProof) RawBlocks(_ context.Context, _ string, blocks []uint64) ([][]byte, error) {
	return make([][]byte, len(blocks)), p.err()
}

func (p *fakeProof) Receipt(_ context.Context, id string) ([]byte, error) {
	return []byte("receipt of " + id), p.err()
}

func (p *fakeProof) Certificate(ctx context.Context, id string, wait bool) ([]byte, error) {
	if wait {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return []byte("bundle of " + id), p.err()
}

func (p *fakeProof) CertificateState(string) CertificateState {
	return CertificateState{State: "no-quorum", Why: "one of two witnesses", Bytes: 9000}
}

func (p *fakeProof) Policy(context.Context) ([]byte, error) { return []byte("log\n"), p.err() }

func (p *fakeProof) Keys(context.Context) ([]Key, error) {
	return []Key{fakeKey("new")}, p.err()
}

func fakeKey(text string) Key {
	return Key{Role: "node", Name: "n1", PublicKey: "ed25519:" + text, KeyID: "00", Where: "file", Since: time.Unix(1e9, 0)}
}

func (p *fakeProof) Rotate(_ context.Context, role string, plan bool) (Rotation, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if plan {
		return Rotation{Old: fakeKey("old")}, p.fail
	}
	p.rotated = append(p.rotated, role)
	return Rotation{Old: fakeKey("old"), New: fakeKey("new"), NodeSeq: 12}, p.fail
}

func (p *fakeProof) Statement(context.Context) ([]byte, error) { return []byte("{}"), p.err() }

func (p *fakeProof) LogStatus(context.Context) (LogStatus, error) {
	return LogStatus{Origin: "log.example/1", Size: 4, Witnesses: []string{"w1"}, Quorum: true, Spool: 2, SpoolMax: 100,
		DeadlinesMet: 3, Keep: 6 * time.Hour}, p.err()
}

func (p *fakeProof) Records(_ context.Context, from uint64, limit int) ([][]byte, []byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = append(p.limits, limit)
	return [][]byte{[]byte("a"), []byte("b")}, []byte("checkpoint"), p.fail
}

// TestProofNotSetUp: a daemon without proof says so, and still opens leases.
func TestProofNotSetUp(t *testing.T) {
	d := start(t, func(c *Config) { c.Proof = nil })
	c := d.as(uidOperator)
	for call, p := range probes {
		if !strings.HasPrefix(call, "Certificate.") && !strings.HasPrefix(call, "Trust.") && !strings.HasPrefix(call, "Log.") && call != "Lease.Prepare" {
			continue
		}
		_, err := p.other(t.Context(), c)
		if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "not set up on this daemon") {
			t.Errorf("%s: %v, want unavailable", call, err)
		}
	}
	res, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096})
	if err != nil || len(res.GetReceipt()) != 0 || !strings.Contains(res.GetReceiptWhy(), "not set up") {
		t.Errorf("open without proof: receipt %q, why %q, %v", res.GetReceipt(), res.GetReceiptWhy(), err)
	}
}

// TestReceipt: the lease is open whether or not its receipt is there.
func TestReceipt(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	open := func() *vacatev1.LeaseServiceOpenResponse {
		t.Helper()
		res, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096})
		if err != nil || res.GetLease().GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN {
			t.Fatalf("open: %v, %v", res, err)
		}
		return res
	}
	res := open()
	if got, want := string(res.GetReceipt()), "receipt of "+res.GetLease().GetId(); got != want || res.GetReceiptWhy() != "" {
		t.Errorf("receipt %q, want %q; why %q", got, want, res.GetReceiptWhy())
	}
	d.proof.mu.Lock()
	d.proof.fail = errors.New("the TPM does not answer")
	d.proof.mu.Unlock()
	if res := open(); len(res.GetReceipt()) != 0 || res.GetReceiptWhy() != "the TPM does not answer" {
		t.Errorf("receipt %q, why %q", res.GetReceipt(), res.GetReceiptWhy())
	}
}

// TestPromise: what the OPEN record is to say reaches the node, and a lease shows it.
func TestPromise(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	by := time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)
	_, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096, EraseBy: timestamppb.New(by),
		Share: &vacatev1.Share{LeaseId: "eeeeeeeeeeeeeeee", Sealed: []byte("sealed")}})
	if got := d.node.opened[0]; err != nil || !got.EraseBy.Equal(by) || got.Prepared != "eeeeeeeeeeeeeeee" || got.Sealed != "sealed" {
		t.Errorf("the node was asked for %+v, %v", got, err)
	}
	for _, bad := range []*vacatev1.LeaseServiceOpenRequest{
		{SizeBytes: 4096, EraseBy: &timestamppb.Timestamp{Nanos: -1}},
		{SizeBytes: 4096, Share: &vacatev1.Share{LeaseId: "eeeeeeeeeeeeeeee"}},
		{SizeBytes: 4096, Share: &vacatev1.Share{Sealed: []byte("sealed")}},
	} {
		if _, err := c.Leases.Open(t.Context(), bad); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	l := fakeLease(idOwn, uidOperator, lease.Open)
	l.Proof = lease.Proof{KeyMode: "split", KeyCommit: "00ff", KeySalt: "secret", EraseBy: by, Released: true}
	d.node.mu.Lock()
	d.node.put(l)
	d.node.mu.Unlock()
	res, err := c.Leases.Get(t.Context(), &vacatev1.LeaseServiceGetRequest{Id: idOwn})
	if m := res.GetLease(); err != nil || m.GetKeyMode() != "split" || m.GetKeyCommit() != "00ff" || !m.GetEraseBy().AsTime().Equal(by) || !m.GetKeyReleased() {
		t.Errorf("shown %v, %v", res, err)
	}
	if strings.Contains(res.String(), "secret") {
		t.Error("a salt is shown")
	}
}

// TestCertificateOf: of what ended only; who waits is let go when the server ends.
func TestCertificateOf(t *testing.T) {
	d := start(t)
	c := d.as(uidTenant)
	res, err := c.Certificates.Get(t.Context(), &vacatev1.CertificateServiceGetRequest{LeaseId: idPast})
	if err != nil || string(res.GetBundle()) != "bundle of "+idPast {
		t.Errorf("got %q, %v", res.GetBundle(), err)
	}
	_, err = c.Certificates.Get(t.Context(), &vacatev1.CertificateServiceGetRequest{LeaseId: idOwn})
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || client.ProblemOf(err).GetNext() == "" {
		t.Errorf("of an open lease: %v", err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := c.Certificates.Get(t.Context(), &vacatev1.CertificateServiceGetRequest{LeaseId: idPast, Wait: true})
		waited <- err
	}()
	time.Sleep(50 * time.Millisecond)
	d.stop()
	if err := <-waited; err == nil {
		t.Error("waiting ended without an error")
	}
	d.wait()
}

// TestCertificateOfForgotten: certificates are kept for longer than leases are
// remembered. Who may see all gets one; to others there was no such lease.
func TestCertificateOfForgotten(t *testing.T) {
	d := start(t)
	const id = "ffffffffffffffff"
	get := func(uid uint32) (string, error) {
		res, err := d.as(uid).Certificates.Get(t.Context(), &vacatev1.CertificateServiceGetRequest{LeaseId: id})
		return string(res.GetBundle()), err
	}
	for _, uid := range []uint32{uidOperator, uidAuditor} {
		if b, err := get(uid); err != nil || b != "bundle of "+id {
			t.Errorf("uid %d got %q, %v", uid, b, err)
		}
	}
	if b, err := get(uidTenant); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a tenant got %q, %v", b, err)
	}
	d.proof.mu.Lock()
	d.proof.fail = errors.New("there is no certificate")
	d.proof.mu.Unlock()
	if b, err := get(uidOperator); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("of a lease that never was: %q, %v", b, err)
	}
}

// TestTenantClose closes what the caller may close, and nothing else.
func TestTenantClose(t *testing.T) {
	var out bytes.Buffer
	d := start(t, func(c *Config) { c.Log = slog.New(slog.NewJSONHandler(&out, nil)) })
	c := d.as(uidTenant)
	ids := func(res *vacatev1.TenantServiceCloseResponse) (all []string) {
		for _, l := range res.GetLeases() {
			all = append(all, l.GetId())
		}
		return all
	}
	if _, err := c.Tenants.Close(t.Context(), &vacatev1.TenantServiceCloseRequest{}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("nobody's leases: %v", err)
	}
	plan, err := c.Tenants.Close(t.Context(), &vacatev1.TenantServiceCloseRequest{Tenant: "acme", Plan: true})
	if err != nil || !slices.Equal(ids(plan), []string{idOwn}) || plan.GetLeases()[0].GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN {
		t.Errorf("plan: %v, %v", plan, err)
	}
	d.node.fail = &node.Error{Kind: node.Recovering, Text: "the engine starts", Next: "call again"}
	failed, err := c.Tenants.Close(t.Context(), &vacatev1.TenantServiceCloseRequest{Tenant: "acme"})
	if err != nil || len(failed.GetLeases()) != 0 || len(failed.GetFailures()) != 1 {
		t.Fatalf("failing: %v, %v", failed, err)
	}
	if f := failed.GetFailures()[0]; f.GetLeaseId() != idOwn || f.GetText() != "the engine starts" || f.GetProblem().GetKind() != "recovering" {
		t.Errorf("failure %v", f)
	}
	d.node.fail = nil
	done, err := c.Tenants.Close(t.Context(), &vacatev1.TenantServiceCloseRequest{Tenant: "acme"})
	if err != nil || !slices.Equal(ids(done), []string{idOwn}) {
		t.Errorf("closed %v, %v", done, err)
	}
	if l, err := d.node.Get(idOther); err != nil || l.State != lease.Open {
		t.Errorf("another's lease of that tenant is %v, %v", l.State, err)
	}
	d.stop()
	d.wait()
	if want := `"call":"Tenant.Close","uid":1000,"pid":99,"role":"tenant","tenant":"acme","plan":false,"leases":1,"failures":0,"outcome":"ok"`; !strings.Contains(out.String(), want) {
		t.Errorf("the log has no line with\n%s\n%s", want, out.String())
	}
}

// TestBounds: what is asked for is bounded before the backend sees it.
func TestBounds(t *testing.T) {
	d := start(t)
	c := d.as(uidTenant)
	for _, blocks := range [][]uint64{nil, make([]uint64, 257), {1 << 18}, {1<<64 - 1}} {
		_, err := c.Leases.RawBlocks(t.Context(), &vacatev1.LeaseServiceRawBlocksRequest{Id: idOwn, Blocks: blocks})
		if connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%d blocks: %v", len(blocks), err)
		}
	}
	if _, err := c.Leases.RawBlocks(t.Context(), &vacatev1.LeaseServiceRawBlocksRequest{Id: idOwn, Blocks: []uint64{1<<18 - 1}}); err != nil {
		t.Errorf("the last block: %v", err)
	}
	if _, err := c.Leases.ReleaseKey(t.Context(), &vacatev1.LeaseServiceReleaseKeyRequest{Id: idOwn}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no recipient: %v", err)
	}
	for _, limit := range []uint32{0, 1, 256, 1 << 31} {
		res, err := c.Log.Records(t.Context(), &vacatev1.LogServiceRecordsRequest{From: 7, Limit: limit})
		if err != nil || len(res.GetLeaves()) != 2 || res.GetLeaves()[1].GetIndex() != 8 || string(res.GetLeaves()[1].GetEnvelope()) != "b" {
			t.Errorf("records: %v, %v", res, err)
		}
	}
	if !slices.Equal(d.proof.limits, []int{256, 1, 256, 256}) {
		t.Errorf("the backend was asked for %v", d.proof.limits)
	}
}

// TestRotate: a plan changes nothing, and a log's key is never replaced.
func TestRotate(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	plan, err := c.Trust.Rotate(t.Context(), &vacatev1.TrustServiceRotateRequest{Role: "node", Plan: true})
	if err != nil || plan.GetNew() != nil || plan.GetOld().GetPublicKey() != "ed25519:old" || len(d.proof.rotated) != 0 {
		t.Errorf("plan: %v, %v", plan, err)
	}
	done, err := c.Trust.Rotate(t.Context(), &vacatev1.TrustServiceRotateRequest{Role: "operator"})
	if err != nil || done.GetNew().GetPublicKey() != "ed25519:new" || done.GetNodeSeq() != 12 || !slices.Equal(d.proof.rotated, []string{"operator"}) {
		t.Errorf("rotated: %v, %v", done, err)
	}
	if _, err := c.Trust.Rotate(t.Context(), &vacatev1.TrustServiceRotateRequest{Role: "log"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("the log's key: %v", err)
	}
}
