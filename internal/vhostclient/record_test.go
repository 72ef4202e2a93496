package vhostclient

import (
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A recorder stands between a frontend and a server, and writes down the frontend's
// messages.
type recorder struct {
	mu       sync.Mutex
	messages []string
}

// record returns the socket at which the recorder stands before the server.
func record(t *testing.T, server string) (*recorder, string) {
	t.Helper()
	r, socket, _ := recorded(t, server)
	return r, socket
}

// recorded is record; hangUp ends all connections.
func recorded(t *testing.T, server string) (_ *recorder, socket string, hangUp func()) {
	t.Helper()
	r := &recorder{}
	path := filepath.Join(t.TempDir(), "r")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var conns []net.Conn
	all.Go(func() {
		for {
			front, err := l.AcceptUnix()
			if err != nil {
				return
			}
			back, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: server, Net: "unix"})
			if err != nil {
				t.Error(err)
				_ = front.Close() // who waits for an answer need not
				return
			}
			r.mu.Lock()
			conns = append(conns, front, back)
			r.mu.Unlock()
			all.Go(func() { r.pass(front, back, true) })
			all.Go(func() { r.pass(back, front, false) })
		}
	})
	hangUp = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range conns {
			_ = c.Close() // ends the copiers
		}
	}
	t.Cleanup(func() {
		_ = l.Close() // ends the acceptor
		hangUp()
		all.Wait()
	})
	return r, path, hangUp
}

// pass hands on messages until one end closes.
func (r *recorder) pass(from, to *net.UnixConn, front bool) {
	defer to.CloseWrite() //nolint:errcheck // it may be closed
	out := &Conn{c: to, timeout: 1 << 36}
	for {
		request, flags, payload, files, err := receive(from)
		if err != nil {
			return
		}
		if front {
			s := name(request)
			if flags&flagNeedReply != 0 {
				s += "!"
			}
			if perRing[request] {
				s += fmt.Sprintf("/%d", payload[0])
			}
			if request == SetVringEnable {
				s += fmt.Sprintf("=%d", payload[4])
			}
			r.mu.Lock()
			r.messages = append(r.messages, s)
			r.mu.Unlock()
		}
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		err = out.Send(request, flags&^flagVersion, payload, fds...)
		closeFiles(files)
		if err != nil {
			return
		}
	}
}

// wait waits until n messages were heard, and returns all.
func (r *recorder) wait(t *testing.T, n int) []string {
	t.Helper()
	for range 600 {
		r.mu.Lock()
		heard := append([]string(nil), r.messages...)
		r.mu.Unlock()
		if len(heard) >= n {
			return heard
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%d messages were not heard: %q", n, r.messages)
	return nil
}
