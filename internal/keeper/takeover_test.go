package keeper

import (
	"bufio"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/volatile"
)

// TestL8EngineDeath is K1: whatever ends the engine, the next one finds keys,
// table, maps and sockets as they were, and control goes on.
func TestL8EngineDeath(t *testing.T) {
	for name, end := range map[string]func(h *house, pid int){
		"killed":          func(_ *house, pid int) { syscall.Kill(pid, syscall.SIGKILL) },
		"stopped, killed": func(_ *house, pid int) { syscall.Kill(pid, syscall.SIGSTOP); syscall.Kill(pid, syscall.SIGKILL) },
		"crash":           func(h *house, _ int) { ask(h.api, "engine exit 1") },
		"panic":           func(h *house, _ int) { ask(h.api, "engine panic") },
		"refused":         func(h *house, _ int) { ask(h.api, "engine exit 4") }, // but leases are open
		"exit 0":          func(h *house, _ int) { ask(h.api, "engine exit 0") },
		"held":            func(h *house, _ int) { ask(h.api, "engine zombie") }, // as by a drive that hangs
		"garbage":         func(h *house, _ int) { ask(h.api, "engine raw 64 120") },
		"short garbage":   func(h *house, _ int) { ask(h.api, "engine raw 10 0") },
		"long garbage":    func(h *house, _ int) { ask(h.api, "engine raw 1000 0") },
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, nil)
			engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
			sock := filepath.Join(t.TempDir(), "s")
			for _, slot := range []string{"1", "700", "1023"} {
				h.want("engine map "+slot, "<nil>")
				h.want("engine fill "+slot, "<nil>")
			}
			h.want("engine hold 700 "+sock, "<nil>")
			end(h, engine)
			next := h.pid("engine pid", engine)
			if now := h.pid("pid", 0); now != control {
				t.Errorf("control is %d and was %d", now, control)
			}
			if name != "held" {
				h.until("the engine that ended is gone", func() bool { return gone(engine) })
			}
			for _, slot := range []int{1, 700, 1023} {
				h.want("engine bits "+strconv.Itoa(slot), "1")
				r, err := h.k.table.Get(slot)
				if h.k.keys.Empty(slot) || err != nil || r.State != volatile.StateOpen {
					t.Errorf("slot %d after the engine's end: key destroyed %v, record %+v, %v", slot, h.k.keys.Empty(slot), r, err)
				}
			}
			h.want("engine bits 2", "none")
			h.want("engine accept 700", "<nil>")
			if got := ask(sock, "pid"); got != strconv.Itoa(next) {
				t.Errorf("the lease's socket is answered by %q, want engine %d", got, next)
			}
			if head, err := h.k.table.Header(); err != nil || head.Generation != 2 || head.KeeperID == [16]byte{} {
				t.Errorf("header %+v, %v", head, err)
			}
			h.want("engine unmap 700", "asking the keeper to drop the block map of slot 700: device or resource busy")
			h.want("engine wipe 700", "<nil>")
			h.want("engine unmap 700", "<nil>")
			syscall.Kill(next, syscall.SIGKILL)
			h.pid("engine pid", next)
			h.want("engine bits 700", "none") // nor is the socket there, which the engine had too
			if c, err := net.Dial("unix", sock); err == nil {
				c.Close()
				t.Error("a socket listens although its slot was given back")
			}
		})
	}
}

// TestL8TakeOverTime measures from SIGKILL to an answer of the next engine, by
// way of control: processes are started without delay.
func TestL8TakeOverTime(t *testing.T) {
	h := open(t, nil)
	pid := h.pid("engine pid", 0)
	h.want("engine map 1", "<nil>")
	var times []time.Duration
	for range 10 {
		start := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for next := pid; next == pid; {
			if n, err := strconv.Atoi(ask(h.api, "engine pid")); err == nil {
				next = n
			}
			if time.Since(start) > time.Minute {
				t.Fatal("no new engine")
			}
			if next != pid {
				times = append(times, time.Since(start))
				pid = next
				break
			}
		}
	}
	t.Logf("from SIGKILL to the next engine's answer: %v", times)
}

// TestPassedConnections: an engine that dies before it was up loses none; one
// that was up has them.
func TestPassedConnections(t *testing.T) {
	dir := t.TempDir()
	file, sock := filepath.Join(dir, "deaths"), filepath.Join(dir, "s")
	h := open(t, func(c *Config) { c.EngineArgs = []string{"file=" + file} })
	engine := h.pid("engine pid", 0)
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.want("engine pass 1 77 "+sock, "passing a connection of slot 1 to the keeper: no such file or directory")
	refused, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	wantEOF(t, refused)
	h.want("engine map 1", "<nil>")
	h.want("engine pass 1 77 "+sock, "<nil>")
	client, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1\n2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(engine, syscall.SIGKILL)
	engine = h.pid("engine pid", engine)
	if head, err := h.k.table.Header(); err != nil || head.Generation != 4 {
		t.Errorf("header %+v, %v: want two engines between", head, err)
	}
	h.want("engine conn 1 hello", "77 <nil>")
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "hello\n" {
		t.Errorf("the client reads %q, %v", line, err)
	}
	syscall.Kill(engine, syscall.SIGKILL)
	h.pid("engine pid", engine)
	wantEOF(t, client)
	h.want("engine conn 1 hello", "none")
}

// TestL8Places: what an engine put into places stays there over its death, also
// that of engines which never were up, until an engine gives it up or the lease
// has ended.
func TestL8Places(t *testing.T) {
	dir := t.TempDir()
	file, sock := filepath.Join(dir, "deaths"), filepath.Join(dir, "s")
	h := open(t, func(c *Config) { c.EngineArgs = []string{"file=" + file} })
	engine := h.pid("engine pid", 0)
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	frontend := func() net.Conn {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	h.want("engine keep 1 0 "+sock, "asking the keeper to hold a descriptor in place 0 of slot 1: no such file or directory")
	wantEOF(t, frontend())
	h.want("engine map 1", "<nil>")
	h.want("engine keep 1 0 "+sock, "<nil>")
	zero := frontend()
	h.want("engine keep 1 255 "+sock, "<nil>")
	last := frontend()
	h.want("engine keep 1 256 "+sock, "asking the keeper to hold a descriptor in place 256 of slot 1: there are 256 places: "+volatile.ErrFormat.Error())
	wantEOF(t, frontend())
	if err := os.WriteFile(file, []byte("1\n2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for place, c := range map[string]net.Conn{"0": zero, "255": last} { // the second time the engine that dies was up
		syscall.Kill(engine, syscall.SIGKILL)
		engine = h.pid("engine pid", engine)
		h.want("engine place 1 "+place+" hello", "<nil>")
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("from place %s comes %q, %v", place, line, err)
		}
	}
	h.want("engine place 1 1 hello", "none")
	h.want("engine yield 1 0", "<nil>")
	wantEOF(t, zero)
	h.want("engine place 1 0 hello", "none")
	h.want("engine unmap 1", "<nil>")
	wantEOF(t, last)
}

// TestShortage: that no process can be started for a while erases nothing.
func TestShortage(t *testing.T) {
	if testing.Short() {
		t.Log("shortened: it takes 4 s")
		return
	}
	h := open(t, nil)
	engine := h.pid("engine pid", 0)
	h.want("engine map 1", "<nil>")
	h.want("engine fill 1", "<nil>")
	program := self(t)
	if err := os.Chmod(program, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(program, 0o700)
	syscall.Kill(engine, syscall.SIGKILL)
	time.Sleep(4 * time.Second)
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	h.pid("engine pid", engine)
	h.want("engine bits 1", "1")
	if h.k.keys.Empty(1) {
		t.Error("a key was destroyed because no engine could be started for four seconds")
	}
}

func wantEOF(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("the client reads %d bytes, %v; want its end", n, err)
	}
	c.Close()
}

// TestEngineHangs: one that neither takes over nor ends is ended.
func TestEngineHangs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hangs")
	h := openWith(t, hasty, func(c *Config) { c.EngineArgs = []string{"file=" + file} })
	engine := h.pid("engine pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	if err := os.WriteFile(file, []byte("hang\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(engine, syscall.SIGKILL)
	h.pid("engine pid", engine)
	h.want("engine bits 3", "1")
	if h.k.keys.Empty(3) {
		t.Error("a key was destroyed because an engine hung")
	}
}

// TestControlHangs: one that neither becomes ready nor ends is ended, and no lease with
// it.
func TestControlHangs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hangs")
	h := openWith(t, hasty, func(c *Config) { c.ControlArgs = []string{"file=" + file} })
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	if err := os.WriteFile(file, []byte("hang\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(control, syscall.SIGKILL)
	h.pid("pid", control)
	if now := h.pid("engine pid", 0); now != engine || h.k.keys.Empty(3) {
		t.Errorf("engine %d is now %d; the key is gone: %v", engine, now, h.k.keys.Empty(3))
	}
}

// TestGivesUp is K2.
func TestGivesUp(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deaths")
	h := open(t, func(c *Config) { c.EngineArgs = []string{"file=" + file} })
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	for _, slot := range []string{"0", "1", "700", "1023"} {
		h.want("engine map "+slot, "<nil>")
		h.want("engine fill "+slot, "<nil>")
	}
	deaths := strings.Repeat("x\n", giveUp-1)
	if err := os.WriteFile(file, []byte(deaths), 0o600); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(engine, syscall.SIGKILL)
	engine = h.pid("engine pid", engine)
	h.want("engine bits 700", "1") // four are not enough
	if h.k.keys.Empty(700) {
		t.Error("a key is destroyed although an engine took over")
	}
	if err := os.WriteFile(file, []byte(deaths+"x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	syscall.Kill(engine, syscall.SIGKILL)
	h.pid("engine pid", engine)
	t.Logf("gave up and went on within %v", time.Since(start))
	for i := range volatile.Slots {
		if r, err := h.k.table.Get(i); !h.k.keys.Empty(i) || err != nil || r != (volatile.Record{}) {
			t.Fatalf("slot %d: key destroyed %v, record %+v, %v", i, h.k.keys.Empty(i), r, err)
		}
	}
	h.want("engine bits 700", "none")
	h.want("engine map 700", "<nil>")
	h.want("pid", strconv.Itoa(control))
}

// TestControlRestarts is K4.
func TestControlRestarts(t *testing.T) {
	h := open(t, nil)
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	for _, code := range []string{"0", "1", "4"} { // 4: it cannot start, but a lease is open
		ask(h.api, "exit "+code)
		control = h.pid("pid", control)
		if now := h.pid("engine pid", 0); now != engine {
			t.Errorf("engine %d, was %d", now, engine)
		}
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

// TestStop is K5: control may refuse, and grants.
func TestStop(t *testing.T) {
	h := open(t, nil)
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine map 3", "<nil>")
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
	h.stopped(engine, control)
	h.mu.Lock()
	defer h.mu.Unlock()
	if got := strings.ReplaceAll(strings.Join(h.told, " "), "\n", "+"); got != "WATCHDOG=1 READY=1+STATUS=serving STOPPING=1" {
		t.Errorf("the service manager was told %q", got)
	}
}

// stopped checks that a granted stop left nothing.
func (h *house) stopped(engine, control int) {
	h.Helper()
	if err := h.ended(); err != nil {
		h.Errorf("a granted stop: %v", err)
	}
	if alive(engine) || alive(control) || !h.k.keys.Empty(3) {
		h.Errorf("after a granted stop: engine alive %v, control alive %v, key destroyed %v",
			alive(engine), alive(control), h.k.keys.Empty(3))
	}
}

// TestL5StopOfStuckEngine: keys are destroyed although the engine runs no more
// instruction of its own.
func TestL5StopOfStuckEngine(t *testing.T) {
	h := open(t, nil)
	engine, control := h.pid("engine pid", 0), h.pid("pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	if err := syscall.Kill(engine, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ask(h.api, "stop") // the keeper may end control before it answers
	h.stopped(engine, control)
}

// TestStopEarly asks while control is not ready: with a lease open it is asked
// later, without one nobody is there to refuse.
func TestStopEarly(t *testing.T) {
	h := open(t, func(c *Config) { c.ControlArgs = []string{"grant", "slow"} })
	engine := h.pid("engine pid", 0)
	h.want("engine map 3", "<nil>")
	h.want("engine fill 3", "<nil>")
	h.until("control is ready", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.told) > 1 })
	control := h.pid("pid", 0)
	ask(h.api, "exit 1")
	control = h.pid("pid", control)
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	h.stopped(engine, control)

	h = open(t, func(c *Config) { c.ControlArgs = []string{"hang"} })
	h.pid("engine pid", 0)
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := h.ended(); err != nil {
		t.Error(err)
	}
}
