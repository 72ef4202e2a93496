// Package held is what engines give their keeper to hold for the next one,
// beside the keys: block maps, listening sockets, what exports' sessions are made
// of, and at a planned end clients' connections. It answers the engine's messages
// (docs/spec/volatile.md).
package held

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"vacate/internal/fail"
	"vacate/internal/handoff"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A Held outlives engines. Any and Destroy may be called from any goroutine;
// Answer, Describe and Inherit are called with Mu locked.
type Held struct {
	Mu   sync.Mutex
	keys *volatile.Keys
	room int // descriptors that this process may have for what is held

	slots   [volatile.Slots]slot
	maps    int // slots that have one
	passed  int // connections in all slots
	kept    int // files in all slots
	closing sync.WaitGroup
}

// A slot is a lease's. Without a map there is nothing else.
type slot struct {
	files map[uint64]*os.File // map, listening socket, and what is in places, by what a fetch calls them
	conns []handoff.Conn
}

const (
	own      = 64 // descriptors that a keeper has for itself, at most
	perLease = 4  // that a lease has without a client: map, listening socket, and its own places

	// ownPlaces are those of an export itself, from 0 on. What a frontend has sent
	// lies in the others.
	ownPlaces = 2
)

// New returns one that holds nothing, and destroys keys, which stay the
// caller's.
func New(keys *volatile.Keys) *Held {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		panic("held: no RLIMIT_NOFILE: " + err.Error()) // any Linux has it
	}
	return &Held{keys: keys, room: int(min(files.Cur, 1<<30)) - own}
}

// Answer deals with the engine's message m, which becomes the reply. file came
// with m, and becomes h's; give goes with the reply, and stays h's. An error says
// that this was no engine's message.
func (h *Held) Answer(m *volatile.Message, file *os.File) (give *os.File, err error) {
	reply := volatile.Message{Kind: m.Kind, Reply: true, Slot: m.Slot, ID: m.ID}
	if m.Slot >= volatile.Slots {
		reply.Errno = syscall.EINVAL
	} else {
		s := &h.slots[m.Slot]
		switch m.Kind {
		case volatile.KindWipe:
			h.wipe(int(m.Slot), &reply)
		case volatile.KindMap:
			give, reply.Errno = h.makeMap(s, m)
		case volatile.KindUnmap:
			reply.Errno = h.unmap(s, int(m.Slot))
		case volatile.KindHold:
			reply.Errno = h.put(s, volatile.FetchListener, file)
		case volatile.KindFetch:
			give, reply.Arg, reply.Errno = s.fetch(m.Arg)
		case volatile.KindPass:
			reply.Errno = h.pass(s, handoff.Conn{File: handoff.Of(file), Terms: m.Arg})
		case volatile.KindKeep, volatile.KindYield:
			reply.Errno = h.put(s, volatile.FetchPlace+min(m.Arg, volatile.Places), file)
		case volatile.KindRemap:
			reply.Errno = h.put(s, volatile.FetchMap, file)
			fail.At(fail.KeeperRemapped)
		case volatile.KindUp:
			h.forgetConns()
			reply.Arg = volatile.Layout
		default:
			return nil, fmt.Errorf("a %v is not an engine's: %w", m.Kind, volatile.ErrFormat)
		}
	}
	if reply.Errno != 0 {
		file.Close() //nolint:errcheck // refused; it may be nil
	}
	*m = reply
	return give, nil
}

func (h *Held) wipe(i int, reply *volatile.Message) {
	reply.StartedNs = sys.BoottimeNs()
	err := h.keys.Wipe(i)
	reply.DoneNs = sys.BoottimeNs()
	reply.ReadBack = err == nil
	if err != nil {
		reply.Errno = syscall.EIO
	}
	fail.At(fail.KeeperWiped)
}

// makeMap makes a block map.
func (h *Held) makeMap(s *slot, m *volatile.Message) (*os.File, syscall.Errno) {
	switch {
	case s.files != nil:
		return nil, syscall.EEXIST
	case !h.keys.Empty(int(m.Slot)):
		return nil, syscall.EBUSY
	case h.used()+perLease > h.room: // the keeper could not start the next engine any more
		return nil, syscall.EMFILE
	case m.Arg > 1<<31: // far more extents than a map can have, and an int anywhere
		return nil, syscall.EINVAL
	}
	f, err := volatile.CreateMap(m.Blocks, int(m.Arg), m.Lease)
	if errors.Is(err, volatile.ErrFormat) {
		return nil, syscall.EINVAL
	}
	if err != nil {
		errno := syscall.ENOMEM
		errors.As(err, &errno)
		return nil, errno
	}
	s.files = map[uint64]*os.File{volatile.FetchMap: f}
	h.maps++
	h.kept++
	fail.At(fail.KeeperMapped)
	return f, 0
}

// used is how many descriptors are held.
func (h *Held) used() int { return h.passed + h.kept }

func (h *Held) unmap(s *slot, i int) syscall.Errno {
	if !h.keys.Empty(i) {
		return syscall.EBUSY
	}
	h.drop(s)
	fail.At(fail.KeeperUnmapped)
	return 0
}

// drop forgets a slot. Freeing a map takes a millisecond a TiB that was written,
// and another lease's key must not wait for that.
func (h *Held) drop(s *slot) {
	if s.files == nil {
		return
	}
	old := *s
	*s = slot{}
	h.maps--
	h.passed -= len(old.conns)
	h.kept -= len(old.files)
	h.closing.Go(func() {
		old.closeConns()
		for _, f := range old.files {
			f.Close() //nolint:errcheck // its lease has ended
		}
	})
}

func (s *slot) closeConns() {
	for _, c := range s.conns {
		c.File.Close() //nolint:errcheck // a duplicate, or its engine is gone
	}
	s.conns = nil
}

func (h *Held) pass(s *slot, c handoff.Conn) syscall.Errno {
	switch {
	case s.files == nil:
		return syscall.ENOENT
	case h.passed >= volatile.MaxPassed || h.used() >= h.room:
		return syscall.ENOSPC
	}
	s.conns = append(s.conns, c)
	h.passed++
	fail.At(fail.KeeperPassed)
	return 0
}

// put holds file as what: as the map, instead of another; as the listening socket,
// once; or in a place, which nil empties. The last quarter of what may be held is not
// for places that frontends fill: whatever sessions take, leases can be opened.
func (h *Held) put(s *slot, what uint64, file *os.File) syscall.Errno {
	old, room := s.files[what], h.room
	if what >= volatile.FetchPlace+ownPlaces {
		room -= room / 4
	}
	switch {
	case what >= volatile.FetchPlace+volatile.Places, what < volatile.FetchPlace && file == nil:
		return syscall.EINVAL
	case file == nil:
		delete(s.files, what)
	case s.files == nil:
		return syscall.ENOENT
	case old != nil && what == volatile.FetchListener:
		return syscall.EEXIST
	case old == nil && what >= volatile.FetchPlace && h.used() >= room:
		return syscall.ENOSPC
	default:
		s.files[what] = file
		h.kept++
	}
	if old != nil {
		h.kept--
		// It may be the last descriptor of a map, or of a guest's memory: a key must
		// not wait until that is freed.
		h.closing.Go(func() { old.Close() }) //nolint:errcheck // its engine had a duplicate
	}
	fail.At(fail.KeeperHeld)
	return 0
}

func (s *slot) fetch(what uint64) (f *os.File, terms uint64, errno syscall.Errno) {
	if n := what - volatile.FetchConn; n < uint64(len(s.conns)) {
		f, terms = s.conns[n].File.File, s.conns[n].Terms
	} else {
		f = s.files[what]
	}
	if f == nil {
		return nil, 0, syscall.ENOENT
	}
	return f, terms, 0
}

// forgetConns is for an engine that has taken them over: they now end with it.
func (h *Held) forgetConns() {
	for i := range h.slots {
		h.slots[i].closeConns()
	}
	h.passed = 0
	fail.At(fail.KeeperUp)
}

// Any reports whether a lease may be open.
func (h *Held) Any() bool {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	return h.maps > 0
}

// Destroy overwrites every key and reads them back, and forgets everything.
//
// REQUIRES: no instruction of an engine can run any more: a cipher that goes on
// with half a key would leave plaintext on a drive.
func (h *Held) Destroy() error {
	h.Mu.Lock()
	defer h.Mu.Unlock()
	err := h.keys.WipeAll()
	fail.At(fail.KeeperDestroyed)
	for i := range h.slots {
		h.drop(&h.slots[i])
	}
	return err
}

// Wait returns when what was forgotten is given back.
func (h *Held) Wait() { h.closing.Wait() }

// Describe writes down what is held.
func (h *Held) Describe() (slots []handoff.Slot) {
	for i := range h.slots {
		s := &h.slots[i]
		if s.files == nil {
			continue
		}
		to := handoff.Slot{Slot: i, Map: handoff.Of(s.files[volatile.FetchMap]), Listener: handoff.Of(s.files[volatile.FetchListener]), Conns: s.conns, Places: make(map[int]*handoff.File)}
		for what, f := range s.files {
			if what >= volatile.FetchPlace {
				to.Places[int(what-volatile.FetchPlace)] = new(handoff.Of(f))
			}
		}
		slots = append(slots, to)
	}
	return slots
}

// Inherit holds what was written down, in place of nothing.
func (h *Held) Inherit(slots []handoff.Slot) error {
	for _, from := range slots {
		if from.Slot >= volatile.Slots {
			return fmt.Errorf("taking over slot %d: %w", from.Slot, volatile.ErrSlot)
		}
		s := slot{files: map[uint64]*os.File{volatile.FetchMap: from.Map.File}, conns: from.Conns}
		if l := from.Listener.File; l != nil {
			s.files[volatile.FetchListener] = l
		}
		for place, f := range from.Places { // a number that is too great is never asked for
			s.files[volatile.FetchPlace+uint64(place)] = f.File
		}
		h.slots[from.Slot] = s
		h.maps++
		h.kept += len(s.files)
		h.passed += len(s.conns)
	}
	return nil
}
