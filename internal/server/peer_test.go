package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/node"
)

// TestLimits checks that what is too much is refused, and that it stays so.
func TestLimits(t *testing.T) {
	t.Run("request size", func(t *testing.T) {
		d := start(t)
		_, err := d.as(uidOperator).Leases.Open(t.Context(), &vacatev1.LeaseServiceOpenRequest{SizeBytes: 4096, Tenant: strings.Repeat("x", maxRequestBytes)})
		if err == nil || len(d.node.opened) != 0 {
			t.Errorf("a request of over %d bytes: %v", maxRequestBytes, err)
		}
	})
	t.Run("slow request", func(t *testing.T) {
		d := start(t)
		d.server.bodyTimeout = 50 * time.Millisecond
		c, err := net.Dial("unix", d.sock)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "POST /vacate.v1.LeaseService/List HTTP/1.1\r\nHost: vacate\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("half a request: %v", err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("half a request: %s", res.Status)
		}
	})
	t.Run("connections of a tenant", func(t *testing.T) {
		d := start(t)
		d.as(uidTenant)
		var conns []net.Conn
		for range connsPerUID + 1 {
			c, err := net.Dial("unix", d.sock)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		one := make([]byte, 1)
		last := conns[len(conns)-1]
		if err := last.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := last.Read(one); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("connection %d was not refused: %v", len(conns), err)
		}
		if _, err := d.as(uidOperator).Leases.List(t.Context(), &vacatev1.LeaseServiceListRequest{}); err != nil {
			t.Errorf("a tenant keeps the operator out: %v", err)
		}
	})
	t.Run("calls of a tenant", func(t *testing.T) {
		d := start(t)
		for range callsPerUID {
			if !d.server.busy.enter(uidTenant) {
				t.Fatal("refused too early")
			}
		}
		if _, err := d.as(uidTenant).Leases.List(t.Context(), &vacatev1.LeaseServiceListRequest{}); connect.CodeOf(err) != connect.CodeResourceExhausted {
			t.Errorf("call %d: %v", callsPerUID+1, err)
		}
		if _, err := d.as(uidOther).Leases.List(t.Context(), &vacatev1.LeaseServiceListRequest{}); err != nil {
			t.Errorf("a tenant keeps another out: %v", err)
		}
		d.server.busy.leave(uidTenant)
		if _, err := d.as(uidTenant).Leases.List(t.Context(), &vacatev1.LeaseServiceListRequest{}); err != nil {
			t.Errorf("after one ended: %v", err)
		}
	})
}

// panicking is a node whose Status panics.
type panicking struct{ *fakeNode }

func (panicking) Status() node.Status { panic("broken invariant") }

// TestPanicIsFatal checks that a panic does not end in a log line.
func TestPanicIsFatal(t *testing.T) {
	d := start(t, func(c *Config) { c.Node = panicking{newFakeNode()} })
	died := make(chan any, 1)
	d.server.die = func(v any, _ []byte) { died <- v }
	_, err := d.as(uidOperator).Node.Status(t.Context(), &vacatev1.NodeServiceStatusRequest{})
	if v := <-died; v != "broken invariant" {
		t.Errorf("died of %v; the caller got %v", v, err)
	}
}

// TestRealPeer checks who calls by what the kernel says: root is the operator,
// anybody else a tenant.
func TestRealPeer(t *testing.T) {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "s")
	ln, err := Listen(sock, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Node: newFakeNode(), UID: uint32(os.Getuid()), Log: slog.New(slog.DiscardHandler), End: func() {}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln, time.Second) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	c := client.Dial(sock)
	defer c.Close()
	if res, err := c.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{}); err != nil || len(res.GetLeases()) != 2 {
		t.Errorf("as the daemon's own uid: %v, %v", res, err)
	}
	conn := dialAs(t, sock, uidTenant)
	defer conn.Close()
	fmt.Fprint(conn, "POST /vacate.v1.LeaseService/List HTTP/1.1\r\nHost: vacate\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
	b, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(b), idOwn) || strings.Contains(string(b), idOther) {
		t.Errorf("as uid %d: %v\n%s", uidTenant, err, b)
	}
}

// dialAs connects as another user. Credentials are a thread's: the thread that
// changed its own is never used again, because its goroutine ends locked to it.
func dialAs(t *testing.T, sock string, uid int) net.Conn {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("connecting as another user needs root")
	}
	type dialled struct {
		c   net.Conn
		err error
	}
	ch := make(chan dialled)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			ch <- dialled{nil, errno}
			return
		}
		c, err := net.Dial("unix", sock)
		ch <- dialled{c, err}
	}()
	d := <-ch
	if d.err != nil {
		t.Fatalf("connecting as uid %d: %v", uid, d.err)
	}
	return d.c
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	sock := filepath.Join(dir, "s")
	ln, err := Listen(sock, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", st.Mode(), err)
	}
	if _, err := Listen(sock, 0o600); err == nil || !strings.Contains(err.Error(), "another daemon listens on "+sock) {
		t.Errorf("listening twice: %v", err)
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		t.Fatalf("listener is a %T", ln)
	}
	u.SetUnlinkOnClose(false) // as a daemon that was killed
	u.Close()
	ln, err = Listen(sock, 0o600)
	if err != nil {
		t.Fatalf("after a daemon that was killed: %v", err)
	}
	ln.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0o600); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("listening on a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file has %q, %v", b, err)
	}
}
