package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/api/vacate/v1/vacatev1connect"
	"vacate/client"
	"vacate/internal/lease"
	"vacate/internal/node"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dialer is an HTTP client of a unix socket.
func dialer(t *testing.T, sock string, http2 bool) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", sock)
	}}
	if http2 {
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		tr.Protocols = &p
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// TestProtocols calls with JSON over HTTP/1.1, as curl does, and with gRPC.
func TestProtocols(t *testing.T) {
	d := start(t)
	h := dialer(t, d.sock, false)
	res, err := h.Post("http://vacate/vacate.v1.LeaseService/List", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got struct {
		Leases []struct{ ID, State, SizeBytes string }
	}
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %v", res.Status, err)
	}
	if len(got.Leases) != 2 || got.Leases[0].ID != idOwn || got.Leases[0].State != "LEASE_STATE_OPEN" || got.Leases[0].SizeBytes != "1073741824" {
		t.Errorf("leases %+v", got.Leases)
	}
	grpc := vacatev1connect.NewLeaseServiceClient(dialer(t, d.sock, true), "http://vacate", connect.WithGRPC())
	list, err := grpc.List(t.Context(), &vacatev1.LeaseServiceListRequest{})
	if err != nil || len(list.GetLeases()) != 2 {
		t.Errorf("gRPC: %v, %v", list, err)
	}
}

// TestLeaseMessage checks what a lease looks like from outside.
func TestLeaseMessage(t *testing.T) {
	d := start(t)
	res, err := d.as(uidTenant).Leases.Get(t.Context(), &vacatev1.LeaseServiceGetRequest{Id: idOwn})
	if err != nil {
		t.Fatal(err)
	}
	l := res.GetLease()
	if l.GetDrive() != "/dev/x" || l.GetPieces()[0].GetFirstExtent() != 2 || l.GetStats().GetWrittenBytes() != 4096 || l.GetErasure() != nil || l.GetClosedAt() != nil {
		t.Errorf("lease %v", l)
	}
	if e := l.GetExports()[0]; e.GetKind() != "nbd" || e.GetUri() != "nbd+unix:///?socket=/run/a%20b/leases/"+idOwn+"/nbd.sock" {
		t.Errorf("export %v", e)
	}
	past, err := d.as(uidTenant).Leases.Get(t.Context(), &vacatev1.LeaseServiceGetRequest{Id: idPast})
	if err != nil {
		t.Fatal(err)
	}
	if e := past.GetLease().GetErasure(); e.GetGateToKeyDestroyedNs() != 90000 || e.GetGateToCiphersDoneNs() != 2000 || !e.GetReadBack() || !e.GetDrained() || e.GetQuarantined() {
		t.Errorf("erasure %v", e)
	}
	if len(past.GetLease().GetExports()) != 0 || past.GetLease().GetResult() != "ok" {
		t.Errorf("lease %v", past.GetLease())
	}
	for state := range states {
		if got := leaseMessage(fakeLease(idOwn, 1, state), nil); stateName(got.GetState()) != string(state) {
			t.Errorf("state %s is shown as %s", state, got.GetState())
		}
	}
	if len(states) != len(lease.States) {
		t.Errorf("%d of %d states can be shown", len(states), len(lease.States))
	}
}

func TestQuarantine(t *testing.T) {
	l := fakeLease(idOwn, 1, lease.Erased)
	l.Space, l.Erasure.Drained = lease.Held, false
	if e := leaseMessage(l, nil).GetErasure(); !e.GetQuarantined() || e.GetDrained() {
		t.Errorf("erasure %v", e)
	}
}

func TestOpenRequest(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	uid, nobody := uint32(1234), uint32(1<<32-1)
	if _, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 8192, Tenant: "T", Drive: "D", LogicalBlock: 4096,
		Uid: &uid, Ttl: durationpb.New(time.Minute), IdempotencyKey: "K"}); err != nil {
		t.Fatal(err)
	}
	want := node.OpenRequest{SizeBytes: 8192, Tenant: "T", Drive: "D", LogicalBlock: 4096, UID: 1234, TTL: time.Minute, Key: "K"}
	if d.node.opened[0] != want {
		t.Errorf("the node was asked for %+v", d.node.opened[0])
	}
	if _, err := c.Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096}); err != nil {
		t.Fatal(err)
	}
	if got := d.node.opened[1].UID; got != uidOperator {
		t.Errorf("without a uid the lease is for %d", got)
	}
	for _, req := range []*vacatev1.LeaseServiceOpenRequest{
		{SizeBytes: 4096, Ttl: durationpb.New(time.Millisecond)}, {SizeBytes: 4096, Ttl: durationpb.New(0)},
		{SizeBytes: 4096, Ttl: &durationpb.Duration{Seconds: 1, Nanos: -1}}, {SizeBytes: 4096, Uid: &nobody},
	} {
		if _, err := c.Leases.Open(t.Context(), req); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
}

// TestErrors checks code, text and problem of each kind of error.
func TestErrors(t *testing.T) {
	d := start(t)
	for kind, code := range codes {
		d.node.fail = fmt.Errorf("opening: %w", &node.Error{Kind: kind, Object: "O", Text: "it went wrong", Next: "do this", Err: syscall.EIO})
		_, err := d.as(uidOperator).Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096})
		var ce *connect.Error
		if !errors.As(err, &ce) || ce.Code() != code || ce.Message() != "opening: it went wrong: input/output error" {
			t.Errorf("%s: %v", kind, err)
		}
		if p := client.ProblemOf(err); p.GetKind() != string(kind) || p.GetObject() != "O" || p.GetNext() != "do this" {
			t.Errorf("%s: problem %v", kind, p)
		}
	}
	for want, fail := range map[connect.Code]error{connect.CodeInternal: syscall.EIO, connect.CodeUnavailable: context.DeadlineExceeded} {
		d.node.fail = fail
		if _, err := d.as(uidOperator).Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096}); connect.CodeOf(err) != want {
			t.Errorf("%v: %v", fail, err)
		}
	}
	for _, id := range []string{"", "nope", strings.Repeat("z", 16), "../../etc/passwd"} {
		if _, err := d.as(uidOperator).Leases.Get(t.Context(), &vacatev1.LeaseServiceGetRequest{Id: id}); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("lease %q: %v", id, err)
		}
	}
	_, err := d.as(uidOperator).Drives.Enroll(t.Context(), &vacatev1.DriveServiceEnrollRequest{Path: "/used"})
	if p := client.ProblemOf(err); connect.CodeOf(err) != connect.CodeFailedPrecondition || len(p.GetFindings()) != 1 || p.GetFindings()[0].GetCode() != "signature" {
		t.Errorf("enrolling: %v, %v", err, p)
	}
}

// TestCloseGoesOnAlone checks that a close is carried out when its caller leaves.
func TestCloseGoesOnAlone(t *testing.T) {
	d := start(t)
	d.node.hold, d.node.entered = make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	left := make(chan error, 1)
	go func() {
		_, err := d.as(uidTenant).Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: idOwn})
		left <- err
	}()
	<-d.node.entered
	cancel()
	if err := <-left; connect.CodeOf(err) != connect.CodeCanceled {
		t.Fatalf("closing: %v", err)
	}
	close(d.node.hold)
	eventually(t, "the lease is closed", func() bool {
		l, err := d.node.Get(idOwn)
		return err == nil && l.State == lease.Closed
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if f() {
			return
		}
	}
	t.Errorf("not so after a minute: %s", what)
}

// TestWatch checks the first list, the changes, the list after missed changes,
// and that a watch ends with the server.
func TestWatch(t *testing.T) {
	d := start(t)
	s, err := d.as(uidOperator).Leases.Watch(t.Context(), &vacatev1.LeaseServiceWatchRequest{Ids: []string{idOwn, idPast}})
	if err != nil {
		t.Fatal(err)
	}
	next := func(id string, state lease.State) {
		t.Helper()
		if !s.Receive() || s.Msg().GetLease().GetId() != id || stateName(s.Msg().GetLease().GetState()) != string(state) {
			t.Errorf("received %v, %v, want %s %s", s.Msg(), s.Err(), id, state)
		}
	}
	next(idOwn, lease.Open)
	next(idPast, lease.Closed)
	for _, id := range []string{idOther, idOwn} {
		if _, err := d.node.Close(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	next(idOwn, lease.Closed)
	d.node.mu.Lock()
	for w := range d.node.watches {
		w.ch <- node.Change{Missed: 3}
	}
	d.node.mu.Unlock()
	next(idOwn, lease.Closed)
	next(idPast, lease.Closed)
	d.stop()
	if s.Receive() || connect.CodeOf(s.Err()) != connect.CodeUnavailable {
		t.Errorf("the watch ended with %v", s.Err())
	}
	s.Close()
	eventually(t, "the node's watch is closed", func() bool { return d.node.watching() == 0 })
}

func TestWatchUnknown(t *testing.T) {
	d := start(t)
	s, err := d.as(uidTenant).Leases.Watch(t.Context(), &vacatev1.LeaseServiceWatchRequest{Ids: []string{idOther}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Receive() || connect.CodeOf(s.Err()) != connect.CodeNotFound {
		t.Errorf("watching another's lease: %v", s.Err())
	}
}

// TestStop checks that the answer arrives before the server ends.
func TestStop(t *testing.T) {
	d := start(t)
	c := d.as(uidOperator)
	plan, err := c.Node.Stop(t.Context(), &vacatev1.NodeServiceStopRequest{Plan: true})
	if err != nil || plan.GetStopping() || len(plan.GetLeases()) != 2 || d.node.stopped {
		t.Errorf("plan: %v, %v", plan, err)
	}
	if _, err := c.Node.Stop(t.Context(), &vacatev1.NodeServiceStopRequest{}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("stopping with leases open: %v", err)
	}
	res, err := c.Node.Stop(t.Context(), &vacatev1.NodeServiceStopRequest{Erase: true})
	if err != nil || !res.GetStopping() || len(res.GetLeases()) != 1 {
		t.Errorf("stopping: %v, %v", res, err)
	}
	d.wait()
	if _, err := c.Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{}); err == nil {
		t.Error("a server answers that has ended")
	}
}

func TestStatus(t *testing.T) {
	d := start(t, func(c *Config) { c.Warnings, c.DangerZone = []string{"swap"}, []string{"force_forward /x"} })
	st, err := d.as(uidAuditor).Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
	if err != nil || st.GetVersion() != "v1" || st.GetEngine().GetMaxLeases() != 1024 || st.GetConnections() != 3 || st.GetLeases()["open"] != 2 ||
		st.GetWarnings()[0] != "swap" || !strings.HasSuffix(st.GetWarnings()[1], "are refused: this build clears no heap") || len(st.GetDangerZone()) != 1 || int(st.GetPid()) != os.Getpid() {
		t.Errorf("status %v, %v", st, err)
	}
	d.node.engine = false
	if st, err = d.as(uidAuditor).Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{}); err != nil || st.GetEngine() != nil || st.GetReady() || st.GetReadyWhy() == "" {
		t.Errorf("status without an engine: %v, %v", st, err)
	}
}

// TestAudit checks that mutating calls leave a line each, with who and what.
func TestAudit(t *testing.T) {
	var buf bytes.Buffer
	d := start(t, func(c *Config) { c.Log = slog.New(slog.NewJSONHandler(&buf, nil)) })
	ctx := t.Context()
	calls := []error{
		second(d.as(uidOperator).Leases.Open(ctx, &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096, Tenant: "a\nb"})),
		second(d.as(uidAuditor).Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: idOwn})),
		second(d.as(uidTenant).Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: idOwn})),
		second(d.as(uidOperator).Drives.Enroll(ctx, &vacatev1.DriveServiceEnrollRequest{Path: "/used"})),
		second(d.as(uidOperator).Leases.List(ctx, &vacatev1.LeaseServiceListRequest{})),
	}
	d.stop()
	d.wait()
	want := []string{
		`"call":"Lease.Open","uid":40,"pid":99,"role":"operator","tenant":"a\nb","size_bytes":4096,"lease_id":"0000000000000001","outcome":"ok"`,
		`"call":"Lease.Close","uid":50,"pid":99,"role":"auditor","lease_id":"` + idOwn + `","outcome":"permission_denied"`,
		`"call":"Lease.Close","uid":1000,"pid":99,"role":"tenant","lease_id":"` + idOwn + `","state":"closed","outcome":"ok"`,
		`"call":"Drive.Enroll","uid":40,"pid":99,"role":"operator","drive":"/used","plan":false,"force":false,"outcome":"failed_precondition"`,
	}
	lines := strings.Split(strings.TrimSpace(buf.String()), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%d lines for %v:\n%s", len(lines), calls, buf.String())
	}
	for i, w := range want {
		if !strings.Contains(lines[i], w) {
			t.Errorf("line %d: %s\nwant %s", i, lines[i], w)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestObserve(t *testing.T) {
	seen := make(chan string, 10)
	d := start(t, func(c *Config) { c.Observe = func(call, code string, _ time.Duration) { seen <- call + " " + code } })
	if _, err := d.as(uidTenant).Leases.List(t.Context(), &vacatev1.LeaseServiceListRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.as(uidTenant).Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{}); err == nil {
		t.Fatal("a tenant sees the status")
	}
	if a, b := <-seen, <-seen; a != "Lease.List ok" || b != "Node.Status permission_denied" {
		t.Errorf("observed %q, %q", a, b)
	}
}

func TestErasures(t *testing.T) {
	n := newFakeNode()
	ctx, cancel := context.WithCancel(t.Context())
	got, ended := make(chan time.Duration, 10), make(chan error, 1)
	go func() { ended <- Erasures(ctx, n, func(d time.Duration) { got <- d }) }()
	eventually(t, "it watches", func() bool { return n.watching() == 1 })
	l := fakeLease(idOwn, 1, lease.Erased)
	l.Space = lease.Held
	n.mu.Lock()
	n.put(l)
	n.put(l)
	n.put(fakeLease(idOwn, 1, lease.Closed))
	n.put(fakeLease(idOther, 1, lease.Lost))
	n.mu.Unlock()
	if a, b := <-got, <-got; a != 90*time.Microsecond || b != 90*time.Microsecond {
		t.Errorf("observed %v, %v", a, b)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if len(got) != 0 {
		t.Error("an erasure was told about twice")
	}
}

func TestSnapshot(t *testing.T) {
	n := newFakeNode()
	s := Snapshot(t.Context(), n, Processes{Control: "v1", Keeper: "v0"})
	if !s.Ready || s.Leases["open"] != 2 || len(s.Leases) != len(lease.States) || s.Drives[0].Free != 68<<26 || !s.Drives[0].Up || s.Engine.Connections != 3 {
		t.Errorf("snapshot %+v", s)
	}
	n.engine = false
	if s := Snapshot(t.Context(), n, Processes{Control: "v1", Keeper: "v0"}); s.Engine != nil || s.Ready {
		t.Errorf("snapshot without an engine %+v", s)
	}
}
