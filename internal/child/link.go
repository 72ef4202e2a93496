package child

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A Server deals with the messages of children.
type Server struct {
	// Mu is locked while a message is taken, dealt with and answered: whoever
	// holds it knows that each message either was answered or is still in the
	// socket.
	Mu *sync.Mutex
	// Urgent serves on a thread that the kernel prefers: between a request to
	// destroy a key and the first store there is then nothing but one wake-up.
	Urgent bool
	// Handle deals with m of c and makes it the reply, if there is to be one.
	// file came with m, and becomes Handle's; give goes with the reply, and stays
	// Handle's, unless it returns an error, which ends the link.
	Handle func(c *Child, m *volatile.Message, file *os.File) (give *os.File, err error)
}

// A link is the parent's end of the socket to a child.
type link struct {
	conn   *sys.PacketConn
	urgent chan string   // gets a value, if the server is urgent: how the kernel prefers the thread
	done   chan struct{} // closed when the goroutine that serves has ended
}

// serve uses the socket f, and closes it.
func (c *Child) serve(f *os.File, s Server) error {
	conn, err := sys.NewPacketConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("opening the link of %s: %w", c.Name, err)
	}
	c.link = link{conn: conn, urgent: make(chan string, 1), done: make(chan struct{})}
	go func() {
		if s.Urgent {
			// Never unlocked: the thread ends with the goroutine, and its priority too.
			runtime.LockOSThread()
			c.link.urgent <- sys.Urgent()
		}
		for c.answer(s) == nil {
		}
		// A child whose link is down can ask for nothing any more: let it see.
		conn.Shutdown() //nolint:errcheck // it is down already
		close(c.link.done)
	}()
	return nil
}

// answer takes one message.
func (c *Child) answer(s Server) error {
	if err := c.link.conn.Wait(); err != nil {
		return err
	}
	s.Mu.Lock()
	defer s.Mu.Unlock()
	var b [volatile.MessageSize]byte
	file, err := c.link.conn.RecvNow(b[:])
	if errors.Is(err, syscall.ECONNRESET) {
		return nil // it has ended without reading an answer; what it had asked before comes next
	}
	if err != nil {
		return err
	}
	var m volatile.Message
	if err = m.Decode(&b); err == nil && (m.Reply || m.Carries() != (file != nil)) {
		err = fmt.Errorf("a %v of another form: %w", m.Kind, volatile.ErrFormat)
	}
	if err != nil {
		file.Close() //nolint:errcheck // it may be nil
		return err
	}
	give, err := s.Handle(c, &m, file)
	if err != nil {
		file.Close() //nolint:errcheck // it may be nil, or closed
		return err
	}
	if m.Reply {
		err = c.Send(m, give)
	}
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		return nil // it has ended, and what it had asked for is done all the same
	}
	return err
}

// Send sends m, and file with it unless that is nil. It does not wait: a child
// that does not read must not keep its parent from watching.
func (c *Child) Send(m volatile.Message, file *os.File) error {
	var b [volatile.MessageSize]byte
	m.Encode(&b)
	return c.link.conn.SendNow(b[:], file)
}

// Urgency says how the kernel prefers the thread of an urgent server.
func (c *Child) Urgency() string { return <-c.link.urgent }

// close ends the link when all that the child had sent is dealt with.
func (l *link) close() error {
	// ENOTCONN: the child has closed its end.
	if err := l.conn.Shutdown(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return err
	}
	<-l.done
	return l.conn.Close()
}
