package vhostuser

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/fail"
	"vacate/internal/plant"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A session is one frontend's connection, from its acceptance to its end, through
// as many engines as it takes. It is one goroutine on a thread of its own:
//
//	accepted ──┐
//	           ├─> serving ──hung up, garbage, Close──> rings drained, forgotten
//	adopted ───┘      └─────────────Leave─────────────> rings drained, kept
//
// All but the last group of fields belongs to that goroutine.
type session struct {
	server  *Server
	wire    *wire
	release func() // of the place in the host's budget; may be nil

	rec     volatile.SessionRecord // as committed
	files   map[uint8]int          // our descriptors of what lies in places
	maps    map[uint8]*mapping     // memory in them that is mapped
	live    uint64                 // rings that were started, as bits
	partial time.Time              // since when a part of a message is there
	gap     time.Duration          // until it is looked at again

	wake    int           // event descriptor: leaving or closing was set
	fd      int           // of the connection, for Close
	ended   chan struct{} // closed at the end
	leaving atomic.Bool
	closing atomic.Bool
	tid     atomic.Int32 // of its thread; 0 before there is one
	rousing sync.Once

	mu      sync.Mutex
	workers []worker // of ring i: number i mod len; nil until it is needed
	over    bool     // wake and conn are closed, or about to be
}

var errStopped = errors.New("the server is closed, or leaves")

// newSession makes a session for a connection, which it owns from now on, also
// after an error. Its record is the one that was committed last.
func (s *Server) newSession(fd int, release func()) (*session, error) {
	t := &session{
		server: s, release: release, rec: s.file.Record(), fd: fd,
		files: map[uint8]int{}, maps: map[uint8]*mapping{}, ended: make(chan struct{}),
		workers: make([]worker, min(s.cfg.Queues, s.cfg.Cores)),
	}
	var err error
	if t.wire, err = newWire(fd); err != nil {
		return nil, err
	}
	if t.wake, err = sys.NewEvent(); err != nil {
		return nil, errors.Join(err, t.wire.close())
	}
	return t, nil
}

// run serves the session to its end. begin is what comes before the first message,
// and its error goes to begun as well; when it fails, the session ends.
func (s *session) run(begin func() error, begun chan<- error) {
	runtime.LockOSThread() // never unlocked: io_uring, and the thread ends with the session
	debug.SetPanicOnFault(true)
	defer s.server.forget(s)
	err := sys.Wakeable()
	s.tid.Store(int32(syscall.Gettid()))
	if err == nil {
		err = begin()
	}
	begun <- err
	if err == nil {
		s.server.counters.connections.Add(1)
		err = s.serve()
		s.server.counters.connections.Add(-1)
	}
	s.finish(err)
}

// serve carries out messages until the session ends, and says why it does.
func (s *session) serve() error {
	if err := errors.Join(s.giveUp(), s.tell()); err != nil {
		return err
	}
	for {
		if s.leaving.Load() || s.closing.Load() {
			return errStopped
		}
		m, partial, err := s.wire.peek()
		if err == nil && !s.wire.writable() {
			m.close()
			s.wait(sys.ReadyWrite, 0)
			continue
		}
		switch {
		case err == nil:
			s.partial = time.Time{}
			if err := s.handle(&m); err != nil {
				return err
			}
		case !errors.Is(err, errNothing):
			return err
		case partial:
			if err := s.waitPart(); err != nil {
				return err
			}
		default:
			s.wait(sys.ReadyRead, 0)
		}
	}
}

// wait sleeps until the connection is ready, or the session is to end, at most for
// a time if that is not 0.
func (s *session) wait(events int16, most time.Duration) {
	f := []sys.Ready{{FD: int32(s.fd), Events: events}, {FD: int32(s.wake), Events: sys.ReadyRead}}
	_ = sys.WaitReady(f, 0, int64(most)) // EINTR: it is looked at again
}

// waitPart waits for the rest of a message. The socket is readable all the time.
func (s *session) waitPart() error {
	now := time.Now()
	if s.partial.IsZero() {
		s.partial, s.gap = now, firstPartGap
	}
	if now.Sub(s.partial) > partTimeout {
		return fmt.Errorf("the rest of a message has not come for %v: %w", partTimeout, errGarbage)
	}
	if hungUp(s.fd) {
		return fmt.Errorf("%w in the middle of a message", errHungUp)
	}
	s.wait(0, s.gap)
	s.gap = min(2*s.gap, lastPartGap)
	return nil
}

// handle carries out a message:
//
//  1. It is checked, and what it makes of the record is worked out.
//  2. New descriptors go to the keeper (K1, K2).
//  3. Rings that must not run meanwhile are drained.
//  4. The record is committed. A successor that finds the message in the socket does
//     it again, which changes nothing.
//  5. Rings run again, as the record says.
//  6. The message is taken and answered.
//  7. What the record no longer names is given up.
func (s *session) handle(m *message) error {
	defer m.close()
	s.at(fail.EngineVhostPeeked)
	c := s.begin()
	defer c.drop()
	err := m.check()
	if err == nil {
		err = handlers[m.request](s, c, m)
	}
	if err == nil && len(c.maps) > 0 {
		_, err = s.memory(c)
	}
	form := forms[m.request]
	switch {
	case errors.Is(err, errRefused) && m.needReply && s.acks() && !form.reply:
		s.server.cfg.Log.Debug("a vhost-user message was refused", "error", err)
		return s.wire.answer(newReply(m.request, []byte{1, 0, 0, 0, 0, 0, 0, 0}), -1)
	case err != nil:
		return err
	}
	if err := s.apply(c); err != nil {
		return err
	}
	var reply []byte
	switch {
	case form.reply:
		reply = newReply(m.request, c.reply)
	case m.needReply && s.acks():
		reply = newReply(m.request, make([]byte, 8))
	}
	if plant.Is(plant.AnswerEarly) {
		if err := s.wire.answerPlainly(reply, c.file, nil); err != nil {
			return err
		}
		s.at(fail.EngineVhostConsumed)
		reply = nil
	}
	if err := s.wire.answer(reply, c.file); err != nil {
		return err
	}
	s.server.counters.messages.Add(1)
	s.at(fail.EngineVhostConsumed)
	return errors.Join(s.giveUp(), s.tell())
}

// at is a moment at which a crash is tried.
func (s *session) at(p fail.Point) {
	fail.At(p)
	if s.server.hook != nil {
		s.server.hook(p)
	}
}

// acks reports whether the frontend may ask for replies.
func (s *session) acks() bool { return s.rec.Protocol&protoReplyAck != 0 }

// apply makes the record of c the session's.
func (s *session) apply(c *change) error {
	if c.idle() && c.rec == s.rec {
		s.at(fail.EngineVhostCommitted)
		return nil
	}
	if err := s.keep(c); err != nil {
		return err
	}
	s.stopRings(c)
	if c.stopped != nil {
		c.stopped()
	}
	return s.enact(c, s.prepare(c, allRings, false))
}

// idle reports whether c is nothing but its record.
func (c *change) idle() bool {
	return len(c.fresh) == 0 && len(c.maps) == 0 && c.stop == 0 && c.stopped == nil && c.signal == 0
}

// enact commits c, and has the rings run that were made for it.
func (s *session) enact(c *change, starts []start) error {
	if err := s.commit(&c.rec); err != nil {
		return err
	}
	for p, fd := range c.fresh {
		s.files[p] = fd
		delete(c.fresh, p)
	}
	for p, m := range c.maps {
		s.maps[p] = m
		delete(c.maps, p)
	}
	s.at(fail.EngineVhostCommitted)
	s.mu.Lock()
	for _, w := range s.workers {
		if w != nil {
			w.WriteThrough(through(&s.rec))
		}
	}
	s.mu.Unlock()
	if err := s.hire(starts); err != nil {
		return err
	}
	return s.launch(starts, c.signal)
}

// finish ends the session: nothing of it is in flight afterwards, and nothing of
// this process is left of it.
func (s *session) finish(why error) {
	if errors.Is(why, errGarbage) || errors.Is(why, errRefused) {
		s.server.counters.garbage.Add(1)
	}
	s.server.cfg.Log.Debug("a vhost-user session has ended", "reason", why)
	stays := s.leaving.Load() && !s.closing.Load() && errors.Is(why, errStopped)
	if !stays {
		_ = sys.Shutdown(s.fd) // ENOTCONN: it is gone
	}
	c := s.begin()
	c.stop = allRings
	s.stopRings(c)
	if stays = stays && !s.closing.Load(); stays {
		if err := s.commit(&c.rec); err == nil {
			s.server.counters.passed.Add(1)
		} else { // it stands as it did: a successor goes on as after a crash
			s.server.cfg.Log.Debug("leaving a vhost-user session", "error", err)
		}
	} else {
		_ = sys.Shutdown(s.fd)
		if err := s.forgetAll(); err != nil {
			s.server.cfg.Log.Debug("forgetting a vhost-user session", "error", err)
		}
	}
	s.closeAll()
}

// forgetAll makes the record none, and empties its places.
func (s *session) forgetAll() error {
	none := volatile.SessionRecord{Held: s.rec.Held}
	if err := s.commit(&none); err != nil {
		return err
	}
	return s.giveUp()
}

// closeAll frees what this process has of the session.
func (s *session) closeAll() {
	s.mu.Lock()
	s.over = true
	workers := s.workers
	s.workers = make([]worker, len(workers))
	s.mu.Unlock()
	var errs []error
	for _, w := range workers {
		if w != nil {
			errs = append(errs, w.Close())
		}
	}
	for p := range math.MaxUint8 + 1 {
		s.closePlace(uint8(p))
	}
	errs = append(errs, s.wire.close(), sys.CloseFD(s.wake))
	if err := errors.Join(errs...); err != nil {
		s.server.cfg.Log.Debug("closing a vhost-user session", "error", err)
	}
	if s.release != nil {
		s.release()
	}
}

// gone reports whether the frontend has hung up, or the session is at its end.
func (s *session) gone() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over || hungUp(s.fd)
}

// alarm makes the session look at its flags.
func (s *session) alarm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		_ = sys.SignalEvent(s.wake) // EAGAIN: it is signalled
	}
}

// leave has the session end as Server.Leave says. REQUIRES: as for hasten.
func (s *session) leave() {
	s.leaving.Store(true)
	s.alarm()
	s.hasten()
}

// rouseEvery is how often a thread is interrupted that may be held up.
const rouseEvery = 50 * time.Millisecond

// hasten interrupts whatever call the thread waits in, until the session has ended:
// a frontend can fill an event descriptor of its own and make it block, right before
// it is signalled. REQUIRES: Server.mu is held, and the session is the server's.
func (s *session) hasten() {
	s.rousing.Do(func() {
		s.server.sessions.Go(func() {
			t := time.NewTicker(rouseEvery)
			defer t.Stop()
			for {
				select {
				case <-s.ended:
					return
				case <-t.C:
					s.rouse()
				}
			}
		})
	})
}

// rouse interrupts the thread.
func (s *session) rouse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tid := s.tid.Load(); tid != 0 && !s.over { // it is alive: over is set before it ends
		_ = sys.Wake(int(tid)) // it is tried again
	}
}

// close has the session end as Server.Close says. REQUIRES: as for hasten.
func (s *session) close() {
	s.closing.Store(true)
	s.mu.Lock()
	for _, w := range s.workers {
		if w != nil {
			w.Quit()
		}
	}
	if !s.over {
		_ = sys.Shutdown(s.fd)
	}
	s.mu.Unlock()
	s.alarm()
	s.hasten()
}

// hurry is Server.Hurry.
func (s *session) hurry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.workers {
		if w != nil {
			w.Hurry()
		}
	}
}
