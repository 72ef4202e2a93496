package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// A house is a keeper under test, in this process: its keys are looked at
// through its own mapping.
type house struct {
	*testing.T
	k    *keeper
	api  string
	log  bytes.Buffer // read after ended
	mu   sync.Mutex
	told []string // under mu
	end  context.CancelFunc
	done chan error
}

// patient are steps that are given longer than they ever take; hasty is for tests that
// are about a step's end.
var (
	patient = patience{check: 20 * time.Second, leave: time.Second, up: 20 * time.Second, ready: 20 * time.Second, start: time.Minute}
	hasty   = patience{check: 5 * time.Second, leave: time.Second, up: time.Second, ready: time.Second, start: 8 * time.Second}
)

// open starts a keeper whose log is printed when the test has failed.
func open(t *testing.T, change func(c *Config)) *house {
	t.Helper()
	return openWith(t, patient, change)
}

func openWith(t *testing.T, p patience, change func(c *Config)) *house {
	t.Helper()
	h := &house{T: t, api: filepath.Join(t.TempDir(), "api"), done: make(chan error, 1)}
	l, err := net.Listen("unix", h.api)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Self: self(t), Args: []string{"keeper", "none"}, API: f, Admin: f, Alive: f, Notify: h.notify,
		Log: slog.New(slog.NewTextHandler(&h.log, nil)),
	}
	if change != nil {
		change(&cfg)
	}
	if h.k, err = newKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	h.k.patience = p
	var ctx context.Context
	ctx, h.end = context.WithCancel(context.Background())
	go func() { h.done <- h.k.run(ctx) }()
	t.Cleanup(func() {
		h.end()
		h.ended() //nolint:errcheck // tests that care have asked before
		if err := errors.Join(h.k.close(), f.Close()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the keeper's log:\n%s", &h.log)
		}
		goleak.VerifyNone(t, goleak.IgnoreAnyFunction("os/signal.loop"))
	})
	return h
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// notify notes what the service manager is told, once each.
func (h *house) notify(state string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Contains(h.told, state) {
		h.told = append(h.told, state)
	}
}

// ended waits for run and returns its error.
func (h *house) ended() error {
	select {
	case err := <-h.done:
		h.done <- err
		return err
	case <-time.After(time.Minute):
		h.Fatal("the keeper does not end")
		return nil
	}
}

// ask sends control a line and returns its answer, "" when it has none.
func ask(api, line string) string {
	c, err := net.Dial("unix", api)
	if err != nil {
		return ""
	}
	defer c.Close()
	fmt.Fprintln(c, line)
	answer, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(answer)
}

func (h *house) want(line, want string) {
	h.Helper()
	if got := ask(h.api, line); got != want {
		h.Errorf("%q: %q, want %q", line, got, want)
	}
}

// pid waits until the child answers with another pid than not.
func (h *house) pid(line string, not int) int {
	h.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if pid, err := strconv.Atoi(ask(h.api, line)); err == nil && pid != not {
			return pid
		}
	}
	h.Fatalf("no new process answers %q", line)
	return 0
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func (h *house) until(what string, yes func() bool) {
	h.Helper()
	for deadline := time.Now().Add(time.Minute); !yes(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			h.Fatalf("never: %s", what)
		}
	}
}

// stores runs a test on each kind of memory for keys.
func stores(t *testing.T, test func(t *testing.T, locked bool)) {
	for _, locked := range []bool{false, true} {
		t.Run(fmt.Sprintf("locked=%v", locked), func(t *testing.T) { test(t, locked) })
	}
}

func TestL5KeeperWipes(t *testing.T) {
	stores(t, func(t *testing.T, locked bool) {
		h := open(t, func(c *Config) { c.LockedMemfd = locked })
		h.pid("engine pid", 0)
		for _, slot := range []string{"0", "513", "1023"} {
			i, _ := strconv.Atoi(slot)
			h.want("engine map "+slot, "<nil>")
			h.want("engine map "+slot, "asking the keeper for a block map in slot "+slot+": file exists")
			h.want("engine fill "+slot, "<nil>")
			h.want("engine unmap "+slot, "asking the keeper to drop the block map of slot "+slot+": device or resource busy")
			if h.k.keys.Empty(i) {
				t.Fatalf("the engine's key in slot %d does not reach the keeper", i)
			}
			h.want("engine wipe "+slot, "<nil>")
			if !h.k.keys.Empty(i) {
				t.Errorf("the key in slot %d was reported destroyed, and is there", i)
			}
			h.want("engine wipe "+slot, "<nil>") // idempotent
			h.want("engine unmap "+slot, "<nil>")
			h.want("engine unmap "+slot, "<nil>")
		}
		h.want("engine fill 7", "<nil>")
		h.want("engine map 7", "asking the keeper for a block map in slot 7: device or resource busy")
	})
}

// TestCannotStart: a child that refuses ends the keeper while no lease is open.
func TestCannotStart(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(c *Config)
		want   ChildError
	}{
		"engine refuses":  {func(c *Config) { c.EngineArgs = []string{"exit=4"} }, ChildError{"engine", 4}},
		"control refuses": {func(c *Config) { c.ControlArgs = []string{"exit=4"} }, ChildError{"control", 4}},
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, tt.change)
			var ce *ChildError
			if err := h.ended(); !errors.As(err, &ce) || *ce != tt.want {
				t.Errorf("Run: %v, want %v", err, &tt.want)
			}
		})
	}
}

// TestOrder is ctx's end with a lease open: every key is destroyed.
func TestOrder(t *testing.T) {
	h := open(t, nil)
	h.pid("engine pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	h.end()
	if err := h.ended(); !errors.Is(err, context.Canceled) || !h.k.keys.Empty(3) {
		t.Errorf("Run: %v, key destroyed %v", err, h.k.keys.Empty(3))
	}
}

// A manor is a keeper in a process of its own.
type manor struct {
	*house
	cmd   *exec.Cmd
	log   string // a file that grows by a byte with each exec
	execs int    // its size
}

func startManor(t *testing.T, env ...string) *manor {
	t.Helper()
	h := &house{T: t, api: filepath.Join(t.TempDir(), "api")}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.Symlink(self(t), path); err != nil {
		t.Fatal(err)
	}
	m := &manor{house: h, cmd: exec.Command(path, "keeper", h.api), log: filepath.Join(t.TempDir(), "execs")}
	m.cmd.Stderr = os.Stderr
	m.cmd.Env = append(append(os.Environ(), "PLAY_LOG="+m.log), env...)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.cmd.Process.Kill() //nolint:errcheck // it has ended
		m.cmd.Wait()         //nolint:errcheck // likewise
	})
	h.pid("engine pid", 0)
	return m
}

// TestKilled is K6: children do not outlive a keeper that was killed.
func TestKilled(t *testing.T) {
	m := startManor(t)
	engine, control := m.pid("engine pid", 0), m.pid("pid", 0)
	m.want("engine fill 1", "<nil>")
	m.want("engine environ", strings.Join(engineEnv, " "))
	m.want("environ", UpgradeEnv+"=")
	m.rss()
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	m.until("engine and control end", func() bool { return gone(engine) && gone(control) })
}

// rss checks how much the keeper takes.
func (m *manor) rss() {
	m.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.Fatal(err)
	}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	if kib, err := strconv.Atoi(strings.Fields(rss)[0]); err != nil || kib > 16<<10 && !raceDetector {
		m.Errorf("the keeper takes %d KiB, want at most 16 MiB", kib)
	} else {
		m.Logf("the keeper takes %d KiB", kib)
	}
}

// gone reports whether a process that is not our child has ended; whoever
// inherited it may not have reaped it.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z ")) || bytes.Contains(stat, []byte(") X "))
}

func TestConfig(t *testing.T) {
	err := Run(context.Background(), Config{})
	if err == nil || !strings.Contains(err.Error(), "Self") || !strings.Contains(err.Error(), "Admin") {
		t.Errorf("an empty configuration: %v", err)
	}
}

// TestL5WipeWaitsForNoMap destroys a key while the map of another lease, 4 TiB
// that were written whole, is given back: the time to erasure does not depend on
// what other leases do.
func TestL5WipeWaitsForNoMap(t *testing.T) {
	h := open(t, nil)
	h.pid("engine pid", 0)
	fastest := time.Hour // of a few: other processes are in the way now and then
	for tries := 0; tries < 5 || tries < 30 && fastest > time.Millisecond; tries++ {
		ns, err := strconv.Atoi(ask(h.api, "engine overlap"))
		if err != nil {
			t.Fatal(err)
		}
		fastest = min(fastest, time.Duration(ns))
	}
	t.Logf("key destroyed %v after the engine asked", fastest)
	if fastest > time.Millisecond {
		t.Errorf("key destroyed %v after the engine asked, want at most 1ms", fastest)
	}
}

// BenchmarkWipe is the time to destruction, from the engine's call to the last
// byte read back, and the round trip, idle and with both processors busy.
func BenchmarkWipe(b *testing.B) {
	for _, burners := range []int{0, 2, 4} {
		b.Run(fmt.Sprintf("burners=%d", burners), func(b *testing.B) {
			api := filepath.Join(b.TempDir(), "api")
			path, err := os.Executable()
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.Command(path, "keeper", api)
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			for start := time.Now(); ask(api, "engine pid") == "" || ask(api, "engine pid") == "no engine"; time.Sleep(time.Millisecond) {
				if time.Since(start) > time.Minute {
					b.Fatal("the engine does not answer")
				}
			}
			for range b.N {
				fields := strings.Fields(ask(api, fmt.Sprintf("engine bench 300 %d", burners)))
				for i, name := range []string{"destroyed-p50-us", "destroyed-p99-us", "destroyed-p99.9-us", "trip-p50-us", "trip-p99-us", "trip-p99.9-us"} {
					ns, err := strconv.Atoi(fields[i])
					if err != nil {
						b.Fatal(fields)
					}
					b.ReportMetric(float64(ns)/1000, name)
				}
			}
		})
	}
}
