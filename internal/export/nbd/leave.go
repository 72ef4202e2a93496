package nbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"vacate/internal/sys"
)

// A planned hand-over, from a server that leaves to the one that follows it,
// maybe in another process, without a client noticing more than a pause:
//
//  1. The server stops accepting. The listening socket is open elsewhere, and
//     who connects now waits in its backlog.
//  2. Connections that wait for a request are woken ([sys.Wake]). All receive
//     from then on exactly what is missing of a request that they hold in part,
//     and what comes behind it stays in the socket.
//  3. A connection that holds nothing any more stands at a message boundary: all
//     that it received was answered. Its buffers go, its descriptor stays.
//  4. The descriptors and the terms are given to the caller; what has not come
//     that far in time is shut down.
//  5. The successor takes descriptor and terms, and is in transmission.

// A Passed is a connection at a message boundary: what the client sent up to here
// was answered, and nothing that it sent since was received.
type Passed struct {
	File  *os.File // the receiver's, who closes it
	Terms uint64   // what was negotiated, for [Server.Adopt]; docs/spec/nbd.md
}

var (
	errBoundary = errors.New("the connection was handed over")
	errClosing  = errors.New("the server is being closed, or leaves")
)

// A boundary is a Passed that nobody has taken yet.
type boundary struct {
	fd    int
	terms uint64
}

// Pauses between attempts to wake the connections that still sleep: nearly all
// wake at the first.
const (
	firstWake = time.Millisecond
	lastWake  = 16 * time.Millisecond
)

// Leave hands over: it stops accepting, waits for all connections to come to a
// message boundary or to end, and returns those that came. When ctx ends first,
// it shuts the others down and does not wait for them: clients that stop in the
// middle of a message or take no reply, those in the handshake, and requests that
// the volume does not complete.
//
// Afterwards the server is closed; Wait is still due, and waits for the volume.
// Close may be called at any time, and cuts off those that were not returned yet.
// After a Close, and to a second call, Leave returns nothing.
func (s *Server) Leave(ctx context.Context) []Passed {
	s.mu.Lock()
	first := !s.closed && !s.leaving.Swap(true)
	if first {
		s.stopAccepting()
	}
	s.mu.Unlock()
	if !first {
		return nil
	}
	s.accepting.Wait() // the last one that it took is among conns
	s.drain(ctx)

	s.mu.Lock()
	defer s.mu.Unlock()
	var passed []Passed
	for _, b := range s.passed {
		passed = append(passed, Passed{File: os.NewFile(uintptr(b.fd), "nbd"), Terms: b.terms})
	}
	s.passed = nil
	s.close()
	return passed
}

// drain wakes connections until none is left, or ctx or the server ends.
func (s *Server) drain(ctx context.Context) {
	pause := firstWake
	for s.wakeAll() {
		select {
		case <-s.emptied:
		case <-time.After(pause):
			pause = min(2*pause, lastWake)
		case <-ctx.Done():
			return
		case <-s.done:
			return
		}
	}
}

// wakeAll wakes the connections that wait for a request, and reports whether any
// connection is left.
func (s *Server) wakeAll() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.waiting.Load() {
			// Its thread is alive: it forgets c before it ends. An error leaves it
			// for the next time.
			_ = sys.Wake(int(c.tid.Load()))
		}
	}
	return len(s.conns) > 0
}

// pass keeps the connection's descriptor for Leave. REQUIRES: errBoundary; leave
// was called.
func (s *Server) pass(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	if s.closed {
		return sys.CloseFD(c.fd) // too late
	}
	s.passed = append(s.passed, boundary{fd: c.fd, terms: c.terms.pack(s.geometry)})
	s.counters.passed.Add(1)
	return nil
}

// Adopt serves a connection that another server's Leave returned, with its terms,
// from transmission on. f stays the caller's, who may close it at once. The
// place in the host's budget is taken; who the peer is was checked when it
// connected. After an error nothing was received.
func (s *Server) Adopt(f *os.File, terms uint64) error {
	t, err := unpackTerms(terms, s.geometry)
	if err != nil {
		return fmt.Errorf("adopting an NBD connection: %w", err)
	}
	fd, err := sys.Connection(f)
	if err != nil {
		return fmt.Errorf("adopting an NBD connection: %w", err)
	}
	c := &conn{server: s, fd: fd, adopted: true, terms: t}
	entered := make(chan error, 1)
	if !s.track(c, func() { c.resume(entered) }) {
		return errors.Join(fmt.Errorf("adopting an NBD connection: %w", errClosing), sys.CloseFD(fd))
	}
	if err := <-entered; err != nil {
		return fmt.Errorf("adopting an NBD connection: %w", err)
	}
	return nil
}

// track starts a connection's goroutine, unless the server has no use for it any
// more.
func (s *Server) track(c *conn, run func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.leaving.Load() {
		return false
	}
	s.conns[c] = struct{}{}
	s.running.Add(1)
	go run()
	return true
}

// resume serves an adopted connection. It says how enter went.
func (c *conn) resume(entered chan<- error) {
	runtime.LockOSThread() // as in run
	c.tid.Store(int32(syscall.Gettid()))
	defer c.server.forget(c)

	err := sys.Wakeable()
	if err == nil {
		err = c.enter()
	}
	if err != nil {
		c.server.counters.refused.Add(1)
		c.finish(err)
		entered <- err
		return
	}
	c.server.counters.adopted.Add(1)
	entered <- nil
	c.finish(c.transmit())
}
