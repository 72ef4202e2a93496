//go:build vm

package devices

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	export "vacate/internal/export/ublk"
	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/sys"
)

// serves names the variable with which a child serves the device that it is given.
const serves = "VACATE_TEST_SERVES"

func init() {
	child = func() {
		var cfg export.Config
		var count int
		var size int64
		if _, err := fmt.Sscan(os.Getenv(serves), &cfg.Queues, &cfg.Depth, &cfg.MaxIO, &count, &size); err != nil {
			return
		}
		cfg.Lock = mem.TryLock
		var all []*export.Server
		for i := range count {
			s, err := export.Serve(os.NewFile(uintptr(3+i), "device"), cfg)
			if err == nil {
				err = s.Resume(sim.New(sim.Config{Size: size, Logical: 512}))
			}
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			all = append(all, s)
		}
		fmt.Println("ready")
		for _, s := range all {
			<-s.Gone()
		}
		os.Exit(0)
	}
}

// An engine serves devices in a process of its own.
type engine struct {
	t   *testing.T
	cmd *exec.Cmd
}

// serve starts one with the files that came with what was made, of devices of a size.
func serve(t *testing.T, m ipc.DeviceMade, size int64, chars ...*os.File) *engine {
	t.Helper()
	e := &engine{t, exec.Command("/proc/self/exe")}
	e.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %d %d %d %d", serves, m.Queues, m.Depth, m.MaxIO, len(chars), size))
	e.cmd.ExtraFiles = chars
	e.cmd.Stderr = os.Stderr
	out, err := e.cmd.StdoutPipe()
	if err == nil {
		err = e.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	return e
}

func (e *engine) kill() {
	if err := e.cmd.Process.Kill(); err != nil {
		e.t.Error(err)
	}
	_ = e.cmd.Wait() // it was killed
}

func (e *engine) pid() int { return e.cmd.Process.Pid }

// real is Run over the real kernel.
func real(t *testing.T, dir string) (p *process) {
	t.Helper()
	p = &process{t: t, cfg: Config{Socket: dir + "/devices.sock", RunDir: dir, DeviceDir: "/dev/vacate", Parent: os.Getppid()}, done: make(chan error, 1)}
	p.l = listen(t, p.cfg.Socket)
	ctx, cancel := context.WithCancel(t.Context())
	p.end = cancel
	go func() { p.done <- Run(ctx, p.cfg) }()
	return p
}

// TestKernelLife: a device is made, served, started, used, loses its server again and
// again, cannot be removed while it is in use, and is removed.
func TestKernelLife(t *testing.T) {
	p := real(t, t.TempDir())
	cl, ctx := p.client(), t.Context()
	var hello ipc.DevicesHello
	if err := cl.Call(ctx, ipc.MethodDeviceHello, ipc.Empty{}, &hello); err != nil || hello.Kind != ipc.DeviceUblk || hello.Resize {
		t.Fatalf("hello: %+v, %v", hello, err)
	}
	req := &ipc.DeviceMakeRequest{Lease: leaseA, SizeBytes: 16 << 20, LogicalBlock: 512, UID: 1234}
	attach := func() *engine {
		t.Helper()
		var m ipc.DeviceMade
		start := time.Now()
		files, err := cl.CallFiles(ctx, ipc.MethodDeviceMake, req, &m)
		if err != nil || len(files) != 1 {
			t.Fatalf("make: %d files, %v", len(files), err)
		}
		made := time.Since(start)
		e := serve(t, m, req.SizeBytes, files[0])
		if err := files[0].Close(); err != nil {
			t.Error(err)
		}
		var d ipc.Device
		if err := cl.Call(ctx, ipc.MethodDeviceStart, ipc.DeviceStartRequest{Lease: leaseA, PID: e.pid()}, &d); err != nil {
			t.Fatal(err)
		}
		t.Logf("made in %v, started in %v: %+v", made, time.Since(start), d)
		if want := (ipc.Device{Lease: leaseA, Kind: "ublk", Path: "/dev/vacate/" + leaseA, Node: d.Node, SizeBytes: 16 << 20, Live: true}); d != want {
			t.Errorf("started: %+v, want %+v", d, want)
		}
		return e
	}
	e := attach()
	path := "/dev/vacate/" + leaseA
	st, err := os.Stat(path)
	if err != nil || st.Mode()&os.ModeDevice == 0 || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 1234 {
		t.Errorf("the node: %v, %v", st, err)
	}
	code(t, cl.Call(ctx, ipc.MethodDeviceMake, req, &ipc.DeviceMade{}), ipc.CodeBusy, "is served")
	disk, err := os.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	page, err := sys.MapAnonymous(4096)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 5 {
		page[0] = byte(round + 1)
		if _, err := disk.WriteAt(page, 8192); err != nil {
			t.Fatal(err)
		}
		clear(page)
		if _, err := disk.ReadAt(page, 8192); err != nil || page[0] != byte(round+1) {
			t.Fatalf("round %d: read %d, %v", round, page[0], err)
		}
		e.kill()
		got := make(chan error, 1)
		other, err := sys.MapAnonymous(4096)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, err := disk.ReadAt(other, 4096); got <- err }() // it waits for the next server
		e = attach()
		if err := <-got; err != nil {
			t.Errorf("a read across the server's end: %v", err)
		}
	}
	remove := func(force bool) error {
		return cl.Call(ctx, ipc.MethodDeviceRemove, ipc.DeviceRemoveRequest{Lease: leaseA, Force: force}, &ipc.Empty{})
	}
	code(t, remove(false), ipc.CodeBusy, fmt.Sprintf("is open in process %d", os.Getpid()))
	if err := disk.Close(); err != nil {
		t.Error(err)
	}
	mounted(t, path, remove)
	if err := remove(false); err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Wait(); err != nil {
		t.Errorf("the server of a device that was removed: %v", err)
	}
	for _, left := range []string{path, "/dev/ublkb*", "/dev/ublkc*"} {
		if found, err := filepath.Glob(left); err != nil || len(found) > 0 {
			t.Errorf("left over: %q, %v", found, err)
		}
	}
	var list ipc.DeviceList
	if err := cl.Call(ctx, ipc.MethodDeviceList, ipc.Empty{}, &list); err != nil || len(list.Devices) != 0 {
		t.Errorf("list: %+v, %v", list, err)
	}
	// By force, with a file system mounted and the server gone.
	e = attach()
	dir := t.TempDir()
	if err := errors.Join(mkfs(path), syscall.Mount(path, dir, "ext4", 0, "")); err != nil {
		t.Fatal(err)
	}
	e.kill()
	start := time.Now()
	if err := remove(true); err != nil {
		t.Error(err)
	}
	t.Logf("removed by force in %v", time.Since(start))
	_ = syscall.Unmount(dir, syscall.MNT_DETACH)
	if err := cl.Close(); err != nil {
		t.Error(err)
	}
	p.stop()
}

func mkfs(path string) error {
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w\n%s", err, out)
	}
	return nil
}

// mounted: what is mounted is not removed, and named, also where only another mount
// namespace has it.
func mounted(t *testing.T, path string, remove func(force bool) error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "my disk")
	if err := errors.Join(mkfs(path), os.Mkdir(dir, 0o755), syscall.Mount(path, dir, "ext4", 0, "")); err != nil {
		t.Fatal(err)
	}
	code(t, remove(false), ipc.CodeBusy, "is mounted at "+dir+": unmount it first (umount '"+dir+"')")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.Command("/proc/self/exe") // has a namespace of its own, with the mount
	holder.Env, holder.Stdin = append(os.Environ(), waits+"=1"), r
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := errors.Join(holder.Start(), syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""), syscall.Unmount(dir, 0)); err != nil {
		t.Fatal(err)
	}
	code(t, remove(false), ipc.CodeBusy, "in use")
	if err := errors.Join(r.Close(), w.Close(), holder.Wait()); err != nil {
		t.Error(err)
	}
}

// waits names the variable with which a child waits for the end of its input.
const waits = "VACATE_TEST_WAITS"

func init() {
	other := child
	child = func() {
		if strings.TrimSpace(os.Getenv(waits)) != "" {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}
		other()
	}
}
