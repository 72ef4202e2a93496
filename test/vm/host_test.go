//go:build vm

package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/disk"
	"vacate/test/vm/wire"
)

// hostTools are the programs of a host of block devices.
var hostTools = append([]string{"usr/sbin/dmsetup", "usr/bin/fio"}, tools...)

// hostModules are what a host can load, in the order in which they are loaded.
var hostModules = []string{"nbd", "ublk_drv", "dm-mod", "dm-crypt", "xts", "brd"}

const driveSize = 1 << 30

// Exit codes of vacate.
const (
	codeFailed  = 1 // what this host can not do
	codeRefused = 4 // what is unsafe
)

// A host is a machine in which vacate runs as root on an NVMe drive, /dev/data. The
// drive can be read at /dev/peek, too, past the daemon.
type host struct {
	*guest
	dir       string
	listeners []net.Listener
	loaded    []string
	marks     int
	failed    bool
	before    wire.Left // the test
}

// shared is the host that tests use one after another, until one fails in it.
var shared *host

// onHost gives a test the host with these of hostModules loaded, and no driver besides: it is
// a new one where there is none, or where there is another driver.
func onHost(t *testing.T, d time.Duration, modules ...string) *host {
	t.Helper()
	ctx := limit(t, d)
	more := func(m string) bool { return drives(m) && !slices.Contains(modules, m) }
	if h := shared; h != nil && (h.failed || slices.ContainsFunc(h.loaded, more)) {
		must(t, closeHost())
	}
	if shared == nil {
		shared = startHost(ctx, t)
	}
	h := shared
	h.t, h.ctx = t, ctx
	t.Cleanup(func() {
		if h.failed = t.Failed(); h.failed {
			h.report()
		}
	})
	h.mark()
	if h.load(modules); len(h.loaded) > 0 { // what a process opens once and keeps is no left-over
		l := h.open(4 << 20)
		h.vacate("lease", "close", l.ID)
	}
	h.before = h.left()
	h.nothingLeft()
	return h
}

// eachDriver runs a test over each of the kernel's drivers.
func eachDriver(t *testing.T, d time.Duration, test func(h *host, kind string), more ...string) {
	t.Helper()
	for _, drivers := range [][]string{{"nbd"}, {"nbd", "ublk_drv"}} {
		kind := strings.TrimSuffix(drivers[len(drivers)-1], "_drv")
		t.Run(kind, func(t *testing.T) { test(onHost(t, d, slices.Concat(drivers, more)...), kind) })
	}
}

// drives reports whether a module is a driver that vacate can use.
func drives(module string) bool { return module == "nbd" || module == "ublk_drv" }

// load loads modules that are not. Where that makes another kind of device possible,
// the process that makes them is started anew: it may open a driver when it starts.
func (h *host) load(modules []string) {
	h.t.Helper()
	driver := false
	for _, m := range modules {
		if slices.Contains(h.loaded, m) {
			continue
		}
		h.do("module", wire.Module{Name: m}, nil)
		h.loaded = append(h.loaded, m)
		driver = driver || drives(m)
	}
	if driver {
		l := h.open(4 << 20) // without a new process, too
		h.vacate("lease", "close", l.ID)
		h.kill("devices")
	}
}

// closeHost ends the host that tests share, if there is one.
func closeHost() error {
	h := shared
	if h == nil {
		return nil
	}
	shared = nil
	h.Kill()
	var errs []error
	for _, l := range h.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}

// serve serves a disk for as long as the host lives.
func (h *host) serve(name string, d *disk.Disk) (socket string) {
	h.t.Helper()
	socket = filepath.Join(h.dir, name+".sock")
	l, err := net.Listen("unix", socket)
	must(h.t, err)
	h.listeners = append(h.listeners, l)
	go d.Serve(l) //nolint:errcheck // its machine would fail
	return socket
}

// report shows what helps where a test has failed.
func (h *host) report() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var log string
	if err := h.Call(ctx, "log", nil, &log); err == nil {
		h.t.Logf("the daemon's log:\n%s", log)
	}
	if err := h.Call(ctx, "kernel-log", nil, &log); err == nil {
		lines := strings.SplitAfter(log, "\n")
		h.t.Logf("the kernel's log:\n%s", strings.Join(lines[max(0, len(lines)-60):], ""))
	} else {
		h.t.Logf("%v; its console:\n%s", err, h.Console(40))
	}
}

// startHost starts the machine and the daemon.
func startHost(ctx context.Context, t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm")
	must(t, err)
	kernel, err := FindKernel(XFS...)
	must(t, err)
	bin, err := program()
	must(t, err)
	suite, err := sanity(dir)
	must(t, err)
	initramfs, err := Initramfs(dir, Contents{
		Kernel: kernel, Later: hostModules, Vacate: bin,
		Programs: slices.Concat(hostTools, csiTools, benchTools()), Files: map[string]string{sanityPath: suite},
	})
	must(t, err)
	stateSize := int64(either(128, 512)) << 20 // each lease leaves records and a certificate, which nobody waits for
	image, err := Ext4(dir, stateSize)
	must(t, err)
	supply := disk.NewSupply()
	state, data := disk.New(supply, stateSize), disk.New(supply, driveSize)
	must(t, state.Fill(image))
	h := &host{dir: dir, guest: &guest{t: t, ctx: ctx, rounds: map[int]uint32{}}}
	h.boot(Config{Kernel: kernel, Initramfs: initramfs, Dir: dir, Processors: 2, MemoryMiB: 1024, Drives: []Drive{
		{Name: "state", Socket: h.serve("state", state), Bus: Virtio},
		{Name: "data", Socket: h.serve("data", data), Bus: NVMe},
		{Name: "peek", Socket: h.serve("peek", data), Bus: NVMe},
	}})
	h.do("mount", wire.Mount{Device: "/dev/state", Dir: "/state"}, nil)
	if err := h.Call(ctx, "serve", wire.Serve{StateDir: "/state/vacate"}, nil); err != nil {
		h.report()
		t.Fatal(err)
	}
	h.vacate("drive", "enroll", "/dev/data")
	t.Logf("the host serves %v after the machine's start", h.Age())
	return h
}

// say has vacate print JSON, which is decoded.
func (h *host) say(reply any, args ...string) {
	h.t.Helper()
	must(h.t, h.JSON(h.ctx, reply, args...))
}

// vacate runs vacate, which must succeed.
func (h *host) vacate(args ...string) {
	h.t.Helper()
	if ran, err := h.Run(h.ctx, args...); err != nil || ran.Code != 0 {
		h.t.Fatalf("vacate %s: %v, exit code %d\n%s%s", strings.Join(args, " "), err, ran.Code, ran.Stdout, ran.Stderr)
	}
}

// refuses runs vacate, which must end with this code, and say all these words.
func (h *host) refuses(code int, words []string, args ...string) {
	h.t.Helper()
	ran, err := h.Run(h.ctx, args...)
	must(h.t, err)
	if ran.Code != code {
		h.t.Errorf("vacate %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), ran.Code, code, ran.Stdout, ran.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(ran.Stderr, w) {
			h.t.Errorf("vacate %s says %q, which does not name %q", strings.Join(args, " "), ran.Stderr, w)
		}
	}
}

// attached is a lease as the tests look at it.
type attached struct {
	ID         string `json:"id"`
	State      string `json:"state"`
	Result     string `json:"result"`
	SizeBytes  int64  `json:"sizeBytes"`
	Device     string `json:"device"`
	DeviceKind string `json:"deviceKind"`
	Pieces     []struct {
		FirstExtent int64 `json:"firstExtent"`
		Extents     int64 `json:"extents"`
	} `json:"pieces"`
	Stats *struct {
		WrittenBytes int64 `json:"writtenBytes"`
	} `json:"stats"`
}

// open opens a lease with a block device.
func (h *host) open(size int64, args ...string) (l attached) {
	h.t.Helper()
	h.say(&l, append([]string{"lease", "open", "--attach", "--size", fmt.Sprint(size)}, args...)...)
	h.device(l, size)
	return l
}

// device demands that a lease has the device that it shows, of this size.
func (h *host) device(l attached, size int64) (d wire.Disk) {
	h.t.Helper()
	if l.ID == "" || l.State != "open" || l.Device != "/dev/vacate/"+l.ID {
		h.t.Fatalf("an attached lease shows %+v", l)
	}
	h.do("device", wire.Device{Path: l.Device}, &d)
	physical := 4096
	if l.DeviceKind == "nbd" {
		physical = 512 // the kernel's nbd driver tells no other than the logical one
	}
	if d.Size != size || d.FromEnd != size || d.ReadOnly || d.Logical != 512 || d.Physical != physical || d.Discard == 0 || d.Zeroes == 0 {
		h.t.Errorf("the device of a lease of %d bytes is %+v", size, d)
	}
	return d
}

// show is a lease as it stands.
func (h *host) show(id string) (l attached) {
	h.t.Helper()
	h.say(&l, "lease", "show", id)
	return l
}

// kill kills a process of the daemon's.
func (h *host) kill(command string) {
	h.t.Helper()
	var k wire.Killed
	h.do("kill", wire.Kill{Command: command}, &k)
	h.t.Logf("after the death of its %s the daemon was ready within %v", command, k.Took.Round(time.Millisecond))
}

// during has the host do something else while the test does this.
func (h *host) during(this, other func() error) {
	h.t.Helper()
	done := make(chan error, 1)
	go func() { done <- other() }()
	err := this()
	must(h.t, <-done)
	must(h.t, err)
}

// left is what there is of block devices.
func (h *host) left() (l wire.Left) {
	h.t.Helper()
	h.do("left", nil, &l)
	return l
}

// nothingLeft demands that there is no device, mount, lease or socket any more, soon,
// and that no process of the daemon's has more descriptors open than before.
func (h *host) nothingLeft() {
	h.t.Helper()
	var l wire.Left
	more := func() (all []string) {
		l = h.left()
		for command, now := range l.Descriptors {
			if before := h.before.Descriptors[command]; len(now) > len(before) {
				all = append(all, fmt.Sprintf("%d descriptors of %s: %q, and %d before: %q", len(now), command, now, len(before), before))
			}
		}
		return append(all, l.Things()...)
	}
	things := more()
	for deadline := time.Now().Add(20 * time.Second); len(things) > 0 && time.Now().Before(deadline); things = more() {
		time.Sleep(200 * time.Millisecond)
	}
	for _, thing := range things {
		h.t.Errorf("left over: %s", thing)
	}
	for command := range h.before.Descriptors {
		if len(l.Descriptors[command]) == 0 {
			h.t.Errorf("there is no process %s any more", command)
		}
	}
	var open []attached
	if h.say(&open, "lease", "list"); len(open) > 0 {
		h.t.Errorf("left over: leases %+v", open)
	}
}

// mark has clean begin here.
func (h *host) mark() {
	h.t.Helper()
	h.marks++
	h.do("kernel-mark", wire.Mark{Text: h.markText()}, nil)
}

func (h *host) markText() string { return fmt.Sprintf("test: mark %d.", h.marks) }

// clean demands that the kernel had nothing to complain of since the test began, or
// since it was asked last: its log is short.
func (h *host) clean() {
	h.t.Helper()
	var log string
	h.do("kernel-log", nil, &log)
	_, log, ok := strings.Cut(log, h.markText())
	if !ok {
		h.t.Fatalf("the kernel's log lacks %q", h.markText())
	}
	for _, line := range complaints(log) {
		h.t.Errorf("the host's kernel says: %s", line)
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "WARNING:") || strings.Contains(line, "BUG:") {
			h.t.Errorf("the host's kernel says: %s", strings.TrimSpace(line))
		}
	}
	h.mark()
}
