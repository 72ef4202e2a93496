package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/config"
	"vacate/internal/handoff"
	"vacate/internal/sandbox"
	"vacate/internal/sys"
)

// Variables that say what a fake `vacate devices` does, and where it writes that.
const (
	playEnv  = "DAEMON_TEST_AIDE"
	diaryEnv = "DAEMON_TEST_DIARY"
)

func init() { runtime.LockOSThread() } // main runs on the main thread, for playAide

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "devices" {
		playAide(os.Getenv(playEnv))
	}
	os.Exit(m.Run())
}

// playAide is a process that aides are taken for.
func playAide(play string) {
	note := func(text string) {
		f, err := os.OpenFile(os.Getenv(diaryEnv), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(f, "%s %d\n", text, os.Getpid())
		}
		if err != nil {
			os.Exit(9)
		}
		f.Close()
	}
	if play == "nameless" { // it has not come to name itself
		note("started")
		select {}
	}
	if err := sys.SetName(aideName); err != nil {
		os.Exit(8)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if c, err := sys.ConfinementOf(0); err == nil {
		note(fmt.Sprintf("bounded %x %d", c.Bounding, c.NoNewPrivs))
	}
	note("started")
	switch play {
	case "ends":
		os.Exit(1)
	case "held": // the main thread is a zombie, and another one runs
		syscall.RawSyscall(syscall.SYS_EXIT, 1, 0, 0) //nolint:errcheck // it does not return
	case "deaf":
		for range term {
		}
	case "parent":
		cmd := exec.Command("/proc/self/exe", "devices")
		cmd.Env = append(os.Environ(), playEnv+"=stays")
		if err := cmd.Start(); err != nil {
			os.Exit(7)
		}
		<-term
		cmd.Process.Kill() //nolint:errcheck // this is the end
		cmd.Wait()         //nolint:errcheck // likewise
		os.Exit(0)
	}
	<-term
	note("removed")
	os.Exit(0)
}

// A diary is what fakes have written.
type diary struct {
	t    *testing.T
	path string
}

// pids are the processes that have noted what, in their order.
func (d diary) pids(what string) (pids []int) {
	d.t.Helper()
	b, err := os.ReadFile(d.path)
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), what+" "); ok {
			pid, err := strconv.Atoi(rest[strings.LastIndexByte(rest, ' ')+1:])
			if err != nil {
				d.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// until waits until n processes have noted what.
func (d diary) until(what string, n int) []int {
	d.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if pids := d.pids(what); len(pids) >= n {
			return pids
		}
	}
	d.t.Fatalf("%q was noted by %v, want %d", what, d.pids(what), n)
	return nil
}

// newAide is an aide whose processes play.
func newAide(t *testing.T, play string) (*aide, diary) {
	t.Helper()
	d := diary{t, filepath.Join(t.TempDir(), "diary")}
	a := &aide{wanted: true, argv: []string{"vacate", "devices"}, env: []string{playEnv + "=" + play, diaryEnv + "=" + d.path},
		log: slog.New(slog.DiscardHandler), stop: make(chan struct{}), done: make(chan struct{}), aideDelays: aideInService}
	a.first, a.last, a.look = 5*time.Millisecond, 40*time.Millisecond, 10*time.Millisecond
	t.Cleanup(func() {
		if left := ours(t); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return a, d
}

func ours(t *testing.T) []int {
	t.Helper()
	pids, err := aides(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	return pids
}

// TestAideEnds: A2, A4.
func TestAideEnds(t *testing.T) {
	a, d := newAide(t, "stays")
	go a.run(false)
	first := d.until("started", 1)[0]
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	second := d.until("started", 2)[1]
	if got := ours(t); !slices.Equal(got, []int{second}) {
		t.Errorf("processes %v are there, want %d", got, second)
	}
	a.end()
	if got := d.pids("removed"); !slices.Equal(got, []int{second}) {
		t.Errorf("devices were removed by %v, want %d", got, second)
	}
	var none *aide
	none.end()
}

// TestAideBackOff: one that cannot start is tried ever more rarely.
func TestAideBackOff(t *testing.T) {
	a, d := newAide(t, "ends")
	since := time.Now()
	go a.run(false)
	d.until("started", 6) // after 5, 10, 20, 40 and 40 ms
	if took := time.Since(since); took < 115*time.Millisecond {
		t.Errorf("six starts in %v", took)
	}
	a.end()
	n := len(d.pids("started"))
	time.Sleep(100 * time.Millisecond)
	if got := len(d.pids("started")); got != n {
		t.Errorf("after the end %d more were started", got-n)
	}
}

// TestAideDeaf: one that does not end is killed.
func TestAideDeaf(t *testing.T) {
	a, d := newAide(t, "deaf")
	a.remove = 50 * time.Millisecond
	go a.run(false)
	d.until("started", 1)
	a.end()
}

// TestAideHeld: one that has ended, and cannot be reaped, keeps no other from
// starting.
func TestAideHeld(t *testing.T) {
	a, d := newAide(t, "held")
	go a.run(false)
	d.until("started", 3)
	a.reap, a.remove = 10*time.Millisecond, 10*time.Millisecond
	close(a.stop)
	for deadline := time.Now().Add(20 * time.Second); len(ours(t)) > 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		for _, pid := range ours(t) {
			syscall.Kill(pid, syscall.SIGKILL) //nolint:errcheck // it may have ended
		}
	}
	<-a.done
}

// TestAideReplaced: A3, with an aide that runs, one that has ended and one that has
// no name yet.
func TestAideReplaced(t *testing.T) {
	for _, play := range []string{"stays", "ends", "nameless", "deaf"} {
		t.Run(play, func(t *testing.T) {
			old, was := newAide(t, play)
			cmd, err := old.start()
			if err != nil {
				t.Fatal(err)
			}
			was.until("started", 1)
			if play == "ends" {
				for !sys.Dying(cmd.Process.Pid) {
					time.Sleep(time.Millisecond)
				}
			}
			if got := ours(t); !slices.Equal(got, []int{cmd.Process.Pid}) {
				t.Fatalf("found %v, want %d", got, cmd.Process.Pid)
			}
			a, d := newAide(t, "stays")
			go a.run(true)
			next := d.until("started", 1)[0]
			if got := ours(t); !slices.Equal(got, []int{next}) {
				t.Errorf("processes %v are there, want %d", got, next)
			}
			if got := was.pids("removed"); got != nil {
				t.Errorf("an upgrade had devices removed by %v", got)
			}
			a.end()
		})
	}
}

// TestAideNotWanted: the next program makes no block devices.
func TestAideNotWanted(t *testing.T) {
	old, was := newAide(t, "stays")
	if _, err := old.start(); err != nil {
		t.Fatal(err)
	}
	was.until("started", 1)
	a, d := newAide(t, "stays")
	a.wanted = false
	a.run(true)
	if was.pids("removed") != nil || d.pids("started") != nil {
		t.Errorf("removed by %v, started %v", was.pids("removed"), d.pids("started"))
	}
	a.end()
}

// TestAideStrangers: neither another child nor another's aide is ended.
func TestAideStrangers(t *testing.T) {
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	a, d := newAide(t, "parent")
	cmd, err := a.start()
	if err != nil {
		t.Fatal(err)
	}
	pids := d.until("started", 2)
	if got := ours(t); !slices.Equal(got, pids[:1]) {
		t.Errorf("of this process: %v, want %d", got, pids[0])
	}
	if got, err := aides(pids[0]); err != nil || !slices.Equal(got, pids[1:]) {
		t.Errorf("of the other: %v, %v, want %d", got, err, pids[1])
	}
	cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it is there
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	a.replace()
	if err := other.Process.Signal(syscall.Signal(0)); err != nil || sys.Dying(other.Process.Pid) {
		t.Errorf("another child was ended: %v", err)
	}
	other.Process.Kill() //nolint:errcheck // it is there
	other.Wait()         //nolint:errcheck // it was killed
}

// TestAideRights: it can never have more than it needs.
func TestAideRights(t *testing.T) {
	a, d := newAide(t, "stays")
	a.rights = sandbox.DevicesKeeps
	c, err := sys.ConfinementOf(0)
	if err != nil {
		t.Fatal(err)
	}
	want := c.Bounding
	if c.Effective&(1<<8) != 0 { // CAP_SETPCAP, which an ordinary user has not
		want = 0
		for _, r := range sandbox.DevicesKeeps {
			want |= 1 << r
		}
		want &= c.Bounding
	}
	go a.run(false)
	d.until("started", 1)
	if len(d.pids(fmt.Sprintf("bounded %x 1", want))) != 1 {
		b, err := os.ReadFile(d.path)
		t.Errorf("it is not bounded to %x: %s, %v", want, b, err)
	}
	a.end()
}

// TestAideWanted: A1.
func TestAideWanted(t *testing.T) {
	cfg := testConfig(t)
	c, err := sys.ConfinementOf(0)
	if err != nil {
		t.Fatal(err)
	}
	may := c.Effective&(1<<sys.CapSysAdmin) != 0
	if got, err := aideWanted(cfg); err != nil || got != may {
		t.Errorf("wanted %v, %v; CAP_SYS_ADMIN %v", got, err, may)
	}
	if got, err := aideWanted(config.Config{}); err != nil || got {
		t.Errorf("without a folder: wanted %v, %v", got, err)
	}
	for name, h := range map[string]*handoff.Handoff{"check": {Checking: true}, "start": nil} {
		if name == "start" {
			cfg.DeviceDir = ""
		}
		if a, err := startAide(cfg, h, "vacate", slog.Default()); a != nil || err != nil {
			t.Errorf("%s: %v, %v", name, a, err)
		}
	}
	if got := ours(t); got != nil {
		t.Errorf("started: %v", got)
	}
}
