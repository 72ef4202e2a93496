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

// A line is what [Link] and [ControlLink] have in common: a child's end of the
// socket to its keeper.
//
//  1. A call takes a fresh id, notes where its reply goes, and sends.
//  2. One goroutine, started by newLine, receives. It hands each reply to the
//     call that waits for it, and keeps the newest connection that came.
//  3. A packet of another size or form, a descriptor that its message does not
//     carry, a message that nobody asked for: each ends the line, and whatever
//     came with it is closed.
//  4. When receiving has ended, every call that waits or comes later gets
//     ErrLink.
type line struct {
	conn    *sys.PacketConn
	conns   chan *os.File // what KindControl brought, newest only
	left    chan struct{} // closed by the first KindLeave; nil: that ends the line
	room    chan struct{} // has a value for each call under way that is not urgent
	stopped chan struct{} // closed when the receiver has ended

	leaving bool // the receiver's: left is closed

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]waiter
	down    error          // set once, by the receiver
	calls   sync.WaitGroup // calls that may be using conn
}

// mostCalls is how many calls are under way at once; others wait. Requests are
// answered in their order, and the keeper takes none while answers wait to be read:
// with all of a node's leases asking at once, a wipe would stand behind them all. It
// is not counted, and finds little before it.
const mostCalls = 32

// A waiter is a call under way.
type waiter struct {
	kind  Kind
	reply chan answer // has room for one
}

type answer struct {
	msg  Message
	file *os.File
	err  error
}

// newLine uses the socket f and closes it. left is closed by a KindLeave.
func newLine(f *os.File, left chan struct{}) (*line, error) {
	conn, err := sys.NewPacketConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("opening the keeper's link: %w", err)
	}
	l := &line{
		conn:    conn,
		conns:   make(chan *os.File, 1),
		left:    left,
		room:    make(chan struct{}, mostCalls),
		stopped: make(chan struct{}),
		waiting: make(map[uint64]waiter),
	}
	go l.receive()
	return l, nil
}

// close ends the line and waits for its goroutine. It may be repeated.
func (l *line) close() error {
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

// call sends m, and file along with it unless it is nil, and waits for the
// reply. Only a failed send or a line that is down end the wait: the keeper
// answers everything. file stays the caller's, and the answer's is the caller's
// unless there is an error.
func (l *line) call(m Message, file *os.File) answer {
	if m.Kind != KindWipe {
		l.room <- struct{}{}
		defer func() { <-l.room }()
	}
	reply := make(chan answer, 1)
	l.mu.Lock()
	if l.down != nil {
		l.mu.Unlock()
		return answer{err: l.down}
	}
	l.next++
	m.ID = l.next
	l.waiting[m.ID] = waiter{m.Kind, reply}
	l.calls.Add(1)
	l.mu.Unlock()

	err := l.send(&m, file)
	if err != nil && !errors.Is(err, ErrLink) { // it was never sent
		l.mu.Lock()
		delete(l.waiting, m.ID)
		l.mu.Unlock()
		l.calls.Done()
		select {
		case a := <-reply: // to what was never asked
			closeFile(a.file)
		default:
		}
		return answer{err: err}
	}
	l.calls.Done()
	a := <-reply
	if err != nil {
		a.err = err
	}
	if a.err == nil && a.msg.Errno != 0 {
		a.err = a.msg.Errno
	}
	if a.err != nil {
		closeFile(a.file)
		a.file = nil
	}
	return a
}

// tell sends m, which has no reply.
func (l *line) tell(m Message) error {
	l.mu.Lock()
	if l.down != nil {
		l.mu.Unlock()
		return l.down
	}
	l.calls.Add(1)
	l.mu.Unlock()
	defer l.calls.Done()
	return l.send(&m, nil)
}

// send sends one packet. An error that wraps ErrLink has ended the line; any
// other is about file, and nothing was sent.
func (l *line) send(m *Message, file *os.File) error {
	var b [MessageSize]byte
	m.Encode(&b)
	err := l.conn.Send(b[:], file)
	// A descriptor may be refused: its owner has closed it, or too many are on
	// their way (ETOOMANYREFS, unix(7)). A packet goes whole or not at all.
	gone := errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ENOTCONN)
	if err == nil || file != nil && !gone {
		return err
	}
	// The receiver finds the same end, and answers for everybody.
	_ = l.conn.Shutdown() //nolint:errcheck // the send's error is what matters
	return fmt.Errorf("%w: %w", ErrLink, err)
}

func (l *line) receive() {
	var err error
	for err == nil {
		var b [MessageSize]byte
		var file *os.File
		if file, err = l.conn.Recv(b[:]); err != nil {
			break
		}
		var m Message
		if err = m.Decode(&b); err == nil {
			err = l.deliver(m, file)
		}
		if err != nil {
			closeFile(file)
		}
	}
	l.end(fmt.Errorf("%w: %w", ErrLink, err))
}

// deliver takes file over unless it returns an error.
func (l *line) deliver(m Message, file *os.File) error {
	switch {
	case file != nil && !m.Carries():
		return fmt.Errorf("a %v with a descriptor: %w", m.Kind, ErrFormat)
	case m.Kind == KindControl && !m.Reply && file != nil:
		select {
		case old := <-l.conns:
			closeFile(old)
		default:
		}
		l.conns <- file // never blocks: this goroutine is the only sender
		return nil
	case m.Kind == KindLeave && !m.Reply && l.left != nil:
		if !l.leaving {
			l.leaving = true
			close(l.left)
		}
		return nil
	}
	if !m.Reply {
		return fmt.Errorf("a %v that nobody asked for: %w", m.Kind, ErrFormat)
	}
	l.mu.Lock()
	w, ok := l.waiting[m.ID]
	if ok = ok && w.kind == m.Kind; ok {
		delete(l.waiting, m.ID)
	}
	l.mu.Unlock()
	if !ok {
		return fmt.Errorf("an answer to a %v that nobody asked for: %w", m.Kind, ErrFormat)
	}
	w.reply <- answer{msg: m, file: file}
	// The caller goes on here and now, on this thread, rather than when another
	// processor finds it: a destroyed key is reported some microseconds sooner.
	runtime.Gosched()
	return nil
}

// end answers every call with err, and frees the socket.
func (l *line) end(err error) {
	l.mu.Lock()
	l.down = err
	for id, w := range l.waiting {
		delete(l.waiting, id)
		w.reply <- answer{err: err}
	}
	l.mu.Unlock()
	_ = l.conn.Shutdown() //nolint:errcheck // ends calls that still send; the link's error is err
	l.calls.Wait()
	select {
	case old := <-l.conns:
		closeFile(old)
	default:
	}
	close(l.conns)
	_ = l.conn.Close() //nolint:errcheck // nothing was buffered, nothing can be lost
	close(l.stopped)
}

func closeFile(f *os.File) {
	if f != nil {
		f.Close() //nolint:errcheck // a passed descriptor that is not wanted
	}
}
