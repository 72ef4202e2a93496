package devices

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/ipc"
)

// child is what a process that a test starts does instead of tests, if it has any.
var child func()

// strangerEnv names a socket on which a process listens, instead of testing.
const strangerEnv = "DEVICES_TEST_STRANGER"

func TestMain(m *testing.M) {
	if path := os.Getenv(strangerEnv); path != "" {
		if _, err := net.Listen("unix", path); err != nil {
			os.Exit(3)
		}
		fmt.Println("listening")
		select {}
	}
	if child != nil {
		child()
	}
	goleak.VerifyTestMain(m)
}

// A process is Run over the kernel of these tests.
type process struct {
	t    *testing.T
	b    *bench
	cfg  Config
	end  context.CancelFunc
	l    *net.UnixListener // the daemon's
	done chan error
}

// begin has Run begin with the drivers given, ublk over a kernel of the test's by
// default, and waits until it has connected to the daemon that the test is.
func begin(t *testing.T, b *bench, cfg Config, wait bool) *process {
	t.Helper()
	if cfg.RunDir == "" {
		cfg.RunDir = t.TempDir()
	}
	cfg.Socket, cfg.DeviceDir = filepath.Join(cfg.RunDir, "devices.sock"), b.dir
	cfg.Log, cfg.Version = slog.New(slog.NewTextHandler(io.Discard, nil)), "v1"
	cfg.exit = func(code int) { t.Errorf("exit %d", code) }
	b.anew(cfg.RunDir)
	d := noClose{b.ublk}
	old := openers
	t.Cleanup(func() { openers = old })
	openers = []opener{{ipc.DeviceUblk, func(c *Config, load bool) (driver, error) {
		return d, nil
	}}, {ipc.DeviceNBD, func(c *Config, load bool) (driver, error) {
		return nil, refuse(ipc.CodeUnsupported, "no nbd here")
	}}}
	cfg.patience = dialDelays{time.Millisecond, 10 * time.Millisecond, time.Minute}
	ctx, cancel := context.WithCancel(t.Context())
	p := &process{t: t, b: b, cfg: cfg, end: cancel, l: listen(t, cfg.Socket), done: make(chan error, 1)}
	go func() { p.done <- Run(ctx, cfg) }()
	t.Cleanup(cancel)
	if wait {
		p.client()
	}
	return p
}

// noClose is a driver that the bench closes.
type noClose struct{ *ublk }

func (noClose) close() error { return nil }

// stop ends it in good order.
func (p *process) stop() {
	p.t.Helper()
	p.end()
	p.ended()
}

func (p *process) ended() {
	p.t.Helper()
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Errorf("Run: %v", err)
		}
	case <-time.After(30 * time.Second):
		p.t.Fatal("Run does not end")
	}
}

// listen is what a daemon does for the process.
func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	os.Remove(path) // of an earlier daemon
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // may be closed
	return l
}

// client is the daemon's end of the next connection.
func (p *process) client() *ipc.Client {
	p.t.Helper()
	if err := p.l.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	c, err := p.l.AcceptUnix()
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	cl, err := ipc.NewClient(f)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = cl.Close() }) // may be closed
	return cl
}

// TestRun: a device's life over the socket.
func TestRun(t *testing.T) {
	b := newBench(t)
	p := begin(t, b, Config{Parent: os.Getppid()}, false)
	one := p.client()
	ctx := t.Context()
	var hello ipc.DevicesHello
	if err := one.Call(ctx, ipc.MethodDeviceHello, ipc.Empty{}, &hello); err != nil || hello != (ipc.DevicesHello{Version: "v1", PID: os.Getpid(), Kind: "ublk"}) {
		t.Errorf("hello: %+v, %v", hello, err)
	}
	var made ipc.DeviceMade
	files, err := one.CallFiles(ctx, ipc.MethodDeviceMake, request(leaseA), &made)
	if err != nil || len(files) != 1 || made.Kind != "ublk" || made.Depth != ublkDepth {
		t.Fatalf("make: %+v, %d files, %v", made, len(files), err)
	}
	files[0].Close()
	b.live(7, true)
	var dev ipc.Device
	if err := one.Call(ctx, ipc.MethodDeviceStart, ipc.DeviceStartRequest{Lease: leaseA, PID: 7}, &dev); err != nil {
		t.Fatal(err)
	}
	if dev.Path != filepath.Join(b.dir, leaseA) || dev.Node != b.node(0) || !dev.Live || dev.Kind != "ublk" {
		t.Errorf("start: %+v", dev)
	}
	var list ipc.DeviceList
	if err := one.Call(ctx, ipc.MethodDeviceList, ipc.Empty{}, &list); err != nil || len(list.Devices) != 1 || list.Devices[0].Path != dev.Path || list.Devices[0].Lease != leaseA {
		t.Errorf("list: %+v, %v", list, err)
	}
	code(t, one.Call(ctx, ipc.MethodDeviceResize, ipc.DeviceResizeRequest{Lease: leaseA, SizeBytes: 1 << 30}, &ipc.Empty{}), ipc.CodeUnsupported, "6.16")
	code(t, one.Call(ctx, ipc.MethodDeviceResize, ipc.DeviceResizeRequest{Lease: leaseB, SizeBytes: 1 << 30}, &ipc.Empty{}), ipc.CodeNotFound, leaseB)
	code(t, one.Call(ctx, "device.what", ipc.Empty{}, &ipc.Empty{}), ipc.CodeInvalid, "device.what")
	// The mount that keeps it is named.
	info := filepath.Join(b.host.proc, "self/mountinfo")
	sysDir := filepath.Join(b.host.sys, "class/block/ublkb0")
	if err := errors.Join(os.WriteFile(info, []byte("30 1 259:3 / /mnt/x rw - ext4 x rw\n"), 0o600), os.MkdirAll(sysDir, 0o755), os.WriteFile(sysDir+"/dev", []byte("259:3\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	code(t, one.Call(ctx, ipc.MethodDeviceRemove, ipc.DeviceRemoveRequest{Lease: leaseA}, &ipc.Empty{}), ipc.CodeBusy, "is mounted at /mnt/x: unmount it first")
	for range 2 {
		if err := one.Call(ctx, ipc.MethodDeviceRemove, ipc.DeviceRemoveRequest{Lease: leaseA, Force: true}, &ipc.Empty{}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	b.states(map[int]int{})
	b.linked(map[string]string{})
	p.stop()
}

// TestRequests: what no daemon asks for is refused, and the kernel sees none of it.
func TestRequests(t *testing.T) {
	b := newBench(t)
	s := &server{cfg: &Config{}, links: b.links, opened: []driver{b.ublk}, openers: []opener{{kind: ipc.DeviceUblk}}, size: b.host.sizeOf, why: []error{nil}}
	good := map[string]any{"lease": leaseA, "sizeBytes": 1 << 20, "logicalBlock": 4096, "uid": 1000, "socket": "/run/vacate/x.sock"}
	for what, change := range map[string]map[string]any{
		"a path":           {"lease": "../../../etc/pas"},
		"no lease":         {"lease": ""},
		"capitals":         {"lease": strings.ToUpper(leaseA)},
		"too long":         {"lease": leaseA + "a"},
		"a zero byte":      {"lease": "aaaaaaaaaaaaaaa\x00"},
		"no size":          {"sizeBytes": 0},
		"negative":         {"sizeBytes": -4096},
		"half a block":     {"sizeBytes": 4096 + 512},
		"too large":        {"sizeBytes": int64(1) << 62},
		"odd blocks":       {"logicalBlock": 1024},
		"no blocks":        {"logicalBlock": 0},
		"nobody":           {"uid": 1<<32 - 1},
		"uid too large":    {"uid": 1 << 32},
		"relative socket":  {"socket": "x.sock"},
		"long socket":      {"socket": "/" + strings.Repeat("x", 107)},
		"an unknown field": {"force": true},
	} {
		r := map[string]any{}
		for k, v := range good {
			r[k] = v
		}
		for k, v := range change {
			r[k] = v
		}
		body, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.handle(t.Context(), ipc.MethodDeviceMake, body, nil)
		t.Run(what, func(t *testing.T) { code(t, err, ipc.CodeInvalid) })
	}
	for method, bodies := range map[string][]string{
		ipc.MethodDeviceStart:  {`{"lease":"` + leaseA + `","pid":0}`, `{"lease":"` + leaseA + `","pid":-1}`, `{"lease":"` + leaseA + `","pid":99999999}`, `{"lease":"x","pid":1}`, `{}`, ``, `[]`},
		ipc.MethodDeviceRemove: {`{"lease":"..","force":true}`, `{"lease":"` + leaseA + `"}x`},
		ipc.MethodDeviceResize: {`{"lease":"` + leaseA + `","sizeBytes":511}`, `{"lease":"` + leaseA + `","sizeBytes":-512}`, `{"lease":"x","sizeBytes":512}`},
	} {
		for _, body := range bodies {
			_, err := s.handle(t.Context(), method, []byte(body), nil)
			t.Run(method+body, func(t *testing.T) { code(t, err, ipc.CodeInvalid) })
		}
	}
	if len(b.k.calls) != 0 {
		t.Errorf("the kernel was asked %q", b.k.calls)
	}
}

// FuzzRequests: nothing that comes is fatal, and no request that passes names anything
// but a lease.
func FuzzRequests(f *testing.F) {
	for _, m := range []string{ipc.MethodDeviceMake, ipc.MethodDeviceStart, ipc.MethodDeviceRemove, ipc.MethodDeviceResize, ipc.MethodDeviceList, "x"} {
		f.Add(m, []byte(`{"lease":"`+leaseA+`","sizeBytes":4096,"logicalBlock":512,"pid":3}`))
		f.Add(m, []byte(`{"lease":"../x","pid":1}`))
	}
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		s := &server{cfg: &Config{}, links: links{"/nowhere"}, openers: []opener{{"none", func(*Config, bool) (driver, error) { return nil, errors.New("none") }}}, opened: []driver{nil}, why: []error{nil}}
		_, err := s.handle(t.Context(), method, body, nil)
		var r struct{ Lease string }
		if json.Unmarshal(body, &r) == nil && !leaseID(r.Lease) && err == nil && method != ipc.MethodDeviceList && method != ipc.MethodDeviceHello {
			t.Errorf("%s of %q passes", method, body)
		}
	})
}

// TestNoDriver: what is missing is said, for each driver, named once, and what to do.
func TestNoDriver(t *testing.T) {
	b := newBench(t)
	none := func(text string) func(*Config, bool) (driver, error) {
		return func(*Config, bool) (driver, error) { return nil, errors.New(text) }
	}
	s := newServer(&Config{DeviceDir: b.dir}, []opener{{"ublk", none("modprobe ublk_drv")}, {"nbd", none("nbd: modprobe nbd")}})
	if h := s.hello(); h.Kind != "" || h.Why != "ublk: modprobe ublk_drv; nbd: modprobe nbd" {
		t.Errorf("hello: %+v", h)
	}
	_, err := s.make(t.Context(), request(leaseA))
	code(t, err, ipc.CodeUnsupported, "ublk: modprobe ublk_drv", "nbd: modprobe nbd")
	// The driver comes: it is found without a new process.
	s.openers[1].open = func(*Config, bool) (driver, error) { return noClose{b.ublk}, nil }
	if h := s.hello(); h.Kind != "ublk" || !strings.Contains(h.Why, "modprobe ublk_drv") {
		t.Errorf("hello: %+v", h)
	}
	r, err := s.make(t.Context(), request(leaseA))
	if err != nil {
		t.Fatal(err)
	}
	r.(ipc.WithFiles).Files[0].Close()
	s.close()
}

// TestParent: when the daemon ends, all of its devices go; also when it has ended
// before this process began. While it has its lock, they stay when this process ends; at
// its planned end it gives that up first.
func TestParent(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	lock := daemonsLock(t, dir)
	p := begin(t, b, Config{RunDir: dir, Parent: os.Getppid()}, true)
	b.up(leaseA, 7)
	p.stop()
	b.states(map[int]int{0: 1})

	p = begin(t, b, Config{RunDir: dir, Parent: os.Getppid()}, true)
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	p.stop()
	b.states(map[int]int{})
	p = begin(t, b, Config{RunDir: dir, Parent: os.Getppid()}, true)
	b.up(leaseA, 7)
	lock = daemonsLock(t, dir)
	p.stop()
	lock.Close() //nolint:errcheck // only a lock
	b.states(map[int]int{1: 1})

	// Its parent is another's: it has ended, and so does Run, having removed everything.
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	p = begin(t, b, Config{RunDir: dir, Parent: cmd.Process.Pid}, false)
	p.ended()
	b.states(map[int]int{})
	b.linked(map[string]string{})
}

// daemonsLock is what a daemon holds while it lives.
func daemonsLock(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "lock"))
	if err == nil {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFolder: the folder of links is open to all, whatever the umask; one that is there
// is left alone.
func TestFolder(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "vacate")
	mode := func() os.FileMode {
		t.Helper()
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		return st.Mode().Perm()
	}
	if err := makeFolder(dir); err != nil || mode() != 0o755 {
		t.Errorf("a new folder has mode %v (%v)", mode(), err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := makeFolder(dir); err != nil || mode() != 0o700 {
		t.Errorf("the folder has mode %v now (%v)", mode(), err)
	}
}

// TestService: without a parent, devices are removed where no daemon holds the lock.
func TestService(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	lock := daemonsLock(t, dir)
	p := begin(t, b, Config{RunDir: dir}, true)
	b.up(leaseA, 7)
	p.stop()
	b.states(map[int]int{0: 1}) // the daemon lives
	p = begin(t, b, Config{RunDir: dir}, true)
	b.states(map[int]int{0: 1})
	lock.Close()
	p.stop()
	b.states(map[int]int{})

	p = begin(t, b, Config{RunDir: dir}, true)
	b.up(leaseA, 7)
	p.end()
	<-p.done
	b.anew(dir)
	b.up(leaseB, 7) // of a daemon that is gone
	p = begin(t, b, Config{RunDir: dir}, true)
	b.states(map[int]int{})
	p.stop()
}
