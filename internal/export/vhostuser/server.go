package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/fail"
	"vacate/internal/sys"
	"vacate/internal/virtioblk"
	"vacate/internal/volatile"
)

// A Server serves one volume on one listening socket, to one frontend at a time.
// Its methods may be called from any goroutine.
//
//	S1: after Close has returned, no new connection is accepted, and the
//	    frontend's socket is shut down.
//	S2: after Wait has returned, nothing of the server uses Export or Keeper, and
//	    no goroutine or thread of it is left.
//	S3: the keeper and the session file belong to the session, while there is one,
//	    else to accept.
type Server struct {
	cfg       Config
	geometry  blk.Geometry
	listener  *os.File // our own descriptor of it
	file      *volatile.Session
	newWorker func() (worker, error)
	hook      func(fail.Point) // tests only
	counters  counters
	device    virtioblk.Counters

	stop      chan struct{}  // closed by Close and Leave: no more are accepted
	accepting chan struct{}  // closed when accept has ended
	sessions  sync.WaitGroup // of which there is at most one
	done      chan struct{}  // closed when all has ended

	mu      sync.Mutex // before session.mu
	session *session   // nil: none
	stopped bool       // stop is closed
	closed  bool
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
	s, err := serve(l, cfg, nil)
	if err != nil {
		return nil, fmt.Errorf("serving vhost-user: %w", err)
	}
	return s, nil
}

// serve is Serve of a server that was changed before it began, for tests.
func serve(l *os.File, cfg Config, change func(*Server)) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	s := &Server{
		cfg: cfg, geometry: cfg.Export.Geometry(),
		stop: make(chan struct{}), accepting: make(chan struct{}), done: make(chan struct{}),
	}
	s.newWorker = s.realWorker
	if change != nil {
		change(s)
	}
	var err error
	if s.listener, err = sys.Listener(l); err != nil {
		return nil, err
	}
	raw, err := s.listener.SyscallConn()
	if err == nil {
		err = s.openFile()
	}
	if err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	if err := s.adopt(); err != nil {
		return nil, errors.Join(err, s.listener.Close(), s.file.Close())
	}
	go s.accept(raw)
	go s.last()
	return s, nil
}

// realWorker makes a worker that carries requests out.
func (s *Server) realWorker() (worker, error) {
	c := &s.cfg
	w, err := virtioblk.NewWorker(virtioblk.Config{
		Export: c.Export, ReadOnly: c.ReadOnly, ID: c.ID, Lock: c.Lock, Poll: c.Poll, Depth: c.Depth, Counters: &s.device,
		Broken: func(index int, err error) { c.Log.Debug("a vhost-user ring is broken", "ring", index, "error", err) },
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// last ends the server.
func (s *Server) last() {
	<-s.accepting
	s.sessions.Wait()
	if err := s.file.Close(); err != nil {
		s.cfg.Log.Debug("closing a vhost-user session file", "error", err)
	}
	close(s.done)
}

// accept takes frontends until Close or Leave.
func (s *Server) accept(raw syscall.RawConn) {
	defer close(s.accepting)
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
			if err := s.take(fd); err != nil {
				s.counters.refused.Add(1)
				s.cfg.Log.Debug("refusing a vhost-user connection", "error", err)
			}
			continue
		}
		// A frontend that has gone again, or want of descriptors or memory: all
		// pass, so go on, but not in a busy loop.
		s.cfg.Log.Debug("accepting a vhost-user connection", "errno", errno)
		select {
		case <-time.After(50 * time.Millisecond):
		case <-s.stop:
			return
		}
	}
}

// take begins a session with the connection fd, which it owns from now on. While
// there is one, fd is refused; but a frontend that connects again may be faster than
// the end of the session that it has left.
func (s *Server) take(fd int) error {
	uid, err := sys.PeerUID(fd)
	if err == nil && !s.cfg.Allow(uid) {
		err = fmt.Errorf("user %d may not connect", uid)
	}
	if err == nil {
		err = s.vacant()
	}
	if err != nil {
		return errors.Join(err, sys.CloseFD(fd))
	}
	release, err := s.cfg.Admit()
	if err != nil {
		return errors.Join(err, sys.CloseFD(fd))
	}
	t, err := s.newSession(fd, release)
	if err != nil {
		if release != nil {
			release()
		}
		return err
	}
	begun := make(chan error, 1)
	s.track(t, t.accept, begun)
	return <-begun
}

// vacant returns when there is no session, or an error if there is one that lives.
func (s *Server) vacant() error {
	s.mu.Lock()
	t := s.session
	s.mu.Unlock()
	if t == nil {
		return nil
	}
	if !t.gone() {
		return errors.New("another frontend is connected")
	}
	<-t.ended // Close and Leave end it as well
	return nil
}

// track runs t, the only session. Once the server is closed or leaves, t ends at
// once.
func (s *Server) track(t *session, begin func() error, begun chan<- error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = t
	s.sessions.Add(1)
	go t.run(begin, begun)
	if s.closed {
		t.close()
	} else if s.stopped {
		t.leave()
	}
}

// forget is the last thing that a session does.
func (s *Server) forget(t *session) {
	s.mu.Lock()
	s.session = nil
	s.mu.Unlock()
	close(t.ended)
	s.sessions.Done()
}

// Leave is the planned end of a server whose session goes on: it stops accepting,
// has every request that was begun completed and told to the guest, and commits
// where each ring stands. Towards the frontend nothing is closed: the next Serve
// with the same keeper goes on. When it has returned nil, nothing uses the volume
// any more; Wait is still due.
//
// An error (ctx ended; the server was closed before) says that requests may still
// be in flight. Nothing new is begun after it, and what is in flight still
// completes. A successor may follow all the same, once the fences are held: it
// takes over as after a crash.
func (s *Server) Leave(ctx context.Context) error {
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.stopAccepting()
		if s.session != nil {
			s.session.leave()
		}
	}
	s.mu.Unlock()
	if closed {
		return fmt.Errorf("leaving a vhost-user session: %w", errClosed)
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("leaving a vhost-user session: %w", context.Cause(ctx))
	}
}

// Close stops accepting and ends the session: the frontend's connection is shut
// down, and nothing more is begun in its rings. It waits for nothing, and may be
// called again, also after Leave.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.stopAccepting()
	if s.session != nil {
		s.session.close()
	}
}

// stopAccepting ends accept. REQUIRES: mu is held.
func (s *Server) stopAccepting() {
	if s.stopped {
		return
	}
	s.stopped = true
	close(s.stop)
	_ = s.listener.Close() // our own duplicate: nothing can be lost with it
}

// Wait returns when everything has ended after [Server.Close] or [Server.Leave].
// It may take as long as the volume's drive takes to answer what is in flight.
func (s *Server) Wait() { <-s.done }

// Hurry lets the kernel run the workers' threads before others: the volume has
// been shut, somebody waits for the cipher calls that they may have been taken
// off their processor in, and all that they have left is to fail what they hold.
// Close follows.
func (s *Server) Hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.hurry()
	}
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	c, d := &s.counters, s.device.Stats()
	return Stats{
		Connections: int(c.connections.Load()),
		Rings:       int(c.rings.Load()),
		Accepted:    c.accepted.Load(),
		Refused:     c.refused.Load(),
		Garbage:     c.garbage.Load(),
		Messages:    c.messages.Load(),
		Passed:      c.passed.Load(),
		Adopted:     c.adopted.Load(),

		Reads: d.Reads, Writes: d.Writes, Flushes: d.Flushes, Trims: d.Discards, Zeroes: d.Zeroes, IDs: d.IDs,
		ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Errors: d.Errors, Broken: d.Broken,
	}
}
