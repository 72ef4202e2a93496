package child

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/handoff"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// The test binary plays the child: it asks for slot 1, and ends as it is told by
// the reply's terms.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		play()
	}
	os.Exit(m.Run())
}

func play() {
	must := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "child:", err)
			os.Exit(1)
		}
	}
	if os.Getenv("PLAY") != "deaf" {
		must(sys.ExitOnEOF(os.NewFile(4, "death")))
	}
	l, err := volatile.NewLink(os.NewFile(3, "link"))
	must(err)
	_, terms, err := l.FetchConn(1, 0)
	must(err)
	if terms != 0 {
		must(l.Close())
		switch os.Getenv("PLAY") {
		case "late":
			time.Sleep(100 * time.Millisecond)
		case "stays":
			time.Sleep(time.Minute)
		}
		os.Exit(int(terms))
	}
	select {}
}

// serve answers each fetch with the terms, and notes that it was asked.
type server struct {
	mu    sync.Mutex
	asked int
}

func (s *server) with(terms uint64, file *os.File) Server {
	return Server{Mu: &s.mu, Handle: func(_ *Child, m *volatile.Message, _ *os.File) (*os.File, error) {
		s.asked++
		*m = volatile.Message{Kind: m.Kind, Reply: true, Slot: m.Slot, ID: m.ID, Arg: terms}
		return file, nil
	}}
}

func start(t *testing.T, s Server, env ...string) *Child {
	t.Helper()
	program, err := sys.OpenProgram("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	c, err := Start("child", s, Program{File: program, Args: []string{"test", "child"}, Env: env}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *server) until(t *testing.T, asked int) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := s.asked
		s.mu.Unlock()
		if n >= asked {
			return
		}
		if time.Since(start) > time.Minute {
			t.Fatal("the child asks nothing")
		}
	}
}

// TestExit: a child that ends is reaped, and its link is down; how it ends is its
// own business, if it does.
func TestExit(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for env, want := range map[string]string{"": "exit status 4", "PLAY=late": "exit status 4", "PLAY=stays": "killed"} {
		var c *Child
		for range 20 { // one that had no turn for so long is killed, with a right
			var s server
			c = start(t, s.with(4, null), env)
			<-c.LinkDown()
			cut := time.Now()
			c.CutOff()
			if c.LinkDown() != nil {
				t.Error("a link that was cut off is down again")
			}
			<-c.Ended()
			if want == "killed" || time.Since(cut) < lastWords {
				break
			}
			if err := c.Free(); err != nil {
				t.Error(err)
			}
		}
		if refused, how := c.How(4); refused != (want != "killed") || !strings.Contains(how.Error(), want) {
			t.Errorf("%s: it ended with %v, refused %v", env, how, refused)
		}
		if err := c.Free(); err != nil {
			t.Error(err)
		}
	}
}

// TestEnd ends children that run, that are stopped, and that do not see their
// pipe's end.
func TestEnd(t *testing.T) {
	for _, how := range []string{"runs", "stopped", "deaf"} {
		t.Run(how, func(t *testing.T) {
			if how == "deaf" && testing.Short() {
				t.Log("shortened: SIGKILL comes after 5 s only")
				return
			}
			var s server
			null, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			defer null.Close()
			c := start(t, s.with(0, null), "PLAY="+how)
			s.until(t, 1)
			if c.Up() || c.Held() {
				t.Errorf("up %v, held %v", c.Up(), c.Held())
			}
			if how == "stopped" {
				c.Signal(syscall.SIGSTOP)
			}
			if err := c.Reaped(c.End()); err != nil {
				t.Fatal(err)
			}
			if _, how := c.How(4); !strings.Contains(how.Error(), "killed") {
				t.Errorf("it ended with %v", how)
			}
			if err := syscall.Kill(c.PID(), 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("process %d is there: %v", c.PID(), err)
			}
		})
	}
}

// TestAdopt watches a child as the next program does, and one that its
// predecessor has reaped already.
func TestAdopt(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var s server
	old := start(t, s.with(0, null))
	s.until(t, 1)
	dup := func(fd int) *os.File {
		n, err := syscall.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		return os.NewFile(uintptr(n), "handed over")
	}
	death, err := sys.Descriptor(old.death)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Adopt("child", s.with(0, null), handoff.Child{PID: old.PID(), Link: handoff.Of(dup(old.link.conn.FD())), Death: handoff.Of(dup(death))})
	if err != nil {
		t.Fatal(err)
	}
	if !c.Up() || c.PID() != old.PID() {
		t.Errorf("up %v, pid %d of %d", c.Up(), c.PID(), old.PID())
	}
	old.Signal(syscall.SIGKILL)
	<-old.Ended()
	<-c.Ended() // one of the two waits gets the state
	if err := errors.Join(old.Free(), c.Free()); err != nil {
		t.Error(err)
	}

	mine, theirs, err := sys.PacketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err = Adopt("child", s.with(0, nil), handoff.Child{PID: old.PID(), Link: handoff.Of(mine), Death: handoff.Of(w)})
	if err != nil {
		t.Fatal(err)
	}
	<-c.Ended()
	if refused, _ := c.How(4); refused {
		t.Error("how a child ended is not known, and it is taken to have refused")
	}
	if err := c.Free(); err != nil {
		t.Error(err)
	}
}

// TestForm: a message of another form ends the link.
func TestForm(t *testing.T) {
	for name, m := range map[string]volatile.Message{
		"reply":                {Kind: volatile.KindWipe, Reply: true},
		"without a descriptor": {Kind: volatile.KindHold},
	} {
		t.Run(name, func(t *testing.T) {
			mine, theirs, err := sys.PacketPair()
			if err != nil {
				t.Fatal(err)
			}
			conn, err := sys.NewPacketConn(theirs)
			if err := errors.Join(err, theirs.Close()); err != nil {
				t.Fatal(err)
			}
			var s server
			c := &Child{Name: "test"}
			if err := c.serve(mine, s.with(0, nil)); err != nil {
				t.Fatal(err)
			}
			var b [volatile.MessageSize]byte
			m.Encode(&b)
			if err := conn.Send(b[:], nil); err != nil {
				t.Fatal(err)
			}
			<-c.LinkDown()
			if s.asked != 0 {
				t.Error("it was handled")
			}
			if err := errors.Join(c.link.close(), conn.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLastWords: what a child had asked for before it ended is dealt with, also
// behind what it has got no answer to; what it sends and may not is closed.
func TestLastWords(t *testing.T) {
	for _, unread := range []bool{false, true} {
		mine, theirs, err := sys.PacketPair()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := sys.NewPacketConn(theirs)
		if err := errors.Join(err, theirs.Close()); err != nil {
			t.Fatal(err)
		}
		var s server
		c := &Child{Name: "test"}
		s.mu.Lock()
		if err := c.serve(mine, s.with(0, nil)); err != nil {
			t.Fatal(err)
		}
		if unread {
			if err := c.Send(volatile.Message{Kind: volatile.KindLeave}, nil); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			m := volatile.Message{Kind: volatile.KindWipe, Slot: uint32(i), ID: uint64(i + 1)}
			var b [volatile.MessageSize]byte
			m.Encode(&b)
			if err := conn.Send(b[:], nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		s.mu.Unlock()
		<-c.LinkDown()
		if s.asked != 3 {
			t.Errorf("answers unread %v: %d of 3 messages were dealt with", unread, s.asked)
		}
		if err := c.link.close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRefusedFile: a message that its handler refuses leaves no descriptor open.
func TestRefusedFile(t *testing.T) {
	mine, theirs, err := sys.PacketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := sys.NewPacketConn(theirs)
	if err := errors.Join(err, theirs.Close()); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var came *os.File
	c := &Child{Name: "test"}
	err = c.serve(mine, Server{Mu: &mu, Handle: func(_ *Child, _ *volatile.Message, f *os.File) (*os.File, error) {
		came = f
		return nil, volatile.ErrFormat
	}})
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var b [volatile.MessageSize]byte
	(&volatile.Message{Kind: volatile.KindPass}).Encode(&b)
	if err := errors.Join(conn.Send(b[:], w), w.Close()); err != nil {
		t.Fatal(err)
	}
	<-c.LinkDown()
	if _, err := came.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("what came with a message that was refused is open: %v", err)
	}
	if err := errors.Join(c.link.close(), conn.Close()); err != nil {
		t.Error(err)
	}
}

// TestNone: what may be asked of no child.
func TestNone(t *testing.T) {
	var c *Child
	if c.Up() || c.Held() || c.Ended() != nil || c.LinkDown() != nil {
		t.Error("no child is something")
	}
}
