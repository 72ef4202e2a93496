package daemon

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/config"
	"vacate/internal/handoff"
	"vacate/internal/volatile"
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
	if r.Layout != volatile.Layout {
		t.Errorf("it knows layout %d", r.Layout)
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
	os.Args = []string{"/bin/true"} // a newer version lies there
	if got, err := program(true); err != nil || got != "/bin/true" {
		t.Errorf("handed over: %s, %v", got, err)
	}
	for called, want := range map[string]string{link: link, "/bin/true": self, "no such program": self} {
		os.Args = []string{called}
		if got, err := program(false); err != nil || got != want {
			t.Errorf("called as %s: %s, %v; want %s", called, got, err, want)
		}
	}
}

// TestConfiguration: a program that takes over is told by its configuration, one
// that takes back by what it had.
func TestConfiguration(t *testing.T) {
	was, now := testConfig(t), testConfig(t)
	was.DriveDirs, was.Log.Level = []string{"/a", "/b"}, slog.LevelWarn
	b, err := json.Marshal(was)
	if err != nil {
		t.Fatal(err)
	}
	fault := errors.New("a key that nobody knows")
	note := handoff.Note{Settings: b}
	for name, tt := range map[string]struct {
		h    *handoff.Handoff
		err  error
		want config.Config
	}{
		"started":                       {nil, nil, now},
		"started, fault":                {nil, fault, config.Config{}},
		"taking over":                   {&handoff.Handoff{Note: note}, nil, now},
		"taking over, fault":            {&handoff.Handoff{Note: note}, fault, config.Config{}},
		"taking back":                   {&handoff.Handoff{Note: note, Failed: "so"}, nil, was},
		"taking back, successor's file": {&handoff.Handoff{Note: note, Failed: "so"}, fault, was},
	} {
		got, err := configuration(tt.h, func() (config.Config, error) {
			if tt.err != nil {
				return config.Config{}, tt.err
			}
			return now, nil
		})
		if !reflect.DeepEqual(got, tt.want) || (err != nil) != (tt.want.RunDir == "") {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tt.want)
		}
	}
}

// TestBrokenLog: a child goes on when nobody reads its log any more.
func TestBrokenLog(t *testing.T) {
	if os.Getenv("DAEMON_TEST_PART") != "" {
		become("vacate-test", 1000)
		_, err := os.Stderr.WriteString("a line\n")
		if !errors.Is(err, syscall.EPIPE) {
			os.Exit(3)
		}
		os.Exit(0)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestBrokenLog$")
	cmd.Env, cmd.Stderr = append(os.Environ(), "DAEMON_TEST_PART=1"), w
	if err := errors.Join(r.Close(), cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended: %v", err)
	}
}

// TestNotifier: states go out as they are, the watchdog's at half its time.
func TestNotifier(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if notifier(time.Now) != nil {
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
		{"10000000", "", "WATCHDOG=1 READY=1 WATCHDOG=1"},
		{"10000000", strconv.Itoa(os.Getpid()), "WATCHDOG=1 READY=1 WATCHDOG=1"},
		{"10000000", "1", "READY=1"}, // for another process
		{"often", "", "READY=1"},
	} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		now := time.Unix(1, 0)
		tell := notifier(func() time.Time { return now })
		for range 10 {
			tell("WATCHDOG=1")
		}
		tell("READY=1")
		now = now.Add(5 * time.Second)
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
