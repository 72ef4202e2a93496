package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world has the processes that an Attacher speaks with, played by the test: a
// devices process behind a real socket, engines, and a node's leases. The kernel's
// devices outlive them all.
type world struct {
	t      *testing.T
	a      *Attacher
	socket string

	end func() // of the devices process that runs

	mu      sync.Mutex
	leases  map[string]lease.Lease
	kernel  map[string]*kernelDevice
	engine  int // pid; 0: there is none
	kind    string
	serving map[string]int // lease → pid of the engine that took its device
	calls   []string
	at      map[string]func() // called once before a call, by "method lease"
	fail    map[string]error  // of a call, once
	now     map[string]int    // calls on a lease that are carried out
	linked  map[string]bool   // links that are there
	known   map[string]bool   // what the devices process that runs has made
	ending  map[string]int    // so often the engine still refuses a device, for one that it served and that was discarded
}

type kernelDevice struct {
	ipc.Device
	pid    int  // of the server that it has; 0: none
	hidden bool // it has no link, by which its lease is known
	used   bool // it was started once: it is given to another server, not discarded
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "v") // short: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) //nolint:errcheck // the system cleans up
	w := &world{t: t, socket: filepath.Join(dir, "d"), leases: map[string]lease.Lease{}, kernel: map[string]*kernelDevice{}, engine: 100,
		kind: ipc.DeviceUblk, serving: map[string]int{}, at: map[string]func(){}, fail: map[string]error{}, now: map[string]int{}, ending: map[string]int{}, linked: map[string]bool{}}
	w.a = w.attacher()
	t.Cleanup(func() {
		w.stop()
		w.a.Close()
	})
	return w
}

func (w *world) attacher() *Attacher {
	w.t.Helper()
	if w.a != nil {
		w.a.Close()
	}
	l, err := Listen(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := New(Config{Listener: l, Engine: w, Lease: w.lease, NBDSocket: func(id string) string { return "/run/" + id },
		Linked:   func(id string) bool { w.mu.Lock(); defer w.mu.Unlock(); return w.linked[id] },
		RetryMin: time.Millisecond, RetryMax: 5 * time.Millisecond, Wait: 10 * time.Second, Grace: 200 * time.Millisecond, Settle: 50 * time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// run has the Attacher look after devices until the test or what it returns ends.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done, a := make(chan struct{}), w.a
	go func() {
		defer close(done)
		a.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

// start starts a devices process, which connects to whatever control there is.
func (w *world) start() {
	w.mu.Lock()
	w.known = map[string]bool{}
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() {
		for ctx.Err() == nil {
			if f, err := dial(w.socket); err == nil {
				ipc.Serve(ctx, f, w.handle) //nolint:errcheck // it ends as it ends
				f.Close()                   //nolint:errcheck // likewise
			}
			time.Sleep(time.Millisecond)
		}
	})
	w.end = sync.OnceFunc(func() {
		cancel()
		served.Wait()
	})
}

func dial(socket string) (*os.File, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // the file goes on
	return c.File()
}

// stop kills the devices process. What it made stays.
func (w *world) stop() {
	if w.end != nil {
		w.end()
	}
}

func (w *world) lease(id string) (lease.Lease, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l, ok := w.leases[id]; ok {
		return l, nil
	}
	return lease.Lease{}, &node.Error{Kind: node.NotFound, Text: "no lease"}
}

func (w *world) set(id string, s lease.State) lease.Lease {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := lease.Lease{ID: id, SizeBytes: 1 << 20, LogicalBlock: 4096, UID: 7, State: s}
	w.leases[id] = l
	return l
}

// nextEngine ends the engine that there is, and starts another.
func (w *world) nextEngine() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.kernel {
		d.pid, d.Live = 0, false
	}
	clear(w.serving)
	clear(w.ending)
	w.engine++
}

// mount has a device be in use.
func (w *world) mount(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kernel[id].Node = "busy"
}

// link has the link to a lease's device be there, or not.
func (w *world) link(id string, there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.linked[id] = there
}

// can has the devices process make this kind.
func (w *world) can(kind string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kind = kind
}

// all are the calls that came.
func (w *world) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.calls)
}

// before has f called once, before that call on that lease.
func (w *world) before(method, id string, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at[method+" "+id] = f
}

// failing has that call fail once.
func (w *world) failing(method, id string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[method+" "+id] = err
}

// enter notes a call. Two at once for a lease are a fault.
func (w *world) enter(method, id string) (leave func(), err error) {
	w.mu.Lock()
	key := method + " " + id
	w.calls = append(w.calls, key)
	if w.now[id]++; w.now[id] > 1 && id != "" {
		w.t.Errorf("%s comes while another call for this lease is carried out", key)
	}
	f := w.at[key]
	delete(w.at, key)
	w.mu.Unlock()
	if f != nil {
		f()
	}
	w.mu.Lock()
	err = w.fail[key]
	delete(w.fail, key)
	w.mu.Unlock()
	return func() {
		w.mu.Lock()
		w.now[id]--
		w.mu.Unlock()
	}, err
}

func (w *world) Hello(context.Context) (ipc.Hello, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.engine == 0 {
		return ipc.Hello{}, fmt.Errorf("%w: there is none", ipc.ErrGone)
	}
	return ipc.Hello{PID: w.engine}, nil
}

func (w *world) ServesDevice(_ context.Context, id string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.engine == 0 {
		return false, fmt.Errorf("%w: it has ended", ipc.ErrGone)
	}
	return w.serving[id] == w.engine, nil
}

func (w *world) ServeDevice(_ context.Context, req ipc.DeviceServeRequest, char *os.File) error {
	leave, err := w.enter(ipc.MethodDeviceServe, req.Lease)
	defer leave()
	if err != nil {
		return err
	}
	b := make([]byte, len(req.Lease))
	if n, err := char.ReadAt(b, 0); err != nil || string(b[:n]) != req.Lease {
		w.t.Errorf("the engine got %q, %v for lease %s", b[:n], err, req.Lease)
	}
	if req.Queues != 2 || req.Depth != 64 || req.MaxIO != 1<<19 {
		w.t.Errorf("the engine is asked to serve %+v", req)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.engine == 0 {
		return fmt.Errorf("%w: it has ended", ipc.ErrGone)
	}
	if w.ending[req.Lease] > 0 {
		w.ending[req.Lease]--
		return &ipc.RemoteError{Code: ipc.CodeBusy, Text: "it is served already"}
	}
	w.serving[req.Lease] = w.engine
	return nil
}

func (w *world) handle(_ context.Context, method string, body []byte, _ []*os.File) (any, error) {
	var ref struct {
		Lease        string `json:"lease"`
		SizeBytes    int64  `json:"sizeBytes"`
		LogicalBlock int    `json:"logicalBlock"`
		UID          uint32 `json:"uid"`
		Socket       string `json:"socket"`
		PID          int    `json:"pid"`
		Force        bool   `json:"force"`
		Served       bool   `json:"served"`
	}
	if err := ipc.Decode(body, &ref); err != nil {
		return nil, err
	}
	leave, err := w.enter(method, ref.Lease)
	defer leave()
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.kernel[ref.Lease]
	switch method {
	case ipc.MethodDeviceHello:
		return ipc.DevicesHello{PID: 5, Kind: w.kind, Why: "as the test says"}, nil
	case ipc.MethodDeviceMake:
		return w.make(ref.Lease, ref.SizeBytes, ref.Socket)
	case ipc.MethodDeviceStart:
		if d == nil {
			return nil, &ipc.RemoteError{Code: ipc.CodeNotFound, Text: "it has no block device"}
		}
		if ref.PID != w.serving[ref.Lease] && d.Kind == ipc.DeviceUblk {
			return nil, &ipc.RemoteError{Code: ipc.CodeInvalid, Text: fmt.Sprintf("pid %d does not serve it", ref.PID)}
		}
		if !w.known[ref.Lease] && !ref.Served {
			return nil, &ipc.RemoteError{Code: ipc.CodeMismatch, Text: "device.make comes first"}
		}
		d.pid, d.Live, d.used = ref.PID, true, true
		return d.Device, nil
	case ipc.MethodDeviceRemove:
		if d == nil {
			return nil, &ipc.RemoteError{Code: ipc.CodeNotFound, Text: "it has no block device"}
		}
		if d.Node == "busy" && !ref.Force {
			return nil, &ipc.RemoteError{Code: ipc.CodeBusy, Text: "/dev/ublkb0 is mounted at /srv"}
		}
		delete(w.kernel, ref.Lease)
		return ipc.Empty{}, nil
	case ipc.MethodDeviceResize:
		if d == nil {
			return nil, &ipc.RemoteError{Code: ipc.CodeNotFound, Text: "it has no block device"}
		}
		d.SizeBytes = ref.SizeBytes
		return ipc.Empty{}, nil
	case ipc.MethodDeviceList:
		var res ipc.DeviceList
		for _, d := range w.kernel {
			if !d.hidden {
				res.Devices = append(res.Devices, d.Device)
			}
		}
		return res, nil
	}
	return nil, errors.New("no such method: " + method)
}

// make is device.make. REQUIRES: w.mu is held.
func (w *world) make(id string, size int64, socket string) (any, error) {
	d := w.kernel[id]
	if d != nil && d.hidden { // its start is made up for
		d.hidden = false
		return nil, &ipc.RemoteError{Code: ipc.CodeBusy, Text: fmt.Sprintf("it is served, by process %d", d.pid)}
	}
	if d != nil && d.pid != 0 {
		w.t.Errorf("a device of %s is made that is served by %d", id, d.pid)
	}
	if d != nil && d.used && w.serving[id] == w.engine { // whose server has its character device
		return nil, &ipc.RemoteError{Code: ipc.CodeBusy, Text: "the last server has not let it go"}
	}
	w.known[id] = true
	if d != nil && !d.Live && w.serving[id] == w.engine { // never started: discarded, and the engine learns of it a little later
		w.ending[id], d = 2, nil
		delete(w.serving, id)
	}
	if d == nil {
		d = &kernelDevice{Device: ipc.Device{Lease: id, Kind: w.kind, Path: "/dev/vacate/" + id, Node: "/dev/b", SizeBytes: size}}
		w.kernel[id] = d
	}
	if w.kind == ipc.DeviceNBD {
		if socket != "/run/"+id {
			return nil, &ipc.RemoteError{Code: ipc.CodeInvalid, Text: "it has no NBD export: " + socket}
		}
		return ipc.DeviceMade{Kind: w.kind}, nil
	}
	f, err := os.CreateTemp(filepath.Dir(w.socket), "c")
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteString(id); err != nil {
		return nil, err
	}
	return ipc.WithFiles{Body: ipc.DeviceMade{Kind: w.kind, Queues: 2, Depth: 64, MaxIO: 1 << 19}, Files: []*os.File{f}}, nil
}

// has tells which leases have devices, and which of them are served by the engine
// that there is.
func (w *world) has() (all, live []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, d := range w.kernel {
		all = append(all, id)
		if d.Live && (d.Kind == ipc.DeviceNBD || d.pid == w.engine) {
			live = append(live, id)
		}
	}
	slices.Sort(all)
	slices.Sort(live)
	return all, live
}

func (w *world) called(key string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		if c == key {
			n++
		}
	}
	return n
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for start := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 30*time.Second {
			all, live := w.has()
			w.t.Fatalf("it is not so that %s: devices %v, live %v", what, all, live)
		}
	}
}

func (w *world) none() {
	w.t.Helper()
	w.eventually("no device is left", func() bool { all, _ := w.has(); return len(all) == 0 })
}

// wantKind checks an error as callers see it.
func wantKind(t *testing.T, err error, kind node.Kind, parts ...string) {
	t.Helper()
	var e *node.Error
	if !errors.As(err, &e) || e.Kind != kind {
		t.Errorf("%v, want an error of kind %s", err, kind)
		return
	}
	for _, p := range parts {
		if !contains(err.Error(), p) {
			t.Errorf("%q does not say %q", err, p)
		}
	}
}
