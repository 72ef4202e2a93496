package volatile

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
)

// A Link is the engine's end of the socket to its keeper. Its methods may be
// called from any goroutine. What it sends stays the caller's, what it returns
// becomes the caller's. Errors of the keeper are [syscall.Errno]; [ErrLink] says
// that it no longer answers.
type Link struct {
	*line
	layout atomic.Uint64 // that the keeper has said it knows
}

// Wiped is what the keeper observed when it destroyed a key. Times are
// CLOCK_BOOTTIME in nanoseconds, and enclose the overwriting and reading back.
type Wiped struct {
	StartedNs int64
	DoneNs    int64
	ReadBack  bool // zeros were read back through the keeper's mapping
}

// NewLink uses the socket f and closes it: the engine's descriptor from its
// keeper. Close ends the link.
func NewLink(f *os.File) (*Link, error) {
	l, err := newLine(f, make(chan struct{}))
	if err != nil {
		return nil, err
	}
	return &Link{line: l}, nil
}

// Map asks for a new block map in slot, which must have neither map nor key.
// The file is the caller's, for [OpenMap]; the keeper keeps it as well.
func (l *Link) Map(slot int, blocks uint64, extents int, lease LeaseID) (*os.File, error) {
	if extents < 0 {
		return nil, fmt.Errorf("asking the keeper for a block map of %d extents: %w", extents, ErrFormat)
	}
	a := l.ask(slot, Message{Kind: KindMap, Blocks: blocks, Lease: lease, Arg: uint64(extents)}, nil)
	if a.err != nil {
		return nil, fmt.Errorf("asking the keeper for a block map in slot %d: %w", slot, a.err)
	}
	return a.file, nil
}

// Unmap makes the keeper forget the block map of slot, and all that it holds
// beside it.
// The slot's key must have been wiped. A slot without a map is fine.
func (l *Link) Unmap(slot int) error {
	if a := l.ask(slot, Message{Kind: KindUnmap}, nil); a.err != nil {
		return fmt.Errorf("asking the keeper to drop the block map of slot %d: %w", slot, a.err)
	}
	return nil
}

// Wipe makes the keeper destroy the key in slot. A nil error is the erasure:
// ReadBack is true. It may be repeated.
//
// REQUIRES: no cipher call uses the key, or will.
func (l *Link) Wipe(slot int) (Wiped, error) {
	a := l.ask(slot, Message{Kind: KindWipe}, nil)
	w := Wiped{StartedNs: a.msg.StartedNs, DoneNs: a.msg.DoneNs, ReadBack: a.msg.ReadBack}
	if a.err == nil && !w.ReadBack {
		a.err = syscall.EIO
	}
	if a.err != nil {
		return w, fmt.Errorf("asking the keeper to destroy the key in slot %d: %w", slot, a.err)
	}
	return w, nil
}

// Hold gives the keeper the listening socket of slot's lease, to keep beside
// the map for the next engine. ENOENT: the slot has no map. EEXIST: it has a
// socket already.
func (l *Link) Hold(slot int, listener *os.File) error {
	if a := l.give(slot, Message{Kind: KindHold}, listener); a.err != nil {
		return fmt.Errorf("giving the keeper the listening socket of slot %d: %w", slot, a.err)
	}
	return nil
}

// FetchMap returns the block map of slot, for [OpenMap]. ENOENT: it has none.
func (l *Link) FetchMap(slot int) (*os.File, error) {
	a := l.ask(slot, Message{Kind: KindFetch, Arg: FetchMap}, nil)
	if a.err != nil {
		return nil, fmt.Errorf("asking the keeper for the block map of slot %d: %w", slot, a.err)
	}
	return a.file, nil
}

// FetchListener returns the listening socket of slot, and nil when the keeper
// holds none.
func (l *Link) FetchListener(slot int) (*os.File, error) {
	a := l.ask(slot, Message{Kind: KindFetch, Arg: FetchListener}, nil)
	if a.err != nil && !errors.Is(a.err, syscall.ENOENT) {
		return nil, fmt.Errorf("asking the keeper for the listening socket of slot %d: %w", slot, a.err)
	}
	return a.file, nil
}

// FetchConn returns the n-th connection that was passed for slot, counted from
// 0 and in the order in which they were passed, and its terms. A nil file is
// the end of them.
func (l *Link) FetchConn(slot, n int) (f *os.File, terms uint64, err error) {
	if n < 0 || n >= MaxPassed {
		return nil, 0, nil
	}
	a := l.ask(slot, Message{Kind: KindFetch, Arg: FetchConn + uint64(n)}, nil)
	if errors.Is(a.err, syscall.ENOENT) {
		return nil, 0, nil
	}
	if a.err != nil {
		return nil, 0, fmt.Errorf("asking the keeper for connection %d of slot %d: %w", n, slot, a.err)
	}
	return a.file, a.msg.Arg, nil
}

// Pass gives the keeper a client's connection that stands between two messages,
// for the next engine; terms are whatever that one must know of it. ENOENT: the
// slot has no map. ENOSPC: the keeper holds [MaxPassed] already.
func (l *Link) Pass(slot int, conn *os.File, terms uint64) error {
	if a := l.give(slot, Message{Kind: KindPass, Arg: terms}, conn); a.err != nil {
		return fmt.Errorf("passing a connection of slot %d to the keeper: %w", slot, a.err)
	}
	return nil
}

// Keep has the keeper hold f in a place of slot, 0 ≤ place < [Places], instead of
// what it holds there; a nil f gives up the place, which may be empty. What is in
// places outlives engines and is given back with the map. ENOENT: the slot has no
// map. ENOSPC: the keeper needs its other descriptors for itself.
func (l *Link) Keep(slot, place int, f *os.File) error {
	m, what := Message{Kind: KindKeep, Arg: uint64(place)}, "hold a descriptor in"
	if f == nil {
		m.Kind, what = KindYield, "give up"
	}
	err := checkPlace(place)
	if err == nil {
		err = l.ask(slot, m, f).err
	}
	if err != nil {
		return fmt.Errorf("asking the keeper to %s place %d of slot %d: %w", what, place, slot, err)
	}
	return nil
}

// FetchPlace returns what is in a place of slot, and nil when nothing is.
func (l *Link) FetchPlace(slot, place int) (*os.File, error) {
	err := checkPlace(place)
	if err == nil {
		a := l.ask(slot, Message{Kind: KindFetch, Arg: FetchPlace + uint64(place)}, nil)
		if a.err == nil || errors.Is(a.err, syscall.ENOENT) {
			return a.file, nil
		}
		err = a.err
	}
	return nil, fmt.Errorf("asking the keeper for place %d of slot %d: %w", place, slot, err)
}

func checkPlace(place int) error {
	if place < 0 || place >= Places {
		return fmt.Errorf("there are %d places: %w", Places, ErrFormat)
	}
	return nil
}

// Up tells the keeper that everything is taken over: it forgets the passed
// connections. It comes before any of them is served.
func (l *Link) Up() error {
	a := l.call(Message{Kind: KindUp}, nil)
	if a.err != nil {
		return fmt.Errorf("telling the keeper that everything is taken over: %w", a.err)
	}
	l.layout.Store(a.msg.Arg)
	return nil
}

// Knows returns nil when the keeper knows the layout, and with it the messages, up
// to this number ([Layout]). Until an upgrade is done the keeper is the old program,
// which ends the link of who sends it what it does not know: so one that has not said
// so is asked again. REQUIRES: no connection is passed meanwhile.
func (l *Link) Knows(layout uint64) error {
	if l.layout.Load() < layout {
		if err := l.Up(); err != nil {
			return err
		}
	}
	if known := l.layout.Load(); known < layout {
		return fmt.Errorf("the keeper knows additions to the layout up to %d, and %d is needed: %w", known, layout, ErrVersion)
	}
	return nil
}

// Leave is closed when the keeper wants the engine to pass its connections and
// exit. A link that goes down does not close it.
func (l *Link) Leave() <-chan struct{} { return l.left }

// Control gives each new connection to control, newest only: one that nobody
// took is closed when the next comes, since its control is dead. It is closed
// when the link is down.
func (l *Link) Control() <-chan *os.File { return l.conns }

// Close ends the link and waits for its goroutine. It may be repeated.
func (l *Link) Close() error { return l.close() }

// ask sends m for slot. An answer to a map or a fetch that succeeded has a file.
func (l *Link) ask(slot int, m Message, file *os.File) answer {
	if err := checkSlot(slot); err != nil {
		return answer{err: err}
	}
	m.Slot = uint32(slot)
	a := l.call(m, file)
	if (m.Kind == KindMap || m.Kind == KindFetch) && a.err == nil && a.file == nil {
		a.err = fmt.Errorf("a reply without a descriptor: %w", ErrFormat)
	}
	return a
}

func (l *Link) give(slot int, m Message, file *os.File) answer {
	if file == nil {
		return answer{err: os.ErrInvalid}
	}
	return l.ask(slot, m, file)
}
