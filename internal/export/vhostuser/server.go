package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"vacate/internal/sys"
)

// A Server serves one volume on one listening socket, to one frontend at a time.
// Its methods may be called from any goroutine.
//
//	S1: after Close has returned, no new connection is accepted, and the
//	    frontend's socket is shut down.
//	S2: after Wait has returned, nothing of the server uses Export or Keeper, and
//	    no goroutine or thread of it is left.
type Server struct {
	cfg      Config
	listener *os.File // our own descriptor of it
	running  sync.WaitGroup
	counters counters

	mu     sync.Mutex
	closed bool
}

var errClosed = errors.New("the server is closed, or has left")

// Serve accepts frontends on l, a listening unix socket, one at a time, and first
// takes over the session that the keeper holds, if there is one: when Serve
// returns, its rings are processed. l stays the caller's, who may close it at
// once; shutting the socket down or unlinking it is the caller's too. l's open
// file description becomes non-blocking.
//
// An error says that nothing is served: the keeper did not answer, or its session
// file is damaged. A session that cannot go on for another reason (the guest's
// memory is gone) is ended, as if the frontend had hung up.
func Serve(l *os.File, cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("serving vhost-user: %w", err)
	}
	cfg.setDefaults()
	s := &Server{cfg: cfg}
	var err error
	if s.listener, err = sys.Listener(l); err != nil {
		return nil, fmt.Errorf("serving vhost-user: %w", err)
	}
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serving vhost-user on %s: %w", l.Name(), err), s.listener.Close())
	}
	s.running.Add(1)
	go s.accept(raw)
	return s, nil
}

// accept takes frontends until Close or Leave.
func (s *Server) accept(raw syscall.RawConn) {
	defer s.running.Done()
	for {
		fd, errno := -1, syscall.Errno(0)
		err := raw.Read(func(l uintptr) bool {
			fd, errno = sys.Accept(int(l))
			return errno != syscall.EAGAIN
		})
		switch {
		case err != nil: // Close, Leave
			return
		case errno == 0:
			s.counters.accepted.Add(1)
			_ = sys.CloseFD(fd) // nothing was promised to it yet
		default:
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// Leave is the planned end of a server whose session goes on: it stops accepting,
// has every request that was begun completed and told to the guest, and commits
// where each ring stands. Towards the frontend nothing is closed: the next Serve
// with the same keeper goes on. When it has returned nil, nothing uses the volume
// any more; Wait is still due.
//
// An error (ctx ended; the server was closed before) says that requests are still
// in flight. Nothing new is begun after it, and what is in flight still
// completes. A successor may follow all the same, once the fences are held: it
// takes over as after a crash.
func (s *Server) Leave(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("leaving a vhost-user session: %w", errClosed)
	}
	s.closed = true
	return errors.Join(s.listener.Close(), context.Cause(ctx))
}

// Close stops accepting and ends the session: the frontend's connection is shut
// down, and nothing more is begun in its rings. It waits for nothing, and may be
// called again, also after Leave.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		_ = s.listener.Close() // our own duplicate: nothing can be lost with it
	}
}

// Wait returns when everything has ended after [Server.Close] or [Server.Leave].
// It may take as long as the volume's drive takes to answer what is in flight.
func (s *Server) Wait() { s.running.Wait() }

// Hurry lets the kernel run the workers' threads before others: the volume has
// been shut, somebody waits for the cipher calls that they may have been taken
// off their processor in, and all that they have left is to fail what they hold.
// Close follows.
func (s *Server) Hurry() {}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	c := &s.counters
	return Stats{
		Connections: int(c.connections.Load()),
		Rings:       int(c.rings.Load()),
		Accepted:    c.accepted.Load(),
		Refused:     c.refused.Load(),
		Garbage:     c.garbage.Load(),
		Messages:    c.messages.Load(),
		Passed:      c.passed.Load(),
		Adopted:     c.adopted.Load(),
	}
}
