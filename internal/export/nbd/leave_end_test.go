package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/nbdclient"
)

func TestLeaveHungVolume(t *testing.T) {
	m := newMemory(1 << 20)
	m.hang = make(chan struct{})
	s := alone(t, m.config())
	c := client(t, s, nbdclient.Options{})
	answered := make(chan error, 1)
	go func() { answered <- c.Flush() }()
	eventually(t, "the flush is in flight", func() bool { return m.entered.Load() > 0 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if passed := s.Leave(ctx); len(passed) != 0 {
		t.Errorf("%d connections passed with a request in flight", len(passed))
	}
	if err := <-answered; err == nil {
		t.Error("the flush succeeded")
	}
	close(m.hang)
	s.Wait()
	if st := s.Stats(); st.Passed != 0 {
		t.Errorf("stats: %+v", st)
	}
}

// TestLeaveClose: Close beats Leave at any moment; each descriptor is either the
// caller's, or closed.
func TestLeaveClose(t *testing.T) {
	m := newMemory(1 << 20)
	before := countFDs(t)
	returned := 0
	for i := range 100 {
		s, err := newServer(m.config())
		if err != nil {
			t.Fatal(err)
		}
		var clients []*nbdclient.Client
		for range 3 {
			c, err := nbdclient.New(connect(t, s), nbdclient.Options{})
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		var both sync.WaitGroup
		both.Go(func() {
			time.Sleep(time.Duration(i%20) * 10 * time.Microsecond)
			s.Close()
		})
		passed := s.Leave(context.Background())
		both.Wait()
		returned += len(passed)
		for _, p := range passed {
			p.File.Close()
		}
		s.Wait()
		for _, c := range clients {
			if err := c.Flush(); err == nil {
				t.Error("a client is served after Close")
			}
			c.Abort()
		}
		if more := s.Leave(context.Background()); more != nil {
			t.Error("Leave after Close returned connections")
		}
	}
	t.Logf("%d of 300 connections were returned before Close", returned)
	if after := countFDs(t); after > before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

// TestLeaveEnds: nothing of the server is left: no goroutine, no thread, no
// descriptor, no buffer.
func TestLeaveEnds(t *testing.T) {
	m := newMemory(1 << 20)
	s, err := newServer(m.config())
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		client(t, s, nbdclient.Options{})
	}
	var conns []*conn
	s.mu.Lock()
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	passed := leave(t, s)
	if len(passed) != 8 {
		t.Errorf("%d connections passed, want 8", len(passed))
	}
	for _, p := range passed {
		p.File.Close()
	}
	for _, c := range conns {
		if c.rx != nil || c.tx != nil || c.rxRegion != nil || c.region != nil || c.queue != nil {
			t.Error("a connection kept its buffers")
		}
		eventually(t, "its thread has ended", func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", c.tid.Load()))
			return errors.Is(err, os.ErrNotExist)
		})
	}
}

// TestAdoptRefuses: what is refused is left as it was, and its budget free.
func TestAdoptRefuses(t *testing.T) {
	m := newMemory(1 << 20)
	good := (&terms{size: 1 << 20, align: 1}).pack(m.Geometry())
	a, b, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	one, two := os.NewFile(uintptr(fds[0]), "one"), os.NewFile(uintptr(fds[1]), "two")
	defer one.Close()
	defer two.Close()
	full := m.config()
	full.Admit = func() (func(), error) { return nil, errors.New("no place") }
	closed, left := alone(t, m.config()), alone(t, m.config())
	closed.Close()
	leave(t, left)
	tests := []struct {
		name  string
		s     *Server
		f     *os.File
		terms uint64
		err   string
	}{
		{"unknown terms", alone(t, m.config()), one, good | 1<<55, "unknown bits"},
		{"another volume", alone(t, newMemory(512<<10).config()), one, good, "another volume"},
		{"no socket", alone(t, m.config()), a, good, "sharing connection"},
		{"no place", alone(t, full), one, good, "no place"},
		{"closed", closed, one, good, "being closed"},
		{"left", left, one, good, "being closed"},
	}
	before := countFDs(t)
	for _, tt := range tests {
		if err := tt.s.Adopt(tt.f, tt.terms); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
	eventually(t, "no descriptor is left", func() bool { return countFDs(t) == before })
	s := alone(t, m.config())
	if err := s.Adopt(one, good); err != nil { // nothing was shut down
		t.Fatal(err)
	}
	if _, err := two.Write(command(0, cmdFlush, 3, 0, 0)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, simpleSize)
	if _, err := two.Read(got); err != nil || !bytes.Equal(got[8:], []byte{7: 3}) {
		t.Errorf("reply %x, %v", got, err)
	}
	// A client that has gone is adopted, and ends.
	two.Close()
	eventually(t, "it has ended", func() bool { return s.Stats().Connections == 0 })
	if err := s.Adopt(one, good); err != nil {
		t.Error(err)
	}
	eventually(t, "it has ended again", func() bool { return s.Stats().Connections == 0 })
}

func countFDs(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// readSimple reads the reply to the request message, whose cookie is known.
func (c rawClient) readSimple(cookie uint64, message []byte) {
	c.t.Helper()
	want := make([]byte, simpleSize)
	putSimple(want, cookie, 0)
	if got := c.read(simpleSize); !bytes.Equal(got, want) {
		c.t.Fatalf("reply %x, want %x", got, want)
	}
	if len(message) > 0 {
		if r, _ := parseRequest(message); r.typ == cmdRead {
			c.read(int(r.length))
		}
	}
}

// unread returns how many bytes wait in the socket of s's only connection.
func unread(t *testing.T, s *Server) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		return inq(t, c.fd)
	}
	t.Fatal("no connection")
	return 0
}

// waits reports whether one of s's connections is not aware that s leaves.
func waits(s *Server) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.waiting.Load() {
			return true
		}
	}
	return false
}

func available(t *testing.T, f *os.File) int {
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := raw.Control(func(fd uintptr) { n = inq(t, int(fd)) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// inq returns how many bytes wait in a socket (SIOCINQ, unix(7)).
func inq(t *testing.T, fd int) int {
	const siocinq = 0x541b
	n := int32(0)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), siocinq, uintptr(unsafe.Pointer(&n))); errno != 0 {
		t.Error(errno)
	}
	return int(n)
}
