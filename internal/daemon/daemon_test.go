package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/config"
)

func testConfig(t *testing.T) config.Config {
	cfg := config.Default()
	cfg.RunDir, cfg.StateDir = t.TempDir(), t.TempDir()
	return cfg
}

// TestPlace prepares, refuses a second daemon, and leaves nothing behind.
func TestPlace(t *testing.T) {
	t.Setenv(aliveEnv, "") // put back what prepare changes
	cfg := testConfig(t)
	p, err := prepare(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err := prepare(cfg); !errors.As(err, &refused) || refused.CommandExit() != 4 {
		t.Errorf("a second daemon: %v", err)
	}
	if os.Getenv(aliveEnv) != p.alivePath {
		t.Errorf("the next program would take %q for %q", os.Getenv(aliveEnv), p.alivePath)
	}
	// Whoever shares the description keeps the lock, as an engine does.
	fd, err := syscall.Dup(int(p.alive.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := locked(p.alivePath, 0); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("the engines' lock is free: %v", err)
	}
	if err := p.alive.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := locked(p.alivePath, 0); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("the engines' lock is free while an engine has it: %v", err)
	}
	if err := syscall.Close(fd); err != nil {
		t.Fatal(err)
	}
	if p.alive, err = locked(p.alivePath, 0); err != nil {
		t.Errorf("the engines' lock is held although none is there: %v", err)
	}
	for _, path := range []string{cfg.APISocket(), cfg.AdminSocket()} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(cfg.RunDir); err != nil || len(left) != 1 || left[0].Name() != "lock" {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestPlaceInTheWay: what cannot be had leaves nothing open or behind.
func TestPlaceInTheWay(t *testing.T) {
	t.Setenv(aliveEnv, "")
	cfg := testConfig(t)
	if err := os.WriteFile(cfg.AdminSocket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err := prepare(cfg); !errors.As(err, &refused) {
		t.Errorf("a file in the place of a socket: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(cfg.RunDir, "engine-*.lock"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if err := os.Remove(cfg.AdminSocket()); err != nil {
		t.Fatal(err)
	}
	p, err := prepare(cfg)
	if err != nil {
		t.Fatalf("the folder is still locked: %v", err)
	}
	if err := p.close(); err != nil {
		t.Error(err)
	}
}

// TestRecipe: what ties the daemon to its service manager stays with the keeper.
func TestRecipe(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/secret")
	r, err := recipeOf(testConfig(t), "/run/vacate/engine-1.lock")
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Join(append(r.EngineEnv, r.ControlEnv...), "\n")
	for _, want := range []string{engineEnv + "={", controlEnv + "={", aliveEnv + "=/run/vacate/engine-1.lock", keeperEnv + "="} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is not in\n%s", want, env)
		}
	}
	if strings.Contains(env, "NOTIFY_SOCKET") {
		t.Error("children would speak to the service manager")
	}
}

func TestProgram(t *testing.T) {
	args := os.Args
	defer func() { os.Args = args }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "program")
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	for called, want := range map[string]string{link: link, "/bin/true": self, "no such program": self} {
		os.Args = []string{called}
		if got, err := program(); err != nil || got != want {
			t.Errorf("called as %s: %s, %v; want %s", called, got, err, want)
		}
	}
}

// TestNotifier: states go out as they are, the watchdog's at half its time.
func TestNotifier(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if notifier() != nil {
		t.Error("nobody is to be told, and is")
	}
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	for _, tt := range []struct{ usec, pid, want string }{
		{"", "", "READY=1"},
		{"100000", "", "WATCHDOG=1 READY=1 WATCHDOG=1"},
		{"100000", strconv.Itoa(os.Getpid()), "WATCHDOG=1 READY=1 WATCHDOG=1"},
		{"100000", "1", "READY=1"}, // for another process
		{"often", "", "READY=1"},
	} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		tell := notifier()
		for range 10 {
			tell("WATCHDOG=1")
		}
		tell("READY=1")
		time.Sleep(60 * time.Millisecond)
		tell("WATCHDOG=1")
		tell("end")
		var got []string
		for b := make([]byte, 100); ; {
			n, err := l.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			if string(b[:n]) == "end" {
				break
			}
			got = append(got, string(b[:n]))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("WATCHDOG_USEC=%s, WATCHDOG_PID=%s: %q, want %q", tt.usec, tt.pid, got, tt.want)
		}
	}
}
