package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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

// connected waits until a process that makes block devices has connected to the daemon:
// status says what it can do.
func connected(t *testing.T, d *daemon.Daemon) {
	t.Helper()
	var st struct {
		Devices struct{ Kind, Why string }
	}
	last := ""
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := d.JSON(&st, "status"); err != nil {
			last = err.Error() // as control is started anew
			continue
		}
		if v := st.Devices; v.Kind != "" || v.Why != "" && !strings.Contains(v.Why, "does not run") {
			return
		}
	}
	t.Fatalf("none has connected: %+v, %s\n%s", st, last, d.Log())
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
	connected(t, d)
	st, err := os.Stat(filepath.Join(d.Dir, "devices.sock"))
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("its socket has mode %v", st.Mode())
	}

	must(t, syscall.Kill(first, syscall.SIGKILL))
	gone(t, first)
	second := makers(t, d, 1)[0]
	connected(t, d)

	_, err = d.Run("upgrade")
	must(t, err)
	gone(t, second)
	third := makers(t, d, 1)[0]
	connected(t, d)
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
		connected(t, d)
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

// TestDevicesService: root's service makes devices for an ordinary user's daemon, in
// whichever order they and control come and go; without it an attach is refused at once.
func TestDevicesService(t *testing.T) {
	needRoot(t)
	must(t, os.Chmod(filepath.Dir(bin), 0o755))
	top := shortDir(t)
	must(t, os.Chmod(top, 0o755))
	dir := filepath.Join(top, "d")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Chown(dir, nobody, nobody))
	service := func() *exec.Cmd {
		cmd := exec.Command(bin, "devices", "--dev", dir)
		must(t, cmd.Start())
		t.Cleanup(func() {
			cmd.Process.Kill() //nolint:errcheck // it may have ended
			cmd.Wait()         //nolint:errcheck // likewise
		})
		return cmd
	}
	first := service()
	d := startIn(t, bin, dir, daemon.Options{Before: as(nobody)})
	connected(t, d)
	must(t, first.Process.Kill())
	first.Wait() //nolint:errcheck // it was killed
	time.Sleep(3 * time.Second)
	began := time.Now()
	if out, err := d.Run("lease", "open", "--size", "16MiB", "--attach"); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("without the service: %v, %s", err, out)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("refused after %v", took)
	}
	service()
	connected(t, d)
	control, err := d.Children("control")
	must(t, err)
	must(t, syscall.Kill(control[0], syscall.SIGKILL))
	gone(t, control[0])
	connected(t, d)
}
