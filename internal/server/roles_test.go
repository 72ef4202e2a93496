package server

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
)

var uidOf = map[Role]uint32{Operator: uidOperator, Auditor: uidAuditor, Tenant: uidTenant}

// A probe makes one call: on another's object, and on the tenant's own lease
// (nil where there is no such thing). It returns the leases that were shown.
type probe struct {
	other, own func(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error)
}

func onLease(f func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error)) probe {
	with := func(id string) func(context.Context, *client.Client) ([]*vacatev1.Lease, error) {
		return func(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error) {
			l, err := f(ctx, c, id)
			return []*vacatev1.Lease{l}, err
		}
	}
	return probe{with(idOther), with(idOwn)}
}

func onNothing(f func(ctx context.Context, c *client.Client) error) probe {
	return probe{other: func(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error) { return nil, f(ctx, c) }}
}

var probes = map[string]probe{
	"Lease.Open": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096})
		return err
	}),
	"Lease.List": {other: func(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error) {
		res, err := c.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{IncludeEnded: true})
		return res.GetLeases(), err
	}},
	"Lease.Get": onLease(func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
		res, err := c.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: id})
		return res.GetLease(), err
	}),
	"Lease.Limit": onLease(func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
		res, err := c.Leases.Limit(ctx, &vacatev1.LeaseServiceLimitRequest{Id: id})
		return res.GetLease(), err
	}),
	"Lease.Resize": onLease(func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
		res, err := c.Leases.Resize(ctx, &vacatev1.LeaseServiceResizeRequest{Id: id, SizeBytes: 1 << 31})
		return res.GetLease(), err
	}),
	"Lease.Close": onLease(func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
		res, err := c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: id})
		return res.GetLease(), err
	}),
	"Lease.Attach": onLease(func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
		res, err := c.Leases.Attach(ctx, &vacatev1.LeaseServiceAttachRequest{Id: id})
		return res.GetLease(), err
	}),
	"Lease.Detach": onLease(func(ctx context.Context, c *client.Client, id string) (*vacatev1.Lease, error) {
		res, err := c.Leases.Detach(ctx, &vacatev1.LeaseServiceDetachRequest{Id: id})
		return res.GetLease(), err
	}),
	"Lease.Watch": {other: watchTwo},
	"Lease.Prepare": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Leases.Prepare(ctx, &vacatev1.LeaseServicePrepareRequest{})
		return err
	}),
	"Lease.ReleaseKey": onID(func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.Leases.ReleaseKey(ctx, &vacatev1.LeaseServiceReleaseKeyRequest{Id: id, Recipient: []byte("key")})
		return err
	}),
	"Lease.RawBlocks": onID(func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.Leases.RawBlocks(ctx, &vacatev1.LeaseServiceRawBlocksRequest{Id: id, Blocks: []uint64{0}})
		return err
	}),
	"Drive.Enroll": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Drives.Enroll(ctx, &vacatev1.DriveServiceEnrollRequest{Path: "/dev/x", Plan: true})
		return err
	}),
	"Drive.List": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Drives.List(ctx, &vacatev1.DriveServiceListRequest{})
		return err
	}),
	"Drive.Get": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Drives.Get(ctx, &vacatev1.DriveServiceGetRequest{Drive: "/dev/x"})
		return err
	}),
	"Node.Status": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
		return err
	}),
	"Node.Upgrade": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Node.Upgrade(ctx, &vacatev1.NodeServiceUpgradeRequest{})
		return err
	}),
	"Node.Stop": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Node.Stop(ctx, &vacatev1.NodeServiceStopRequest{Plan: true})
		return err
	}),
}

func init() { maps.Copy(probes, proofProbes) }

// proofProbes are those of the services of proof.proto.
var proofProbes = map[string]probe{
	"Certificate.Get": onPast(func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.Certificates.Get(ctx, &vacatev1.CertificateServiceGetRequest{LeaseId: id})
		return err
	}),
	"Certificate.Receipt": onID(func(ctx context.Context, c *client.Client, id string) error {
		_, err := c.Certificates.Receipt(ctx, &vacatev1.CertificateServiceReceiptRequest{LeaseId: id})
		return err
	}),
	"Certificate.List": {other: func(ctx context.Context, c *client.Client) (seen []*vacatev1.Lease, err error) {
		res, err := c.Certificates.List(ctx, &vacatev1.CertificateServiceListRequest{})
		for _, e := range res.GetCertificates() {
			l := &vacatev1.Lease{Id: e.GetLeaseId(), Uid: uidTenant}
			if e.GetLeaseId() == idOtherPast {
				l.Id, l.Uid = idOther, uidOther
			}
			seen = append(seen, l)
		}
		return seen, err
	}},
	"Tenant.Close": {other: func(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error) {
		res, err := c.Tenants.Close(ctx, &vacatev1.TenantServiceCloseRequest{Tenant: "acme", Plan: true})
		return res.GetLeases(), err
	}},
	"Trust.Policy": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Trust.Policy(ctx, &vacatev1.TrustServicePolicyRequest{})
		return err
	}),
	"Trust.Keys": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Trust.Keys(ctx, &vacatev1.TrustServiceKeysRequest{})
		return err
	}),
	"Trust.Rotate": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Trust.Rotate(ctx, &vacatev1.TrustServiceRotateRequest{Role: "node", Plan: true})
		return err
	}),
	"Trust.Statement": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Trust.Statement(ctx, &vacatev1.TrustServiceStatementRequest{})
		return err
	}),
	"Log.Status": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Log.Status(ctx, &vacatev1.LogServiceStatusRequest{})
		return err
	}),
	"Log.Records": onNothing(func(ctx context.Context, c *client.Client) error {
		_, err := c.Log.Records(ctx, &vacatev1.LogServiceRecordsRequest{})
		return err
	}),
}

// onID is a call on a lease that shows none.
func onID(f func(ctx context.Context, c *client.Client, id string) error) probe {
	return onIDs(idOther, idOwn, f)
}

// onPast is a call on a lease that has ended.
func onPast(f func(ctx context.Context, c *client.Client, id string) error) probe {
	return onIDs(idOtherPast, idPast, f)
}

func onIDs(other, own string, f func(ctx context.Context, c *client.Client, id string) error) probe {
	with := func(id string) func(context.Context, *client.Client) ([]*vacatev1.Lease, error) {
		return func(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error) { return nil, f(ctx, c, id) }
	}
	return probe{with(other), with(own)}
}

// watchTwo watches until idOther or a change of idOwn was seen. The fake lists
// idOwn first: who sees idOther sees it before the change.
func watchTwo(ctx context.Context, c *client.Client) ([]*vacatev1.Lease, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Leases.Watch(ctx, &vacatev1.LeaseServiceWatchRequest{})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var seen []*vacatev1.Lease
	for len(seen) < 2 && s.Receive() {
		seen = append(seen, s.Msg().GetLease())
		if len(seen) == 1 {
			// A tenant may; for an auditor, who may not, idOther follows anyway.
			if _, err := c.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: idOwn}); err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
				return seen, err
			}
		}
	}
	return seen, s.Err()
}

// documented reads the table of docs/roles.md.
func documented(t *testing.T) map[string]map[Role]Access {
	t.Helper()
	b, err := os.ReadFile("../../docs/roles.md")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]map[Role]Access)
	var roles []Role
	for line := range strings.Lines(string(b)) {
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.Trim(strings.TrimSpace(cell), "`"))
		}
		switch {
		case cells[0] == "call":
			for _, r := range cells[1:] {
				roles = append(roles, Role(r))
			}
		case roles != nil && len(cells) == len(roles)+1 && strings.Contains(cells[0], "."):
			out[cells[0]] = make(map[Role]Access)
			for i, r := range roles {
				out[cells[0]][r] = Access(cells[i+1])
			}
		}
	}
	return out
}

// TestRoleTable checks each cell of the table in docs/roles.md with a call, and
// that the table has every call of the API.
func TestRoleTable(t *testing.T) {
	table := documented(t)
	calls := 0
	for _, file := range []protoreflect.FileDescriptor{vacatev1.File_vacate_v1_lease_proto, vacatev1.File_vacate_v1_drive_proto, vacatev1.File_vacate_v1_node_proto, vacatev1.File_vacate_v1_proof_proto} {
		for i := range file.Services().Len() {
			svc := file.Services().Get(i)
			for j := range svc.Methods().Len() {
				calls++
				procedure := "/" + string(svc.FullName()) + "/" + string(svc.Methods().Get(j).Name())
				if table[callName(procedure)] == nil {
					t.Errorf("the document leaves out %s", callName(procedure))
				}
				for _, role := range []Role{Operator, Auditor, Tenant} {
					if got, want := accessTo(procedure, role), table[callName(procedure)][role]; got != want {
						t.Errorf("%s as %s: the code has %q, the document %q", callName(procedure), role, got, want)
					}
				}
			}
		}
	}
	if calls != len(table) {
		t.Errorf("the API has %d calls, the document %d", calls, len(table))
	}
	for call, row := range table {
		for _, role := range []Role{Operator, Auditor, Tenant} {
			t.Run(call+"/"+string(role), func(t *testing.T) { checkCell(t, probes[call], role, row[role]) })
		}
	}
}

func checkCell(t *testing.T, p probe, role Role, want Access) {
	if p.other == nil {
		t.Fatal("no probe for this call")
	}
	d := start(t)
	seen, err := p.other(t.Context(), d.as(uidOf[role]))
	code := connect.CodeOf(err)
	switch want {
	case No:
		if code != connect.CodePermissionDenied {
			t.Errorf("on another's: %v, want permission denied", err)
		}
		if p.own != nil {
			if _, err := p.own(t.Context(), d.as(uidOf[role])); connect.CodeOf(err) != connect.CodePermissionDenied {
				t.Errorf("on its own: %v, want permission denied", err)
			}
		}
	case All:
		if err != nil {
			t.Errorf("on another's: %v", err)
		}
		if len(seen) > 0 && !slices.ContainsFunc(seen, func(l *vacatev1.Lease) bool { return l.GetId() == idOther }) {
			t.Error("another's lease was not shown")
		}
	case Own:
		if p.own == nil { // a call that shows leases
			if err != nil || len(seen) == 0 {
				t.Errorf("saw %d leases, %v", len(seen), err)
			}
			for _, l := range seen {
				if l.GetUid() != uidOf[role] {
					t.Errorf("saw lease %s of uid %d", l.GetId(), l.GetUid())
				}
			}
			return
		}
		checkOwn(t, d, p, role, err)
	default:
		t.Errorf("the document says %q, which is no access", want)
	}
}

// checkOwn checks that another's lease is as one that does not exist, and that
// one's own is there.
func checkOwn(t *testing.T, d *daemon, p probe, role Role, other error) {
	if connect.CodeOf(other) != connect.CodeNotFound {
		t.Errorf("on another's: %v, want not found", other)
	}
	d.node.mu.Lock()
	delete(d.node.leases, idOther)
	delete(d.node.leases, idOtherPast)
	for _, id := range []string{idOwn, idPast} { // an operator may own some, too
		l := d.node.leases[id]
		l.UID = uidOf[role]
		d.node.leases[id] = l
	}
	d.node.mu.Unlock()
	if _, none := p.other(t.Context(), d.as(uidOf[role])); none == nil || none.Error() != other.Error() {
		t.Errorf("another's lease and none can be told apart: %q, %q", other, none)
	}
	if _, err := p.own(t.Context(), d.as(uidOf[role])); err != nil {
		t.Errorf("on its own: %v", err)
	}
}
