package vhostuser

import (
	"errors"
	"fmt"
	"sync"

	"vacate/internal/sys"
	"vacate/internal/virtq"
	"vacate/internal/volatile"
)

// openFile fetches the session file from the keeper, or makes one and has it kept.
func (s *Server) openFile() error {
	f, err := s.cfg.Keeper.Fetch(PlaceSession)
	if err != nil {
		return fmt.Errorf("fetching the session file: %w", err)
	}
	if f == nil {
		if f, err = volatile.CreateSession(s.cfg.Queues, int64(virtq.InflightSize(s.cfg.Queues, volatile.MaxRingSize))); err != nil {
			return err
		}
		if err := s.cfg.Keeper.Keep(PlaceSession, f); err != nil {
			return errors.Join(fmt.Errorf("having the session file kept: %w", err), f.Close())
		}
	}
	file, err := volatile.OpenSession(f)
	if err != nil {
		return err
	}
	want := virtq.InflightSize(s.cfg.Queues, volatile.MaxRingSize)
	if file.Queues() != s.cfg.Queues || uint64(len(file.Inflight())) != want {
		return errors.Join(fmt.Errorf("the session file is for %d queues: want %d", file.Queues(), s.cfg.Queues), file.Close())
	}
	s.file = file
	return nil
}

// adopt goes on with the session of the record, if there is one. An error says that
// nothing can be served; a session that cannot go on is ended, and is none.
func (s *Server) adopt() error {
	r := s.file.Record()
	if r.Conn == 0 {
		if r.Held == (volatile.PlaceSet{}) {
			return nil
		}
		t := &session{server: s, rec: r}
		return t.giveUp()
	}
	conn, err := s.cfg.Keeper.Fetch(int(r.Conn))
	if err != nil {
		return fmt.Errorf("fetching a frontend's connection: %w", err)
	}
	if conn == nil {
		return s.lose(&r, errors.New("the keeper has no connection"))
	}
	fd, err := sys.Connection(conn)
	if err = errors.Join(err, conn.Close()); err != nil {
		return s.lose(&r, err)
	}
	release, err := s.cfg.Readmit()
	if err != nil {
		_, _ = sys.Shutdown(fd), sys.CloseFD(fd) // it has hung up already, at worst
		return s.lose(&r, err)
	}
	t, err := s.newSession(fd, release)
	if err != nil {
		if release != nil {
			release()
		}
		return fmt.Errorf("taking over a session: %w", err)
	}
	begun := make(chan error, 1)
	s.track(t, t.resume, begun)
	switch err := <-begun; {
	case errors.Is(err, errKeeper):
		<-t.ended
		return err
	case err == nil:
		s.counters.adopted.Add(1)
	}
	return nil // the session has ended, and said why
}

// lose forgets a session that is not to be had.
func (s *Server) lose(r *volatile.SessionRecord, why error) error {
	s.cfg.Log.Debug("a vhost-user session cannot be taken over", "reason", why)
	t := &session{server: s, rec: *r}
	return t.forgetAll()
}

// resume is what a session begins with that a predecessor had. What that had in
// flight is carried out again, by the ring's worker.
func (s *session) resume() error {
	if err := s.fetchAll(); err != nil {
		return err
	}
	c := s.begin()
	var ran uint64
	for i := range c.rec.Rings {
		if c.rec.Rings[i].Running {
			ran |= 1 << i
		}
	}
	starts := append(s.prepare(c, ran, true), s.prepare(c, ^ran, false)...)
	return s.enact(c, starts)
}

// fetchAll fetches and maps what the record names.
func (s *session) fetchAll() error {
	var named volatile.PlaceSet
	s.rec.Named(func(p uint8) {
		if p != s.rec.Conn { // the wire has it
			named.Add(p)
		}
	})
	var fds [Places]int
	err := each(named, func(p uint8) error {
		f, err := s.server.cfg.Keeper.Fetch(int(p))
		if err == nil && f == nil {
			err = errors.New("the keeper has nothing there")
		}
		if err == nil {
			fds[p], err = sys.Detach(f)
		}
		if err != nil {
			fds[p] = -1
		}
		return err
	})
	for p := range Places {
		if named.Has(uint8(p)) && fds[p] >= 0 {
			s.files[uint8(p)] = fds[p]
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errKeeper, err)
	}
	var errs []error
	for i := range s.rec.Regions {
		if r := &s.rec.Regions[i]; r.Place != 0 {
			errs = append(errs, s.remap(r.Place, r.Offset, r.Size))
		}
	}
	if s.rec.Log != 0 {
		errs = append(errs, s.remap(s.rec.Log, s.rec.LogOffset, s.rec.LogSize))
	}
	if s.rec.Inflight != 0 {
		errs = append(errs, s.remap(s.rec.Inflight, s.rec.InflightOffset, s.rec.InflightSize))
	}
	return errors.Join(errs...)
}

// each asks the keeper about places, of all at once: answers are on their way for
// longer than they take, above all while the machine is busy.
func each(places volatile.PlaceSet, ask func(p uint8) error) error {
	var errs [Places]error
	var asked sync.WaitGroup
	for p := range Places {
		if at := uint8(p); places.Has(at) {
			asked.Go(func() {
				if err := ask(at); err != nil {
					errs[at] = fmt.Errorf("place %d: %w", at, err)
				}
			})
		}
	}
	asked.Wait()
	return errors.Join(errs[:]...)
}

// remap maps what lies in a place.
func (s *session) remap(place uint8, off, size uint64) error {
	m, err := mapFile(s.files[place], off, size, mostMapped)
	if err != nil {
		return fmt.Errorf("the memory in place %d: %w", place, err)
	}
	s.maps[place] = m
	return nil
}

// accept begins the session of a frontend that has connected.
func (s *session) accept() error {
	c := &change{rec: volatile.SessionRecord{Held: s.rec.Held}, file: -1, fresh: map[uint8]int{}}
	defer c.drop()
	again, err := sys.Share(s.fd, "vhost-user")
	if err != nil {
		return err
	}
	fd, err := sys.Detach(again)
	if err != nil {
		return err
	}
	if c.rec.Conn, err = c.put(fd); err != nil {
		return err
	}
	if err := s.keep(c); err != nil {
		return err
	}
	return s.commit(&c.rec)
}
