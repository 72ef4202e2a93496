package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vacate/test/daemon"
)

// status reads /proc/PID/status of a process, or of one of its threads.
func status(t *testing.T, path string) map[string]string {
	t.Helper()
	all, err := statusOf(path)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func statusOf(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		all[key] = strings.TrimSpace(value)
	}
	return all, nil
}

// Engine and control of a daemon that serves have given up what they do not
// need, in every thread; what they do, they still can.
func TestSandbox(t *testing.T) {
	d, drive := fileDrive(t, bin)
	l := open(t, d, "--drive", drive, "--size", "16MiB")
	c := dial(t, l)
	defer c.Close() //nolint:errcheck // done
	write(t, c, 0, []byte("confined"))
	// CAP_SYS_NICE is 23, CAP_IPC_LOCK 14, CAP_CHOWN 0 (linux/capability.h).
	want := map[string]uint64{"engine": 1<<23 | 1<<14, "control": 1 << 0}
	root := os.Geteuid() == 0
	own, err := strconv.ParseUint(status(t, "/proc/self/status")["CapEff"], 16, 64)
	must(t, err)
	setpcap := own&(1<<8) != 0
	for who, caps := range want {
		pid, err := d.Child(who)
		must(t, err)
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		must(t, err)
		if len(threads) < 4 {
			t.Errorf("%s has %d threads", who, len(threads))
		}
		for _, th := range threads {
			s, err := statusOf(th)
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // one of the kernel's, for I/O: they come and go
			}
			must(t, err)
			if s["NoNewPrivs"] != "1" || s["Seccomp"] != "2" {
				t.Errorf("%s, %s: NoNewPrivs %s, Seccomp %s, want 1 and 2", who, th, s["NoNewPrivs"], s["Seccomp"])
			}
			if !root {
				caps = 0
			}
			sets := map[string]uint64{"CapEff": caps, "CapPrm": caps, "CapInh": 0, "CapAmb": 0}
			if setpcap { // without, it cannot be emptied, and is of no use
				sets["CapBnd"] = caps
			}
			for set, want := range sets {
				if got, err := strconv.ParseUint(s[set], 16, 64); err != nil || got != want {
					t.Errorf("%s, %s: %s is %s, want %x", who, th, set, s[set], want)
				}
			}
		}
	}
	// The keeper starts programs: it is not confined.
	if s := status(t, fmt.Sprintf("/proc/%d/status", d.PID())); s["Seccomp"] == "2" {
		t.Error("the keeper is confined: it could not start an engine with capabilities")
	}
	var st struct {
		Engine     struct{ Sandbox string }
		Warnings   []string
		DangerZone []string
	}
	must(t, d.JSON(&st, "status"))
	if !strings.Contains(st.Engine.Sandbox, "no_new_privs") || !strings.Contains(st.Engine.Sandbox, "seccomp") || len(st.DangerZone) != 0 {
		t.Errorf("status says %+v", st)
	}
	if strings.Contains(strings.Join(st.Warnings, "\n"), "sandbox") != strings.Contains(st.Engine.Sandbox, "missing") {
		t.Errorf("the engine says %q, control warns of %q", st.Engine.Sandbox, st.Warnings)
	}
	usable(t, d)
}

// Without the sandbox, which only the danger zone can switch off, status says so.
func TestSandboxOff(t *testing.T) {
	d := start(t, daemon.Options{Env: []string{"VACATE_DANGER_ZONE__ENABLED=true", "VACATE_DANGER_ZONE__SANDBOX=off"}})
	for _, who := range []string{"engine", "control"} {
		pid, err := d.Child(who)
		must(t, err)
		s, own := status(t, fmt.Sprintf("/proc/%d/status", pid)), status(t, "/proc/self/status")
		for _, key := range []string{"NoNewPrivs", "Seccomp", "Seccomp_filters", "CapEff", "CapBnd"} {
			if s[key] != own[key] {
				t.Errorf("%s: %s is %s with the sandbox off, and %s here", who, key, s[key], own[key])
			}
		}
	}
	var st struct {
		Engine     struct{ Sandbox string }
		DangerZone []string
	}
	must(t, d.JSON(&st, "status"))
	if st.Engine.Sandbox != "off" || len(st.DangerZone) != 1 || st.DangerZone[0] != "sandbox off" {
		t.Errorf("status says %+v", st)
	}
	usable(t, d)
}

// The script for hosts without systemd starts a daemon that works with the few
// capabilities that the unit leaves, too.
func TestStartScript(t *testing.T) {
	script, err := filepath.Abs("../../deploy/vacate.sh")
	must(t, err)
	drive := filepath.Join(shortDir(t), "drives", "drive")
	must(t, os.Mkdir(filepath.Dir(drive), 0o700))
	must(t, os.WriteFile(drive, nil, 0o600))
	must(t, os.Truncate(drive, driveSize))
	d := start(t, daemon.Options{Env: []string{"VACATE=" + bin}, Args: driveDir(drive), Before: func(cmd *exec.Cmd) {
		cmd.Path, cmd.Args = script, append([]string{script}, cmd.Args[2:]...)
	}})
	if _, err := d.Run("drive", "enroll", drive); err != nil {
		t.Fatal(err)
	}
	s := status(t, fmt.Sprintf("/proc/%d/status", d.PID()))
	if os.Geteuid() == 0 && (s["NoNewPrivs"] != "1" || s["CapBnd"] != "0000000000804101") {
		t.Errorf("the keeper: NoNewPrivs %s, CapBnd %s", s["NoNewPrivs"], s["CapBnd"])
	}
	args := []string{"--drive", drive, "--size", "16MiB"}
	if os.Geteuid() == 0 {
		args = append(args, "--uid", "4711") // control gives the socket away
	}
	l := open(t, d, args...)
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
	usable(t, d)
}
