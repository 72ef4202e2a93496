package nbd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sys"
)

// Config says what is served, and to whom. Zero values mean the defaults.
type Config struct {
	// Export is the volume. It is used until Wait has returned.
	Export blk.Device
	// Map tells which parts of a range the lease has written: it calls yield
	// with consecutive ranges from off on, until yield returns false or the
	// range is told. nil means that everything counts as written. It is called
	// from the connections' threads, at once, until Wait has returned.
	Map func(off, length int64, yield func(off, n int64, written bool) bool)
	// Admit takes a place in the host's budget of connections, when a client
	// wants to enter transmission. The error's text is sent to the client. nil
	// admits all. release may be nil.
	Admit func() (release func(), err error)
	// Readmit is Admit for a client that another server admitted: it is adopted.
	// nil: Admit.
	Readmit func() (release func(), err error)
	// Allow decides by the peer's user id (SO_PEERCRED). nil allows all.
	Allow func(uid uint32) bool
	// Lock says what to do when a connection's buffers cannot be locked.
	Lock mem.Lock
	// Log gets connections that fail, at level debug: what a client sends never
	// fills a log. nil discards.
	Log *slog.Logger
	// QueueDepth is how many requests of one connection are carried out at
	// once. 1 ≤ QueueDepth ≤ 1024; default 128. More wait in the socket.
	QueueDepth int
	// Poll is how long a connection that has just been active looks for more to do
	// before its thread sleeps. 0 ≤ Poll ≤ 50 µs; 0: not at all (package poll).
	Poll time.Duration
	// HandshakeTimeout is how long a client may take until transmission.
	// Default 10 s; then the connection ends.
	HandshakeTimeout time.Duration
	// MaxHandshakes is how many clients may be in the handshake at once.
	// Default 16; more wait in the socket's backlog.
	MaxHandshakes int
}

// Validate reports all faults at once.
func (c *Config) Validate() error {
	var errs []error
	if c.Export == nil {
		errs = append(errs, errors.New("no volume to export"))
	} else {
		g := c.Export.Geometry()
		if g.Size <= 0 || g.Size > blk.MaxVolume {
			errs = append(errs, fmt.Errorf("volume of %d bytes: size out of range", g.Size))
		}
		if l := int64(g.Logical); l < 1 || l > preferredBlock || l&(l-1) != 0 || g.Size%l != 0 {
			errs = append(errs, fmt.Errorf("volume with logical blocks of %d bytes: must be a power of two up to %d that divides the size", l, preferredBlock))
		}
	}
	if c.QueueDepth < 0 || c.QueueDepth > maxDepth {
		errs = append(errs, fmt.Errorf("queue depth %d: must be 1 to %d", c.QueueDepth, maxDepth))
	}
	if c.Poll < 0 || c.Poll > MaxPoll {
		errs = append(errs, fmt.Errorf("polling for %v: must be 0 to %v", c.Poll, MaxPoll))
	}
	if c.HandshakeTimeout < 0 {
		errs = append(errs, fmt.Errorf("handshake timeout %v: must not be negative", c.HandshakeTimeout))
	}
	if c.MaxHandshakes < 0 {
		errs = append(errs, fmt.Errorf("%d handshakes at once: must not be negative", c.MaxHandshakes))
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Admit == nil {
		c.Admit = func() (func(), error) { return nil, nil }
	}
	if c.Readmit == nil {
		c.Readmit = c.Admit
	}
	if c.Allow == nil {
		c.Allow = func(uint32) bool { return true }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.QueueDepth == 0 {
		c.QueueDepth = defaultDepth
	}
	if c.HandshakeTimeout == 0 {
		c.HandshakeTimeout = defaultHandshakeTimeout
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = defaultHandshakes
	}
}

// A Server serves one volume on one listening socket. Its methods may be called
// from any goroutine.
//
//	S1: after Close has returned, no new connection is accepted, and every
//	    connection's socket is shut down.
//	S2: after Wait has returned, nothing of the server uses Export or Map, and no
//	    goroutine or thread of it is left.
type Server struct {
	cfg      Config
	geometry blk.Geometry
	listener *os.File      // our own descriptor of it; nil: connections are only handed in
	places   chan struct{} // one element a client in the handshake
	stop     chan struct{} // closed by Close and Leave: no more are accepted
	done     chan struct{} // closed by Close
	emptied  chan struct{} // one element when the last connection of conns has gone
	running  sync.WaitGroup
	counters counters

	accepting sync.WaitGroup // accept
	leaving   atomic.Bool    // set by Leave, for ever

	mu      sync.Mutex // before conn.mu
	conns   map[*conn]struct{}
	passed  []boundary // for Leave to take
	stopped bool       // stop is closed
	closed  bool
}

// Serve accepts clients on l, a listening unix socket. l stays the caller's, who
// may close it at once; shutting the socket down or unlinking it is the
// caller's too. l's open file description becomes non-blocking.
func Serve(l *os.File, cfg Config) (*Server, error) {
	s, err := newServer(cfg)
	if err != nil {
		return nil, fmt.Errorf("serving NBD: %w", err)
	}
	s.listener, err = sys.Listener(l)
	if err != nil {
		return nil, fmt.Errorf("serving NBD: %w", err)
	}
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serving NBD on %s: %w", l.Name(), err), s.listener.Close())
	}
	s.running.Add(1)
	s.accepting.Add(1)
	go s.accept(raw)
	return s, nil
}

func newServer(cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	return &Server{
		cfg:      cfg,
		geometry: cfg.Export.Geometry(),
		places:   make(chan struct{}, cfg.MaxHandshakes),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
		emptied:  make(chan struct{}, 1),
		conns:    make(map[*conn]struct{}),
	}, nil
}

// accept takes clients until Close or Leave. It waits for a place in the handshake
// before it accepts, so that the backlog of the socket bounds the rest.
func (s *Server) accept(raw syscall.RawConn) {
	defer s.running.Done()
	defer s.accepting.Done()
	for {
		select {
		case s.places <- struct{}{}:
		case <-s.stop:
			return
		}
		fd, errno := -1, syscall.Errno(0)
		err := raw.Read(func(l uintptr) bool {
			fd, errno = sys.Accept(int(l))
			return errno != syscall.EAGAIN
		})
		switch {
		case err != nil: // Close, Leave
			return
		case errno == 0:
			s.start(fd)
			continue
		}
		<-s.places
		// A client that has gone again, or want of descriptors or memory: all
		// pass, so go on, but not in a busy loop.
		s.cfg.Log.Debug("accepting an NBD connection", "errno", errno)
		select {
		case <-time.After(50 * time.Millisecond):
		case <-s.stop:
			return
		}
	}
}

// start serves the connected socket fd, which it owns from now on. REQUIRES: one
// element of places was taken for it.
func (s *Server) start(fd int) {
	c := &conn{server: s, fd: fd}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		<-s.places
		_ = sys.CloseFD(fd) // nothing was promised to this client yet
		return
	}
	s.conns[c] = struct{}{}
	s.running.Add(1)
	s.counters.accepted.Add(1)
	go c.run()
}

// forget is the last thing that a connection does.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	if len(s.conns) == 0 {
		select {
		case s.emptied <- struct{}{}:
		default: // one is there
		}
	}
	s.mu.Unlock()
	s.running.Done()
}

// Hurry lets the kernel run the connections' threads before others: the volume
// has been shut, somebody waits for the cipher calls that they may have been
// taken off their processor in, and all that they have left is to fail what they
// hold. Close follows.
func (s *Server) Hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if tid := c.tid.Load(); tid != 0 { // alive: it forgets c before it ends
			sys.Hurry(int(tid))
		}
	}
}

// Close stops accepting and shuts all connections down. It wakes those that
// wait for their client, waits for nothing, and may be called again.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close()
}

// close does the work of Close. REQUIRES: mu is held.
func (s *Server) close() {
	if s.closed {
		return
	}
	s.closed = true
	close(s.done)
	s.stopAccepting()
	for c := range s.conns {
		c.shutdown()
	}
	for _, b := range s.passed {
		_, _ = sys.Shutdown(b.fd), sys.CloseFD(b.fd) // as a connection's end
	}
	s.passed = nil
}

// stopAccepting ends accept. REQUIRES: mu is held.
func (s *Server) stopAccepting() {
	if s.stopped {
		return
	}
	s.stopped = true
	close(s.stop)
	if s.listener != nil {
		_ = s.listener.Close() // our own duplicate: nothing can be lost with it
	}
}

// Wait returns when every connection has ended after [Server.Close]. It may take
// as long as the volume's drive takes to answer what is in flight.
func (s *Server) Wait() { s.running.Wait() }
