// Package held is what engines give their keeper to hold for the next one,
// beside the keys: block maps, listening sockets, and at a planned end clients'
// connections. It answers the engine's messages (docs/spec/volatile.md).
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
	closing sync.WaitGroup
}

// A slot is a lease's. Without a map there is nothing else.
type slot struct {
	bits, listener *os.File
	conns          []conn
}

type conn struct {
	file  *os.File
	terms uint64
}

// own is how many descriptors a keeper has for itself, at most.
const own = 64

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
			reply.Errno = h.hold(s, file)
		case volatile.KindFetch:
			give, reply.Arg, reply.Errno = s.fetch(m.Arg)
		case volatile.KindPass:
			reply.Errno = h.pass(s, conn{file, m.Arg})
		case volatile.KindUp:
			h.forgetConns()
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
	case s.bits != nil:
		return nil, syscall.EEXIST
	case !h.keys.Empty(int(m.Slot)):
		return nil, syscall.EBUSY
	case 2*h.maps+2+h.passed > h.room: // the keeper could not start the next engine any more
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
	s.bits = f
	h.maps++
	fail.At(fail.KeeperMapped)
	return f, 0
}

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
	if s.bits == nil {
		return
	}
	old := *s
	*s = slot{}
	h.maps--
	h.passed -= len(old.conns)
	h.closing.Go(func() {
		old.bits.Close()     //nolint:errcheck // a memfd: closing frees it, nothing is written
		old.listener.Close() //nolint:errcheck // it may be nil
		old.closeConns()
	})
}

func (s *slot) closeConns() {
	for _, c := range s.conns {
		c.file.Close() //nolint:errcheck // a duplicate, or its engine is gone
	}
	s.conns = nil
}

func (h *Held) hold(s *slot, file *os.File) syscall.Errno {
	switch {
	case s.bits == nil:
		return syscall.ENOENT
	case s.listener != nil:
		return syscall.EEXIST
	}
	s.listener = file
	fail.At(fail.KeeperHeld)
	return 0
}

func (h *Held) pass(s *slot, c conn) syscall.Errno {
	switch {
	case s.bits == nil:
		return syscall.ENOENT
	case h.passed >= min(volatile.MaxPassed, h.room-2*h.maps):
		return syscall.ENOSPC
	}
	s.conns = append(s.conns, c)
	h.passed++
	fail.At(fail.KeeperPassed)
	return 0
}

func (s *slot) fetch(what uint64) (f *os.File, terms uint64, errno syscall.Errno) {
	switch n := what - volatile.FetchConn; {
	case what == volatile.FetchMap:
		f = s.bits
	case what == volatile.FetchListener:
		f = s.listener
	case n < uint64(len(s.conns)):
		f, terms = s.conns[n].file, s.conns[n].terms
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
		if s.bits == nil {
			continue
		}
		to := handoff.Slot{Slot: i, Map: handoff.Of(s.bits), Listener: handoff.Of(s.listener)}
		for _, c := range s.conns {
			to.Conns = append(to.Conns, handoff.Conn{File: handoff.Of(c.file), Terms: c.terms})
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
		s := &h.slots[from.Slot]
		s.bits, s.listener = from.Map.File, from.Listener.File
		for _, c := range from.Conns {
			s.conns = append(s.conns, conn{c.File.File, c.Terms})
		}
		h.maps++
		h.passed += len(from.Conns)
	}
	return nil
}
