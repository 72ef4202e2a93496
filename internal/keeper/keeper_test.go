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
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/volatile"
)

// A house is a keeper under test, in this process: its keys are looked at
// through its own mapping.
type house struct {
	*testing.T
	k    *keeper
	api  string
	log  bytes.Buffer // read after ended
	end  context.CancelFunc
	done chan error
}

// open starts a keeper whose log is printed when the test has failed.
func open(t *testing.T, change func(c *Config)) *house {
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
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Self: []string{self}, API: f, Admin: f, Log: slog.New(slog.NewTextHandler(&h.log, nil))}
	if change != nil {
		change(&cfg)
	}
	if h.k, err = newKeeper(cfg); err != nil {
		t.Fatal(err)
	}
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

// ended waits for run and returns its error.
func (h *house) ended() error {
	select {
	case err := <-h.done:
		h.done <- err
		return err
	case <-time.After(30 * time.Second):
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
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
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
	for deadline := time.Now().Add(20 * time.Second); !yes(); time.Sleep(time.Millisecond) {
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

// TestEngineDeath is K2: whatever ends the engine, no key outlives it.
func TestEngineDeath(t *testing.T) {
	for name, end := range map[string]func(h *house, pid int){
		"killed":          func(_ *house, pid int) { syscall.Kill(pid, syscall.SIGKILL) },
		"stopped, killed": func(_ *house, pid int) { syscall.Kill(pid, syscall.SIGSTOP); syscall.Kill(pid, syscall.SIGKILL) },
		"crash":           func(h *house, _ int) { ask(h.api, "engine exit 1") },
		"panic":           func(h *house, _ int) { ask(h.api, "engine panic") },
		"exit 0":          func(h *house, _ int) { ask(h.api, "engine exit 0") },
		"held":            func(h *house, _ int) { ask(h.api, "engine zombie") }, // as by a drive that hangs
		"garbage":         func(h *house, _ int) { ask(h.api, "engine garbage 64") },
		"short garbage":   func(h *house, _ int) { ask(h.api, "engine garbage 10") },
		"long garbage":    func(h *house, _ int) { ask(h.api, "engine garbage 1000") },
		"the keeper's":    func(h *house, _ int) { ask(h.api, "engine control") },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, nil)
			engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
			for _, slot := range []string{"0", "1", "700", "1023"} {
				h.want("engine map "+slot, "<nil>")
				h.want("engine fill "+slot, "<nil>")
			}
			end(h, engine)
			h.pid("engine pid", engine)
			if now := h.pid("pid", control); alive(control) || alive(engine) {
				t.Errorf("engine %d alive %v, control %d (now %d) alive %v", engine, alive(engine), control, now, alive(control))
			}
			for i := range volatile.Slots {
				if r, err := h.k.table.Get(i); !h.k.keys.Empty(i) || err != nil || r != (volatile.Record{}) {
					t.Errorf("slot %d after the engine's end: empty %v, record %+v, %v", i, h.k.keys.Empty(i), r, err)
				}
			}
			if head, err := h.k.table.Header(); err != nil || head.Generation != 2 || head.KeeperID == [16]byte{} {
				t.Errorf("header %+v, %v", head, err)
			}
			h.want("engine map 700", "<nil>") // the old map is forgotten
		})
	}
}

// TestL5EngineDeathIsErasure measures K2 from the kill on: keys must go before
// the next engine comes.
func TestL5EngineDeathIsErasure(t *testing.T) {
	h := open(t, nil)
	engine := h.pid("engine pid", 0)
	for i := range 20 {
		h.want("engine fill "+strconv.Itoa(i), "<nil>")
	}
	start := time.Now()
	if err := syscall.Kill(engine, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.until("all keys destroyed", func() bool {
		for i := range 20 {
			if !h.k.keys.Empty(i) {
				return false
			}
		}
		return true
	})
	t.Logf("all keys destroyed %v after the kill", time.Since(start))
}

// TestControlRestarts is K1.
func TestControlRestarts(t *testing.T) {
	h := open(t, nil)
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	for _, code := range []string{"1", "3", "4"} { // 4: it cannot start, but a lease is open
		ask(h.api, "exit "+code)
		control = h.pid("pid", control)
		h.want("engine pid", strconv.Itoa(engine))
	}
	if h.k.keys.Empty(3) {
		t.Error("control's crash destroyed a key")
	}
	h.want("engine map 3", "asking the keeper for a block map in slot 3: file exists")
}

// TestControlPanics ends control as a bug would, with no lease open: that is no
// reason to end the daemon.
func TestControlPanics(t *testing.T) {
	h := open(t, nil)
	control := h.pid("pid", 0)
	ask(h.api, "panic")
	h.pid("pid", control)
}

// TestStop is K3: control may refuse, and grants.
func TestStop(t *testing.T) {
	h := open(t, nil)
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine fill 3", "<nil>")
	for i, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(os.Getpid(), s); err != nil {
			t.Fatal(err)
		}
		h.until("control is asked", func() bool { return ask(h.api, "asked") == strconv.Itoa(i+1) })
	}
	h.want("pid", strconv.Itoa(control))
	h.want("engine pid", strconv.Itoa(engine))
	if h.k.keys.Empty(3) {
		t.Error("a refused stop destroyed a key")
	}
	h.want("grant", "ok")
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.ended(); err != nil {
		t.Errorf("a granted stop: %v", err)
	}
	if alive(engine) || alive(control) || !h.k.keys.Empty(3) {
		t.Errorf("after a granted stop: engine alive %v, control alive %v, key destroyed %v",
			alive(engine), alive(control), h.k.keys.Empty(3))
	}
}

// TestStopEarly asks a control that does not listen yet: the signal ends it,
// and the next one is asked again.
func TestStopEarly(t *testing.T) {
	h := open(t, func(c *Config) { c.ControlArgs = []string{"grant", "deaf"} })
	time.Sleep(100 * time.Millisecond)
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.ended(); err != nil {
		t.Error(err)
	}
}

func TestCannotStart(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(c *Config)
		want   ChildError
	}{
		"engine refuses":  {func(c *Config) { c.EngineArgs = []string{"exit", "4"} }, ChildError{"engine", 4}},
		"control refuses": {func(c *Config) { c.ControlArgs = []string{"exit", "4"} }, ChildError{"control", 4}},
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

func TestNoSuchBinary(t *testing.T) {
	h := open(t, func(c *Config) { c.Self = []string{"/no/such/binary"} })
	time.Sleep(200 * time.Millisecond)
	h.end()
	if err := h.ended(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if n := strings.Count(h.log.String(), "no such file"); n < 2 || n > 6 {
		t.Errorf("%d tries in 200 ms, want a few:\n%s", n, &h.log)
	}
}

// TestKilled is K4: children do not outlive a keeper that was killed.
func TestKilled(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &house{T: t, api: filepath.Join(t.TempDir(), "api")}
	cmd := exec.Command(self, "keeper", h.api)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine fill 1", "<nil>")
	if got := ask(h.api, "engine environ"); got != strings.Join(engineEnv, " ") {
		t.Errorf("the engine's environment is %q", got)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	if kib, err := strconv.Atoi(strings.Fields(rss)[0]); err != nil || kib > 16<<10 && !raceDetector {
		t.Errorf("the keeper takes %d KiB, want at most 16 MiB", kib)
	} else {
		t.Logf("the keeper takes %d KiB", kib)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // it was killed
	h.until("engine and control end", func() bool { return gone(engine) && gone(control) })
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

// BenchmarkWipe is the time to destruction, from the engine's call to the last
// byte read back, and the round trip, idle and with both processors busy.
func BenchmarkWipe(b *testing.B) {
	for _, burners := range []int{0, 2, 4} {
		b.Run(fmt.Sprintf("burners=%d", burners), func(b *testing.B) {
			api := filepath.Join(b.TempDir(), "api")
			self, err := os.Executable()
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.Command(self, "keeper", api)
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			for start := time.Now(); ask(api, "engine pid") == ""; time.Sleep(time.Millisecond) {
				if time.Since(start) > 10*time.Second {
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
