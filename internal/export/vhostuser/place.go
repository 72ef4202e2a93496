package vhostuser

import (
	"errors"
	"fmt"
	"math/bits"
	"syscall"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// Descriptors lie in places of the keeper's, and the record says what lies where:
//
//	K1: a place that the record names holds what the record says. So a new
//	    descriptor goes into a place that nothing is known of, and the record
//	    names it only then.
//	K2: a place that holds anything is in the record's set of held ones. So a place
//	    is put into it before it is filled, and taken out after it was emptied.
//	K3: the keeper gives up a place before this process does. Who is the last to
//	    close a dead guest's memory frees it, which takes a tenth of a second a GiB:
//	    the keeper has other leases, and keys to erase.

// A change is the record as a message makes it, and what must happen for it to
// become the session's. Until commit nothing of the session has changed.
type change struct {
	rec     volatile.SessionRecord
	fresh   map[uint8]int // descriptors that came with the message, by place
	stop    uint64        // rings that must not run while it happens, as bits
	maps    map[uint8]*mapping
	stopped func() // called when those of stop have stopped
	signal  uint64 // rings whose descriptors are others now
	reply   []byte // payload of the request's own reply
	file    int    // that goes with the reply; -1: none
}

func (s *session) begin() *change {
	return &change{rec: s.rec, fresh: map[uint8]int{}, maps: map[uint8]*mapping{}, file: -1}
}

// put finds a place for a descriptor, which becomes c's.
func (c *change) put(fd int) (uint8, error) {
	for i, w := range c.rec.Held {
		if i == 0 {
			w |= 1<<placeFirst - 1
		}
		if w != ^uint64(0) {
			p := uint8(64*i + bits.TrailingZeros64(^w))
			c.rec.Held.Add(p)
			c.fresh[p] = fd
			return p, nil
		}
	}
	return 0, errors.Join(fmt.Errorf("all places are taken: %w", errRefused), sys.CloseFD(fd))
}

// drop closes what c has brought.
func (c *change) drop() {
	for _, fd := range c.fresh {
		_ = sys.CloseFD(fd) // never used
	}
	for _, m := range c.maps {
		_ = m.close() // likewise
	}
	if c.file >= 0 {
		_ = sys.CloseFD(c.file)
	}
	*c = change{file: -1}
}

// errKeeper: the keeper, or the session file, does not do its part. The session
// cannot go on.
var errKeeper = errors.New("the session cannot be kept")

// keep gives the keeper the descriptors that c has brought (K2).
func (s *session) keep(c *change) error {
	if len(c.fresh) == 0 {
		return nil
	}
	noted := s.rec
	noted.Held = c.rec.Held
	if err := s.commit(&noted); err != nil {
		return err
	}
	for p, fd := range c.fresh {
		f, err := sys.Share(fd, "vhost-user")
		if err == nil {
			err = errors.Join(s.server.cfg.Keeper.Keep(int(p), f), f.Close())
		}
		if err != nil {
			return fmt.Errorf("%w: place %d: %w", errKeeper, p, err)
		}
	}
	return nil
}

// commit makes r the record of the session.
func (s *session) commit(r *volatile.SessionRecord) error {
	if err := s.server.file.Commit(r); err != nil {
		return fmt.Errorf("%w: %w", errKeeper, err)
	}
	s.rec = *r
	return nil
}

// giveUp empties the places that the record does not name, and closes what this
// process has of them.
func (s *session) giveUp() error {
	var named volatile.PlaceSet
	s.rec.Named(func(p uint8) { named.Add(p) })
	if named == s.rec.Held {
		return nil
	}
	r := s.rec
	r.Held = named
	for p := placeFirst; p < Places; p++ {
		at := uint8(p)
		if !s.rec.Held.Has(at) || named.Has(at) {
			continue
		}
		if err := s.server.cfg.Keeper.Keep(p, nil); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("%w: giving up place %d: %w", errKeeper, p, err)
		}
	}
	for p := placeFirst; p < Places; p++ {
		if !named.Has(uint8(p)) {
			s.closePlace(uint8(p))
		}
	}
	return s.commit(&r)
}

// closePlace closes what this process has of a place.
func (s *session) closePlace(p uint8) {
	if m := s.maps[p]; m != nil {
		_ = m.close() // unmapping what was mapped
		delete(s.maps, p)
	}
	if fd, ok := s.files[p]; ok {
		_ = sys.CloseFD(fd) // the keeper had its own
		delete(s.files, p)
	}
}

// in is the descriptor in a place, and -1 for none.
func (s *session) in(p uint8) int {
	if fd, ok := s.files[p]; ok && p != 0 {
		return fd
	}
	return -1
}
