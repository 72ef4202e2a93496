package vhostuser

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"vacate/internal/fail"
	"vacate/internal/virtioblk"
	"vacate/internal/virtq"
)

// A world is a socket, a keeper, and the servers that come one after the other.
type world struct {
	t      testing.TB
	path   string
	l      *os.File
	keeper *shelf
	cfg    Config
	worker *fake
	server *Server
	hook   atomic.Pointer[func(fail.Point)] // of all servers
}

func newWorld(t *testing.T, change func(*Config)) *world {
	t.Helper()
	return newWorldFor(t, change)
}

func newWorldFor(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, path: filepath.Join(t.TempDir(), "s"), keeper: &shelf{}}
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	if w.l, err = l.(*net.UnixListener).File(); err != nil {
		t.Fatal(err)
	}
	w.cfg = Config{Export: disk{1 << 30}, Queues: 2, Keeper: w.keeper, Cores: 1, ID: "vacate"}
	for _, c := range change {
		if c != nil {
			c(&w.cfg)
		}
	}
	w.serve()
	t.Cleanup(func() {
		if w.server != nil {
			w.server.Close()
			w.server.Wait()
		}
		w.keeper.close()
		if err := errors.Join(l.Close(), w.l.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

// serve begins the next server, with a worker of its own.
func (w *world) serve() {
	w.t.Helper()
	w.worker = &fake{rings: map[int]*virtq.Ring{}, files: map[int]virtioblk.RingFiles{}}
	s, err := serve(w.l, w.cfg, w.instead(w.worker))
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = s
}

// instead puts what tests need into a server.
func (w *world) instead(fw *fake) func(*Server) {
	return func(s *Server) {
		s.newWorker = func() (worker, error) { return fw, nil }
		s.hook = func(p fail.Point) {
			if h := w.hook.Load(); h != nil {
				(*h)(p)
			}
		}
	}
}

func (w *world) connect() *frontend {
	w.t.Helper()
	c, err := net.Dial("unix", w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() }) // may be closed already
	return &frontend{t: w.t, conn: c.(*net.UnixConn)}
}
