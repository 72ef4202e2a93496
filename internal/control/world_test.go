package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/config"
	"vacate/internal/ipc"
	"vacate/internal/node/nodesim"
	"vacate/internal/sandbox"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A world is a control with a keeper that the test plays, and a simulated engine
// behind a real connection.
type world struct {
	t      *testing.T
	cfg    config.Config
	sim    *nodesim.Engine
	client *client.Client
	files  [2]*os.File // listening sockets

	// Of the control that runs.
	keeper *sys.PacketConn
	heard  chan volatile.Message
	ended  chan error
	engine func() // ends the connection to the engine

	devices devices
}

// bystander is control in a test's process, which it leaves as it is.
var bystander = effects{
	confine: func(sandbox.ControlOptions) (sandbox.Report, error) { return sandbox.Report{Off: true}, nil },
	trim:    func() error { return nil },
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "v") // short: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) //nolint:errcheck // the system cleans up
	w := &world{t: t, cfg: config.Default()}
	w.cfg.UseDev(dir)
	const extent = 1 << 20
	w.sim = nodesim.NewEngine(&nodesim.Faults{}, &nodesim.Disk{Info: ipc.DriveInfo{Path: w.cfg.DevDrive(), Kind: "file",
		ExtentBytes: extent, Extents: 64, SizeBytes: 65 * extent}})
	for i, path := range []string{w.cfg.APISocket(), w.cfg.AdminSocket()} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if w.files[i], err = l.File(); err != nil {
			t.Fatal(err)
		}
		l.Close() //nolint:errcheck // the file above goes on
	}
	w.client = client.Dial(w.cfg.APISocket())
	t.Cleanup(w.client.Close)
	return w
}

// start starts a control. It gets no engine yet.
func (w *world) start() {
	w.t.Helper()
	ours, theirs, err := sys.PacketPair()
	if err != nil {
		w.t.Fatal(err)
	}
	if w.keeper, err = sys.NewPacketConn(ours); err != nil {
		w.t.Fatal(err)
	}
	ours.Close() //nolint:errcheck // it was duplicated
	ctx, cancel := context.WithCancel(context.Background())
	w.heard, w.ended = make(chan volatile.Message, 16), make(chan error, 1)
	heard, ended, conn := w.heard, make(chan struct{}), w.keeper
	go func() {
		err := run(ctx, w.cfg, Files{API: w.files[0], Admin: w.files[1], Link: theirs}, slog.New(slog.DiscardHandler), bystander)
		close(ended)
		w.ended <- err
	}()
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			var b [volatile.MessageSize]byte
			var m volatile.Message
			if _, err := conn.Recv(b[:]); err != nil || m.Decode(&b) != nil {
				return
			}
			heard <- m
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		conn.Shutdown() //nolint:errcheck // it may have ended
		<-ended
		<-received
		conn.Close() //nolint:errcheck // nothing is left to say
	})
}

// connect gives control a connection to the engine, a new one.
func (w *world) connect() {
	w.t.Helper()
	f, end := serveEngine(w.t, w.handle)
	w.engine = end
	w.tell(volatile.Message{Kind: volatile.KindControl}, f)
	f.Close() //nolint:errcheck // control has its own
}

func (w *world) tell(m volatile.Message, f *os.File) {
	w.t.Helper()
	var b [volatile.MessageSize]byte
	m.Encode(&b)
	if err := w.keeper.Send(b[:], f); err != nil {
		w.t.Fatal(err)
	}
}

// hear waits for a message of control.
func (w *world) hear(want volatile.Kind) volatile.Message {
	w.t.Helper()
	select {
	case m := <-w.heard:
		if m.Kind != want {
			w.t.Fatalf("control says %v, want %v", m.Kind, want)
		}
		return m
	case <-time.After(time.Minute):
		w.t.Fatalf("control does not say %v", want)
		return volatile.Message{}
	}
}

// end is what the control that runs ends with.
func (w *world) end() error {
	w.t.Helper()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(time.Minute):
		w.t.Fatal("control does not end")
		return nil
	}
}

func (w *world) open() *vacatev1.Lease {
	w.t.Helper()
	res, err := w.client.Leases.Open(w.t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 1 << 20})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.GetLease()
}

func (w *world) status() *vacatev1.NodeServiceStatusResponse {
	w.t.Helper()
	st, err := w.client.Node.Status(w.t.Context(), &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	return st
}

// expect waits until a lease is in a state.
func (w *world) expect(id string, state vacatev1.LeaseState) *vacatev1.Lease {
	w.t.Helper()
	var l *vacatev1.Lease
	eventually(w.t, id+" is "+state.String(), func() bool {
		res, err := w.client.Leases.Get(w.t.Context(), &vacatev1.LeaseServiceGetRequest{Id: id})
		if err != nil {
			w.t.Fatal(err)
		}
		l = res.GetLease()
		return l.GetState() == state
	})
	return l
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("it is not so that %s", what)
		}
	}
}

// handle is the simulated engine behind a connection.
func (w *world) handle(ctx context.Context, method string, body []byte, files []*os.File) (any, error) {
	for _, f := range files {
		defer f.Close() //nolint:errcheck // it was only shown
	}
	e := w.sim
	switch method {
	case ipc.MethodHello:
		return e.Hello(ctx)
	case ipc.MethodInspect:
		return with(ctx, body, e.Inspect)
	case ipc.MethodEnroll:
		return with(ctx, body, e.Enroll)
	case ipc.MethodDriveOpen:
		return with(ctx, body, e.OpenDrive)
	case ipc.MethodLeaseOpen:
		return with(ctx, body, func(ctx context.Context, r ipc.LeaseOpenRequest) (ipc.LeaseOpened, error) {
			return e.OpenLease(ctx, r, files...)
		})
	case ipc.MethodLeaseServe:
		return with(ctx, body, func(ctx context.Context, r ipc.LeaseRef) (ipc.Empty, error) {
			return ipc.Empty{}, e.ServeLease(ctx, r.Lease)
		})
	case ipc.MethodLeaseLimit:
		return with(ctx, body, func(ctx context.Context, r ipc.LeaseLimitRequest) (ipc.Empty, error) {
			return ipc.Empty{}, e.LimitLease(ctx, r)
		})
	case ipc.MethodLeaseResize:
		return with(ctx, body, func(ctx context.Context, r ipc.LeaseResizeRequest) (ipc.Empty, error) {
			return ipc.Empty{}, e.ResizeLease(ctx, r)
		})
	case ipc.MethodLeaseClose:
		return with(ctx, body, func(ctx context.Context, r ipc.LeaseRef) (ipc.Erasure, error) { return e.CloseLease(ctx, r.Lease) })
	case ipc.MethodLeaseDrain:
		return with(ctx, body, func(ctx context.Context, r ipc.LeaseRef) (ipc.Empty, error) {
			return ipc.Empty{}, e.Drain(ctx, r.Lease)
		})
	case ipc.MethodDeviceServe:
		return with(ctx, body, func(_ context.Context, r ipc.DeviceServeRequest) (ipc.Empty, error) {
			return ipc.Empty{}, w.devices.serve(r, files)
		})
	case ipc.MethodDeviceServed: // what it serves here, may be made again at any time
		return ipc.DeviceServed{}, nil
	case ipc.MethodLeaseList:
		return e.Leases(ctx)
	case ipc.MethodStats:
		return e.Stats(ctx)
	}
	return nil, errors.New("no such method: " + method)
}

func with[Req, Resp any](ctx context.Context, body []byte, f func(context.Context, Req) (Resp, error)) (any, error) {
	var req Req
	if err := ipc.Decode(body, &req); err != nil {
		return nil, err
	}
	return f(ctx, req)
}

func (w *world) journalIs(reachable bool) {
	w.t.Helper()
	mode := os.FileMode(0o777) // refused, whoever runs the test
	if reachable {
		mode = 0o700
	}
	if err := os.Chmod(filepath.Join(w.cfg.Dev, "state"), mode); err != nil {
		w.t.Fatal(err)
	}
}

// answer answers an upgrade.
func (w *world) answer(m volatile.Message, errno syscall.Errno) {
	w.t.Helper()
	w.tell(volatile.Message{Kind: m.Kind, Reply: true, ID: m.ID, Errno: errno}, nil)
}
