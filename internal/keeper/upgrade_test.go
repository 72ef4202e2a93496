package keeper

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// settled is what get returns once it has not changed for half a second.
func settled[T comparable](get func() T) T {
	was := get()
	for same := 0; same < 10; same++ {
		time.Sleep(50 * time.Millisecond)
		if now := get(); now != was {
			was, same = now, 0
		}
	}
	return was
}

// TestUpgrade replaces the whole daemon twice, by exec, with a lease open, a
// client's connection passed on, and messages of the engine under way all the
// time.
func TestUpgrade(t *testing.T) {
	m := startManor(t, "PLAY_ENGINE=hammer")
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m.want("engine map 1", "<nil>")
	m.want("engine fill 1", "<nil>")
	m.want("engine hold 1 "+sock+"2", "<nil>")
	m.want("engine pass 1 77 "+sock, "<nil>")
	client, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	lines := bufio.NewReader(client)
	m.want("engine keep 1 255 "+sock, "<nil>")
	frontend, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer frontend.Close()
	session := bufio.NewReader(frontend)
	said := func(engine string) {
		t.Helper()
		m.want("engine place 1 255 "+engine, "<nil>")
		if line, err := session.ReadString('\n'); err != nil || line != engine+"\n" {
			t.Errorf("%s says %q, %v, from a place", engine, line, err)
		}
	}
	var was [3]int
	files := func() [3]int { // of keeper, engine and control
		return [3]int{len(entries(t, m.cmd.Process.Pid)), number(ask(m.api, "engine fds")), number(ask(m.api, "fds"))}
	}
	for i := range 3 {
		m.upgrade("done")
		if i == 0 { // until now the keeper alone had the connection
			was = settled(files)
		}
		m.until(fmt.Sprint("keeper, engine and control have no more files open than before: ", was), func() bool {
			now := files()
			return now[0] <= was[0] && now[1] <= was[1] && now[2] <= was[2]
		})
		m.want("engine bits 1", "1")
		m.want("engine conn 1 hello", "77 <nil>")
		if line, err := lines.ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("the client reads %q, %v", line, err)
		}
		said("upgraded")
		m.until("100 messages that were under way are answered", func() bool {
			n, err, _ := strings.Cut(ask(m.api, "engine hammered"), " ")
			if err != "<nil>" {
				t.Errorf("messages that were under way: %s answered, %s", n, err)
			}
			return err != "<nil>" || number(n) >= 100
		})
	}
	m.rss()
	engine, control := m.pid("engine pid", 0), m.pid("pid", 0)
	m.want("engine accept 1", "<nil>")
	if got := ask(sock+"2", "pid"); got != strconv.Itoa(engine) {
		t.Errorf("the lease's socket is answered by %q, want engine %d", got, engine)
	}
	// The children are watched as those that the keeper has started itself.
	syscall.Kill(engine, syscall.SIGKILL)
	engine = m.pid("engine pid", engine)
	m.want("engine bits 1", "1")
	said("restarted")
	syscall.Kill(control, syscall.SIGKILL)
	control = m.pid("pid", control)
	m.want("grant", "ok")
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("a granted stop: %v", err)
	}
	if alive(engine) || alive(control) {
		t.Errorf("after a granted stop: engine alive %v, control alive %v", alive(engine), alive(control))
	}
}

// upgrade asks for an upgrade and waits for its outcome, which both children
// have then seen: they are new, and the keeper is the same process.
func (m *manor) upgrade(outcome string) {
	m.Helper()
	engine, control := m.pid("engine pid", 0), m.pid("pid", 0)
	m.upgrades()
	m.pid("pid", control)
	m.pid("engine pid", engine)
	m.until("the upgrade ends: "+outcome, func() bool {
		return strings.Contains(ask(m.api, "environ"), UpgradeEnv+"="+outcome)
	})
	// The outcome is told before the last step: see that that is done too.
	m.until("the next keeper goes on", func() bool {
		b, _ := os.ReadFile(m.log)
		if len(b) <= m.execs {
			return false
		}
		m.execs = len(b)
		return true
	})
}

// upgrades asks for an upgrade that is begun. The keeper may end control before
// that has answered: what comes of it then says that it was.
func (h *house) upgrades() {
	h.Helper()
	if said := ask(h.api, "upgrade"); said != "<nil>" && said != "" {
		h.Errorf("asking for an upgrade: %q", said)
	}
}

// entries are what a process has open.
func entries(t *testing.T, pid int) (names []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	l, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l {
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// TestUpgradeReturns: the new keeper cannot go on, and gives all back.
func TestUpgradeReturns(t *testing.T) {
	m := startManor(t, "PLAY_REFUSE=1")
	engine := m.pid("engine pid", 0)
	m.want("engine map 1", "<nil>")
	m.want("engine fill 1", "<nil>")
	m.upgrade("failed: it does not want to")
	if m.pid("engine pid", 0) == engine {
		t.Error("the engine is the one of before")
	}
	m.want("engine bits 1", "1")
	m.want("grant", "ok")
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("a granted stop: %v", err)
	}
}

// TestUpgradeDoesNotStart: nothing changes.
func TestUpgradeDoesNotStart(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("not a program"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ self, check, place string }{
		"is away":             {self: "/no/such/binary"},
		"is no program":       {self: text},
		"crashes":             {check: "exit=2"},
		"refuses its config":  {check: "exit=4"},
		"hangs":               {check: "hang"},
		"says nothing":        {check: "exit=0"},
		"has another folder":  {place: "elsewhere"},
		"says something else": {self: "/bin/echo"},
		"is too old":          {}, // it does not say that it knows the lease's export
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PLAY_CHECK", tt.check)
			t.Setenv("PLAY_PLACE", tt.place)
			p := patient
			if tt.check == "hang" {
				p = hasty
			}
			h := openWith(t, p, func(c *Config) {
				if tt.self != "" {
					c.Self = tt.self
				}
			})
			engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
			h.want("engine map 3", "<nil>")
			h.want("engine fill 3", "<nil>")
			if name == "is too old" {
				h.want("engine export 3", "<nil>")
			}
			h.want("upgrade", "asking the keeper for an upgrade: exec format error")
			h.want("engine pid", strconv.Itoa(engine))
			h.want("pid", strconv.Itoa(control))
			syscall.Kill(engine, syscall.SIGKILL)
			h.pid("engine pid", engine)
			h.want("engine bits 3", "1")
			ask(h.api, "exit 1")
			h.pid("pid", control)
			if env := ask(h.api, "environ"); !strings.HasPrefix(env, UpgradeEnv+"=failed: ") {
				t.Errorf("control's environment: %q", env)
			}
		})
	}
}

// TestUpgradeFallsBack: the new binary answers, and its children fail.
func TestUpgradeFallsBack(t *testing.T) {
	for name, tt := range map[string]struct{ engine, control, old, want string }{
		"engine never up":     {engine: "hang", want: "failed: its engine does not take over"},
		"engine crashes":      {engine: "exit=1", want: "failed: its engine does not take over"},
		"engine refuses":      {engine: "exit=4", want: "failed: its engine does not take over"},
		"control never ready": {control: "hang", want: "failed: its control does not become ready"},
		"control crashes":     {control: "exit=1", want: "failed: its control does not become ready"},
		"control refuses":     {control: "exit=4", want: "failed: its control does not become ready"},
		"old engine stays":    {engine: "hang", old: "stay", want: "failed: its engine does not take over"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PLAY_ENGINE", tt.engine)
			t.Setenv("PLAY_CONTROL", tt.control)
			p := patient
			if tt.engine == "hang" {
				p.up = 4 * time.Second
			}
			if tt.control == "hang" {
				p.ready = 4 * time.Second
			}
			h := openWith(t, p, func(c *Config) {
				c.EngineArgs = []string{"was", tt.old}
				c.ControlArgs = []string{"was"}
			})
			engine := h.pid("engine pid", 0)
			h.want("engine map 3", "<nil>")
			h.want("engine fill 3", "<nil>")
			h.upgrades()
			h.until("the upgrade has failed", func() bool { return strings.HasPrefix(ask(h.api, "environ"), UpgradeEnv+"="+tt.want) })
			h.pid("engine pid", engine)
			if h.k.keys.Empty(3) {
				t.Error("a failed upgrade destroyed a key")
			}
			for _, child := range []string{"engine pid", "pid"} {
				h.until("the "+child+" is the old binary's", func() bool {
					return strings.Contains(arguments(h.pid(child, 0)), " was ")
				})
			}
			h.want("engine bits 3", "1")
		})
	}
}

// TestUpgradesThatFail: K2 counts engines in a row, and between two upgrades one
// was up.
func TestUpgradesThatFail(t *testing.T) {
	t.Setenv("PLAY_ENGINE", "exit=1")
	h := open(t, nil)
	h.pid("engine pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	for range giveUp + 1 {
		control := h.pid("pid", 0)
		var said string
		h.until("the last upgrade is over", func() bool { // its control answers before it says that it is ready
			said = ask(h.api, "upgrade")
			return !strings.Contains(said, syscall.EBUSY.Error())
		})
		if said != "<nil>" && said != "" { // as upgrades
			t.Fatal(said)
		}
		h.pid("pid", control)
		h.until("the upgrade has failed", func() bool { return strings.Contains(ask(h.api, "environ"), UpgradeEnv+"=failed: ") })
		h.pid("engine pid", 0)
	}
	if h.k.keys.Empty(3) {
		t.Error("upgrades that failed have destroyed a key")
	}
}

func arguments(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(b), "\x00", " ")
}

// TestUpgradeBusy: one at a time; a stop that is granted meanwhile is heeded.
func TestUpgradeBusy(t *testing.T) {
	t.Setenv("PLAY_ENGINE", "hang")
	h := open(t, nil)
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	h.want("upgrade", "<nil>")
	h.want("upgrade", "asking the keeper for an upgrade: device or resource busy")
	ask(h.api, "stop") // the keeper may end control before it answers
	h.stopped(engine, control)
}
