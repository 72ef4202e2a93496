package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/sys"
	"vacate/test/daemon"
)

// makers are the processes of d that make block devices, when there are n of them
// that run.
func makers(t *testing.T, d *daemon.Daemon, n int) []int {
	t.Helper()
	var pids []int
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var err error
		pids, err = d.Children("devices")
		must(t, err)
		pids = slices.DeleteFunc(pids, sys.Dying)
		if len(pids) == n {
			return pids
		}
	}
	t.Fatalf("processes that make block devices: %v, want %d\n%s", pids, n, d.Log())
	return nil
}

// hello asks the process that makes block devices what it can do, until it is pid.
func hello(t *testing.T, d *daemon.Daemon, pid int) (h ipc.DevicesHello) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if h, last = sayHello(filepath.Join(d.Dir, "devices.sock")); last == nil && h.PID == pid {
			return h
		}
	}
	t.Fatalf("process %d does not answer: %+v, %v\n%s", pid, h, last, d.Log())
	return h
}

func sayHello(socket string) (h ipc.DevicesHello, err error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return h, err
	}
	defer c.Close() //nolint:errcheck // the duplicate is the client's
	f, err := c.File()
	if err != nil {
		return h, err
	}
	defer f.Close() //nolint:errcheck // likewise
	cl, err := ipc.NewClient(f)
	if err != nil {
		return h, err
	}
	defer cl.Close() //nolint:errcheck // it was only asked
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return h, cl.Call(ctx, ipc.MethodDeviceHello, ipc.Empty{}, &h)
}

// gone waits until a process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if syscall.Kill(pid, 0) == syscall.ESRCH || sys.Dying(pid) {
			return
		}
	}
	t.Fatalf("process %d is still there", pid)
}

// zombies are the children of a process that have ended and were not reaped.
func zombies(t *testing.T, parent int) (found []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		if fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:])); fields[0] == "Z" && fields[1] == strconv.Itoa(parent) {
			found = append(found, string(b))
		}
	}
	return found
}

// TestDevicesProcess: the process that makes block devices is there, one at a time,
// whatever ends it or its daemon.
func TestDevicesProcess(t *testing.T) {
	own, err := sys.ConfinementOf(0)
	must(t, err)
	if own.Effective&(1<<sys.CapSysAdmin) == 0 {
		d := start(t, daemon.Options{})
		makers(t, d, 0)
		return
	}
	d := start(t, daemon.Options{})
	lease, err := d.Open("--size", "16MiB", "--tenant", "acme")
	must(t, err)
	first := makers(t, d, 1)[0]
	if h := hello(t, d, first); h.Version == "" || h.Kind == "" && h.Why == "" {
		t.Errorf("it says %+v", h)
	}

	must(t, syscall.Kill(first, syscall.SIGKILL))
	gone(t, first)
	second := makers(t, d, 1)[0]
	hello(t, d, second)

	_, err = d.Run("upgrade")
	must(t, err)
	gone(t, second)
	third := makers(t, d, 1)[0]
	hello(t, d, third)
	if third == second {
		t.Errorf("after an upgrade process %d is there, as before", third)
	}
	if left := zombies(t, d.PID()); left != nil {
		t.Errorf("not reaped: %q", left)
	}
	_, err = d.Run("lease", "close", lease.ID)
	must(t, err)

	d.Kill()
	gone(t, third)
}

// TestDevicesProcessEnds with a stop, before the daemon.
func TestDevicesProcessEnds(t *testing.T) {
	d := start(t, daemon.Options{})
	_, err := d.Run("upgrade") // which blocks signals
	must(t, err)
	var pids []int
	if os.Geteuid() == 0 {
		pids = makers(t, d, 1)
		hello(t, d, pids[0])
	}
	must(t, d.Stop())
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d is there: %v", pid, err)
		}
	}
}

// TestDevicesOff: without a folder for links nothing is started.
func TestDevicesOff(t *testing.T) {
	d := start(t, daemon.Options{Env: []string{"VACATE_DEVICE_DIR="}})
	makers(t, d, 0)
	if _, err := os.Stat(filepath.Join(d.Dir, "devices.sock")); !os.IsNotExist(err) {
		t.Errorf("its socket: %v", err)
	}
}
