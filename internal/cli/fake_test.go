package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/api/vacate/v1/vacatev1connect"
	"vacate/proof/prooftest"
)

// A fake is a daemon with canned answers, which serves one call at a time. The
// requests that it got are kept.
type fake struct {
	mu     sync.Mutex
	opened *vacatev1.LeaseServiceOpenRequest
	limit  *vacatev1.LeaseServiceLimitRequest
	resize *vacatev1.LeaseServiceResizeRequest
	enroll *vacatev1.DriveServiceEnrollRequest
	stop   *vacatev1.NodeServiceStopRequest
	sock   string

	proofFake // see fakeproof_test.go

	cut      int      // how many calls of Open and Close are cut off
	recovers int      // how many calls of Open and Limit meet a daemon that recovers
	keys     []string // of the calls of Open
	program  string   // at the daemon's path
	upgrade  string   // what the next upgrade ends with; or a connect error's text
	ended    string   // what the last one ended with
}

const (
	idOpen   = "aaaabbbbccccdddd"
	idClosed = "eeeeffffgggghhhh"
	idErased = "iiiijjjjkkkkllll"
	idLost   = "mmmmnnnnoooopppp"
	idVM     = "qqqqrrrrsssstttt" // open, over NBD and vhost-user
)

func fakeError(code connect.Code, text string, p *vacatev1.Problem) error {
	err := connect.NewError(code, errors.New(text))
	d, derr := connect.NewErrorDetail(p)
	if derr != nil {
		return derr
	}
	err.AddDetail(d)
	return err
}

func noSuchLease(id string) error {
	return fakeError(connect.CodeNotFound, "there is no lease \""+id+"\"",
		&vacatev1.Problem{Kind: "not-found", Object: id, Next: "see `vacate lease list --all`"})
}

var fakeTime = time.Date(2026, 3, 4, 5, 6, 7, 890e6, time.UTC)

func fakeLease(id string) *vacatev1.Lease {
	l := &vacatev1.Lease{
		Id: id, Tenant: "acme", SizeBytes: 10 << 30, Drive: "/dev/nvme1n1", LogicalBlock: 512, Uid: 1000, OpenedAt: timestamppb.New(fakeTime),
		Space: "held", OpenSeq: 7, Pieces: []*vacatev1.Piece{{Drive: "/dev/nvme1n1", DriveUuid: "00ff", FirstExtent: 3, Extents: 160}},
	}
	erasure := &vacatev1.Erasure{GateToKeyDestroyedNs: 143200, GateToCiphersDoneNs: 21000, ReadBack: true, Drained: true}
	switch id {
	case idOpen:
		l.State = vacatev1.LeaseState_LEASE_STATE_OPEN
		l.ExpiresAt = timestamppb.New(fakeTime.Add(24 * time.Hour))
		l.Limits = &vacatev1.Limits{Iops: 5000, BandwidthBytes: 200 << 20, BandwidthBurstBytes: 1 << 30}
		l.Exports = []*vacatev1.Export{{Kind: "nbd", Uri: "nbd+unix:///?socket=/run/vacate/leases/" + id + "/nbd.sock", Socket: "/run/vacate/leases/" + id + "/nbd.sock"}}
		l.Stats = &vacatev1.LeaseStats{Connections: 2, Reads: 10, Writes: 20, Discards: 3, Flushes: 4, ReadBytes: 40960, WriteBytes: 81920, Errors: 1, WrittenBytes: 1 << 20}
	case idVM:
		l.State = vacatev1.LeaseState_LEASE_STATE_OPEN
		dir := "/run/vacate/leases/" + id
		l.Exports = []*vacatev1.Export{{Kind: "nbd", Uri: "nbd+unix:///?socket=" + dir + "/nbd.sock", Socket: dir + "/nbd.sock"},
			{Kind: "vhost-user", Socket: dir + "/vhost-user.sock", Queues: 4, ReadOnly: true}}
		l.Stats = &vacatev1.LeaseStats{Connections: 1, Reads: 5, ReadBytes: 20480, Queues: 2, BrokenQueues: 1, Expelled: 3}
	case idClosed:
		l.State, l.Result, l.Space, l.CloseSeq, l.Erasure = vacatev1.LeaseState_LEASE_STATE_CLOSED, "ok", "free", 8, erasure
		l.ClosedAt = timestamppb.New(fakeTime.Add(time.Hour))
	case prooftest.Lease1: // of the tests of proof: 8 blocks
		l.State, l.SizeBytes = vacatev1.LeaseState_LEASE_STATE_OPEN, 8*4096
	case idErased:
		erasure.Drained, erasure.Quarantined = false, true
		l.State, l.Result, l.Space, l.Erasure = vacatev1.LeaseState_LEASE_STATE_ERASED, "ok", "held", erasure
		l.ClosedAt = timestamppb.New(fakeTime.Add(time.Hour))
	case idLost:
		l.State, l.Result, l.Text = vacatev1.LeaseState_LEASE_STATE_LOST, "lost_engine", "the engine ended; the keeper overwrote its keys"
		l.ClosedAt, l.Space = timestamppb.New(fakeTime.Add(time.Hour)), "free"
	default:
		return nil
	}
	return l
}

func fakeDrive() *vacatev1.Drive {
	return &vacatev1.Drive{
		Path: "/dev/nvme1n1", Uuid: "00ff", Kind: "block device", Model: "ACME SSD\x1b[31m", Serial: "S123", Engine: "pread", EngineWhy: "no io_uring", Direct: true,
		Flush: "watched", FlushWhy: "O_DIRECT on a local drive with a volatile cache", SizeBytes: 1 << 40, FreeBytes: 900 << 30,
		LeasedBytes: 100 << 30, QuarantinedBytes: 24 << 30, State: "ready", LogicalBlock: 512, PhysicalBlock: 4096,
		ExtentBytes: 64 << 20, Extents: 16383, Repaired: []string{"second"}, CapacityBytes: 1023 << 30, Errors: 3, LastError: "read at 4096: input/output error",
	}
}

// leaseFake, driveFake and nodeFake are the services of a fake.
type leaseFake struct{ *fake }

func (f leaseFake) Open(_ context.Context, req *vacatev1.LeaseServiceOpenRequest) (*vacatev1.LeaseServiceOpenResponse, error) {
	f.opened = req
	f.keys = append(f.keys, req.GetIdempotencyKey())
	f.cutOff()
	if err := f.recovering(); err != nil {
		return nil, err
	}
	switch {
	case req.GetSizeBytes()%4096 != 0:
		return nil, fakeError(connect.CodeInvalidArgument, "not a multiple of 4096", &vacatev1.Problem{Kind: "invalid"})
	case req.GetSizeBytes() > 1<<40:
		return nil, fakeError(connect.CodeResourceExhausted, "there is not that much space", &vacatev1.Problem{Kind: "full", Next: "900 GiB are free"})
	}
	if req.GetAttach() {
		return &vacatev1.LeaseServiceOpenResponse{Lease: attached(fakeLease(idOpen))}, nil
	}
	if len(req.GetExports()) > 0 {
		return &vacatev1.LeaseServiceOpenResponse{Lease: fakeLease(idVM)}, nil
	}
	return &vacatev1.LeaseServiceOpenResponse{Lease: fakeLease(idOpen), Receipt: f.receipt, ReceiptWhy: f.receiptWhy}, nil
}

func (f leaseFake) List(_ context.Context, req *vacatev1.LeaseServiceListRequest) (*vacatev1.LeaseServiceListResponse, error) {
	if req.GetTenant() == "nobody" {
		return &vacatev1.LeaseServiceListResponse{}, nil
	}
	res := &vacatev1.LeaseServiceListResponse{Leases: []*vacatev1.Lease{fakeLease(idOpen), fakeLease(idErased)}}
	if req.GetTenant() == "attached" {
		res.Leases = append(res.Leases, attached(fakeLease(idVM)))
	}
	if req.GetIncludeEnded() {
		res.Leases = append(res.Leases, fakeLease(idClosed), fakeLease(idLost))
	}
	return res, nil
}

func (f leaseFake) Get(_ context.Context, req *vacatev1.LeaseServiceGetRequest) (*vacatev1.LeaseServiceGetResponse, error) {
	if l := fakeLease(req.GetId()); l != nil {
		return &vacatev1.LeaseServiceGetResponse{Lease: l}, nil
	}
	return nil, noSuchLease(req.GetId())
}

func (f leaseFake) Limit(_ context.Context, req *vacatev1.LeaseServiceLimitRequest) (*vacatev1.LeaseServiceLimitResponse, error) {
	f.limit = req
	if err := f.recovering(); err != nil {
		return nil, err
	}
	l := fakeLease(req.GetId())
	switch {
	case l == nil:
		return nil, noSuchLease(req.GetId())
	case l.GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN:
		return nil, fakeError(connect.CodeFailedPrecondition, "lease is closed: only an open lease can be limited", &vacatev1.Problem{Kind: "refused"})
	}
	l.Limits = req.GetLimits()
	return &vacatev1.LeaseServiceLimitResponse{Lease: l}, nil
}

func (f leaseFake) Resize(_ context.Context, req *vacatev1.LeaseServiceResizeRequest) (*vacatev1.LeaseServiceResizeResponse, error) {
	f.resize = req
	if err := f.recovering(); err != nil {
		return nil, err
	}
	l := fakeLease(req.GetId())
	switch {
	case l == nil:
		return nil, noSuchLease(req.GetId())
	case req.GetSizeBytes() < l.GetSizeBytes():
		return nil, fakeError(connect.CodeFailedPrecondition, "a volume is never made smaller", &vacatev1.Problem{Kind: "refused"})
	}
	l.SizeBytes = req.GetSizeBytes()
	l.Pieces[0].Extents += 160
	return &vacatev1.LeaseServiceResizeResponse{Lease: l}, nil
}

// attached is l with a block device.
func attached(l *vacatev1.Lease) *vacatev1.Lease {
	l.Device, l.DeviceKind = "/dev/vacate/"+l.GetId(), "ublk"
	return l
}

func (f leaseFake) Attach(_ context.Context, req *vacatev1.LeaseServiceAttachRequest) (*vacatev1.LeaseServiceAttachResponse, error) {
	f.cutOff()
	switch l := fakeLease(req.GetId()); {
	case l == nil:
		return nil, noSuchLease(req.GetId())
	case req.GetId() == idVM:
		return nil, fakeError(connect.CodeUnimplemented, "block devices are not made on this host: no ublk_drv", &vacatev1.Problem{Kind: "unsupported", Next: "modprobe ublk_drv"})
	default:
		return &vacatev1.LeaseServiceAttachResponse{Lease: attached(l)}, nil
	}
}

func (f leaseFake) Detach(_ context.Context, req *vacatev1.LeaseServiceDetachRequest) (*vacatev1.LeaseServiceDetachResponse, error) {
	switch l := fakeLease(req.GetId()); {
	case l == nil:
		return nil, noSuchLease(req.GetId())
	case req.GetId() == idVM:
		return nil, fakeError(connect.CodeFailedPrecondition, "/dev/ublkb0 is mounted at /srv/acme", &vacatev1.Problem{Kind: "refused", Next: "unmount it"})
	default:
		return &vacatev1.LeaseServiceDetachResponse{Lease: l}, nil
	}
}

func (f leaseFake) Close(_ context.Context, req *vacatev1.LeaseServiceCloseRequest) (*vacatev1.LeaseServiceCloseResponse, error) {
	f.cutOff()
	if l := fakeLease(req.GetId()); l != nil {
		return &vacatev1.LeaseServiceCloseResponse{Lease: l}, nil
	}
	return nil, noSuchLease(req.GetId())
}

func (f leaseFake) Watch(_ context.Context, req *vacatev1.LeaseServiceWatchRequest, s *connect.ServerStream[vacatev1.LeaseServiceWatchResponse]) error {
	for _, id := range []string{idOpen, idErased, idClosed, idLost} {
		if err := s.Send(&vacatev1.LeaseServiceWatchResponse{Lease: fakeLease(id)}); err != nil {
			return err
		}
	}
	return nil
}

type driveFake struct{ *fake }

func (f driveFake) Enroll(_ context.Context, req *vacatev1.DriveServiceEnrollRequest) (*vacatev1.DriveServiceEnrollResponse, error) {
	f.enroll = req
	found := []*vacatev1.Finding{{Code: "note", Text: "this drive is slow"}}
	if strings.HasSuffix(req.GetPath(), "/used") {
		found = append(found, &vacatev1.Finding{Code: "signature", Text: "an ext4 file system labelled \"home\"", Refuse: true, Force: true})
	}
	if strings.HasSuffix(req.GetPath(), "/mounted") {
		found = append(found, &vacatev1.Finding{Code: "mounted", Text: "it is mounted at /home", Refuse: true})
	}
	if len(found) > 1 && !req.GetPlan() && !req.GetForce() {
		return nil, fakeError(connect.CodeFailedPrecondition, "enrolling "+filepath.Base(req.GetPath())+" was refused",
			&vacatev1.Problem{Kind: "refused", Object: req.GetPath(), Next: "use another drive", Findings: found})
	}
	d := fakeDrive()
	d.Path = filepath.Base(req.GetPath()) // the test's folder differs from run to run
	return &vacatev1.DriveServiceEnrollResponse{Drive: d, Findings: found, Enrolled: !req.GetPlan()}, nil
}

func (f driveFake) List(context.Context, *vacatev1.DriveServiceListRequest) (*vacatev1.DriveServiceListResponse, error) {
	return &vacatev1.DriveServiceListResponse{Drives: []*vacatev1.Drive{fakeDrive()}}, nil
}

func (f driveFake) Get(_ context.Context, req *vacatev1.DriveServiceGetRequest) (*vacatev1.DriveServiceGetResponse, error) {
	if req.GetDrive() != "/dev/nvme1n1" {
		return nil, fakeError(connect.CodeNotFound, "no such drive", &vacatev1.Problem{Kind: "not-found", Object: req.GetDrive()})
	}
	return &vacatev1.DriveServiceGetResponse{Drive: fakeDrive()}, nil
}

type nodeFake struct{ *fake }

func (f nodeFake) Status(context.Context, *vacatev1.NodeServiceStatusRequest) (*vacatev1.NodeServiceStatusResponse, error) {
	res := &vacatev1.NodeServiceStatusResponse{
		Version: "v0.1.0", KeeperVersion: "v0.1.0", LastUpgrade: f.ended, Binary: f.program, NodeId: "abcd", StartedAt: timestamppb.New(fakeTime), Ready: true, Pid: 42,
		Engine: &vacatev1.Engine{Pid: 43, Id: "e1", KeeperId: "k1", BootId: "b1", KeyStore: "memfd_secret", Buffers: "locked", Cipher: "aesni",
			MaxConnections: 128, MaxLeases: 1024, Version: "v0.1.0", Generation: 1, Sandbox: "no_new_privs, capabilities sys_nice ipc_lock, landlock 7, seccomp"},
		Leases: map[string]uint32{"open": 1, "erased": 1}, Drives: 1, CapacityBytes: 1 << 40, FreeBytes: 900 << 30, Connections: 2,
		Devices:  &vacatev1.Devices{Kind: "nbd", Why: "no ublk_drv: modprobe ublk_drv", Count: 3},
		Warnings: []string{"swap is in use"}, DangerZone: []string{"force_forward /dev/sda"},
	}
	if f.ended != "" { // other processes
		res.Pid, res.Engine.Pid, res.Engine.Id, res.Engine.Generation = 52, 53, "e2", 2
	}
	if f.ended == "done" {
		res.Version, res.KeeperVersion, res.Engine.Version = "v0.2.0", "v0.2.0", "v0.2.0"
	}
	return res, nil
}

// Upgrade cuts the caller off, as it may happen.
func (f nodeFake) Upgrade(context.Context, *vacatev1.NodeServiceUpgradeRequest) (*vacatev1.NodeServiceUpgradeResponse, error) {
	if f.upgrade == "" {
		return nil, fakeError(connect.CodeInternal, "the new program does not start; nothing was changed", &vacatev1.Problem{Kind: "internal", Next: "see the log"})
	}
	if f.upgrade != "never" {
		f.ended = f.upgrade
	}
	panic(http.ErrAbortHandler)
}

// cutOff ends a call without an answer, as a control that dies.
func (f *fake) cutOff() {
	if f.cut > 0 {
		f.cut--
		panic(http.ErrAbortHandler)
	}
}

// recovering is the answer of a control that has just started, some times.
func (f *fake) recovering() error {
	if f.recovers == 0 {
		return nil
	}
	f.recovers--
	return fakeError(connect.CodeUnavailable, "recovering", &vacatev1.Problem{Kind: "recovering"})
}

func (f nodeFake) Stop(_ context.Context, req *vacatev1.NodeServiceStopRequest) (*vacatev1.NodeServiceStopResponse, error) {
	f.stop = req
	switch {
	case req.GetPlan():
		return &vacatev1.NodeServiceStopResponse{Leases: []string{idOpen}}, nil
	case !req.GetErase():
		return nil, fakeError(connect.CodeFailedPrecondition, "1 lease is open", &vacatev1.Problem{Kind: "refused", Next: "close it, or stop with --erase"})
	}
	if err := os.Remove(f.sock); err != nil { // as a daemon does at its end
		return nil, err
	}
	return &vacatev1.NodeServiceStopResponse{Leases: []string{idOpen}, Stopping: true}, nil
}

// startFake serves a fake on a socket.
func startFake(t *testing.T) (*fake, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "v") // t.TempDir is too long for a socket in long test names
	if err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{sock: sock}
	mux := http.NewServeMux()
	mux.Handle(vacatev1connect.NewLeaseServiceHandler(leaseFake{f}))
	mux.Handle(vacatev1connect.NewDriveServiceHandler(driveFake{f}))
	mux.Handle(vacatev1connect.NewNodeServiceHandler(nodeFake{f}))
	mux.Handle(vacatev1connect.NewCertificateServiceHandler(certificateFake{f}))
	mux.Handle(vacatev1connect.NewTenantServiceHandler(tenantFake{f}))
	mux.Handle(vacatev1connect.NewTrustServiceHandler(trustFake{f}))
	mux.Handle(vacatev1connect.NewLogServiceHandler(logFake{f}))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock() // a call that is cut off orders nothing before the next one
		defer f.mu.Unlock()
		mux.ServeHTTP(w, r)
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return f, sock
}

// A result is what a run of the command line left.
type result struct {
	code     int
	out, err string
}

// run runs the command line in-process, against the daemon at sock.
func run(t *testing.T, sock string, hooks Hooks, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"VACATE_ADDR": sock}
	code := mainIn(time.UTC, args, hooks, Streams{In: strings.NewReader(""), Out: &out, Err: &errs, Getenv: func(k string) string { return env[k] }})
	return result{code, out.String(), errs.String()}
}
