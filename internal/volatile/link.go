package volatile

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"vacate/internal/sys"
)

// ErrLink is wrapped by every error that means that the keeper no longer
// answers: it is gone, or the link was closed.
var ErrLink = errors.New("the keeper's link is down")

// A Link is the engine's end of the socket to its keeper. Its methods may be
// called from any goroutine.
//
//  1. A call takes a fresh id, notes where its reply goes, and sends.
//  2. One goroutine, started by [NewLink], receives. It hands each reply to the
//     call that waits for it, and connections to control to [Link.Control].
//  3. When receiving fails, every call that waits or comes later gets ErrLink.
type Link struct {
	conn    *sys.PacketConn
	control chan *os.File
	stopped chan struct{} // closed when the receiver has ended

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer
	down    error          // set once, by the receiver
	calls   sync.WaitGroup // calls that may be using conn
}

type answer struct {
	msg  Message
	file *os.File
	err  error
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
	conn, err := sys.NewPacketConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("opening the keeper's link: %w", err)
	}
	l := &Link{
		conn:    conn,
		control: make(chan *os.File, 1),
		stopped: make(chan struct{}),
		waiting: make(map[uint64]chan answer),
	}
	go l.receive()
	return l, nil
}

// Map asks for a new block map in slot, which must have neither map nor key.
// The file is the caller's, for [OpenMap]; the keeper keeps it as well.
func (l *Link) Map(slot int, blocks uint64, lease LeaseID) (*os.File, error) {
	a := l.call(slot, Message{Kind: KindMap, Blocks: blocks, Lease: lease})
	if a.err == nil && a.file == nil {
		a.err = fmt.Errorf("a reply without a descriptor: %w", ErrFormat)
	}
	if a.err != nil {
		return nil, fmt.Errorf("asking the keeper for a block map in slot %d: %w", slot, a.err)
	}
	return a.file, nil
}

// Unmap makes the keeper forget the block map of slot, whose key must have been
// wiped. A slot without a map is fine.
func (l *Link) Unmap(slot int) error {
	if a := l.call(slot, Message{Kind: KindUnmap}); a.err != nil {
		return fmt.Errorf("asking the keeper to drop the block map of slot %d: %w", slot, a.err)
	}
	return nil
}

// Wipe makes the keeper destroy the key in slot. A nil error is the erasure:
// ReadBack is true. It may be repeated.
//
// REQUIRES: no cipher call uses the key, or will.
func (l *Link) Wipe(slot int) (Wiped, error) {
	a := l.call(slot, Message{Kind: KindWipe})
	w := Wiped{StartedNs: a.msg.StartedNs, DoneNs: a.msg.DoneNs, ReadBack: a.msg.ReadBack}
	if a.err == nil && !w.ReadBack {
		a.err = syscall.EIO
	}
	if a.err != nil {
		return w, fmt.Errorf("asking the keeper to destroy the key in slot %d: %w", slot, a.err)
	}
	return w, nil
}

// Control gives each new connection to control, newest only: one that nobody
// took is closed when the next comes, since its control is dead. It is closed
// when the link is down.
func (l *Link) Control() <-chan *os.File { return l.control }

// Close ends the link and waits for its goroutine. It may be repeated.
func (l *Link) Close() error {
	l.mu.Lock()
	var err error
	if l.down == nil { // else the descriptor may be another's by now
		err = l.conn.Shutdown()
	}
	l.mu.Unlock()
	if err != nil && !errors.Is(err, syscall.ENOTCONN) { // the keeper is gone already
		return fmt.Errorf("closing the keeper's link: %w", err)
	}
	<-l.stopped
	return nil
}

// call sends m for slot and waits for its reply. Only a failed send or a link that is
// down end the wait: the keeper answers everything.
func (l *Link) call(slot int, m Message) answer {
	if err := checkSlot(slot); err != nil {
		return answer{err: err}
	}
	m.Slot = uint32(slot)
	reply := make(chan answer, 1)
	l.mu.Lock()
	if l.down != nil {
		l.mu.Unlock()
		return answer{err: l.down}
	}
	l.next++
	m.ID = l.next
	l.waiting[m.ID] = reply
	l.calls.Add(1)
	l.mu.Unlock()

	var b [MessageSize]byte
	m.Encode(&b)
	err := l.conn.Send(b[:], nil)
	if err != nil {
		// The receiver finds the same end, and answers for everybody.
		_ = l.conn.Shutdown() //nolint:errcheck // the send's error is what matters
	}
	l.calls.Done()
	a := <-reply
	if err != nil {
		a.err = fmt.Errorf("%w: %w", ErrLink, err)
	}
	if a.err == nil && a.msg.Kind != m.Kind {
		a.err = fmt.Errorf("a %v for an answer to a %v: %w", a.msg.Kind, m.Kind, ErrFormat)
	}
	if a.err == nil && a.msg.Errno != 0 {
		a.err = a.msg.Errno
	}
	if a.err != nil && a.file != nil {
		a.file.Close() //nolint:errcheck // the descriptor of an answer that is refused
		a.file = nil
	}
	return a
}

func (l *Link) receive() {
	var err error
	for err == nil {
		var b [MessageSize]byte
		var file *os.File
		if file, err = l.conn.Recv(b[:]); err != nil {
			break
		}
		var m Message
		if err = m.Decode(&b); err != nil {
			closeFile(file)
			break
		}
		err = l.deliver(m, file)
	}
	l.end(fmt.Errorf("%w: %w", ErrLink, err))
}

// deliver takes file over.
func (l *Link) deliver(m Message, file *os.File) error {
	if m.Kind == KindControl && !m.Reply && file != nil {
		select {
		case old := <-l.control:
			closeFile(old)
		default:
		}
		l.control <- file // never blocks: this goroutine is the only sender
		return nil
	}
	l.mu.Lock()
	reply := l.waiting[m.ID]
	delete(l.waiting, m.ID)
	l.mu.Unlock()
	if !m.Reply || reply == nil {
		closeFile(file)
		return fmt.Errorf("a %v that nobody asked for: %w", m.Kind, ErrFormat)
	}
	reply <- answer{msg: m, file: file}
	// The caller goes on here and now, on this thread, rather than when another
	// processor finds it: a destroyed key is reported some microseconds sooner.
	runtime.Gosched()
	return nil
}

// end answers every call with err, and frees the socket.
func (l *Link) end(err error) {
	l.mu.Lock()
	l.down = err
	for id, reply := range l.waiting {
		delete(l.waiting, id)
		reply <- answer{err: err}
	}
	l.mu.Unlock()
	_ = l.conn.Shutdown() //nolint:errcheck // ends calls that still send; the link's error is err
	l.calls.Wait()
	select {
	case old := <-l.control:
		closeFile(old)
	default:
	}
	close(l.control)
	_ = l.conn.Close() //nolint:errcheck // nothing was buffered, nothing can be lost
	close(l.stopped)
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close() //nolint:errcheck // a passed descriptor that is not wanted
	}
}
