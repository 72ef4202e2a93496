package keeper

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// A link is the keeper's end of the socket to one engine, and what that engine
// asked the keeper to hold. One goroutine, on a thread of its own that the
// kernel prefers, answers requests one after the other: between a request to
// destroy a key and the first store there is nothing but one wake-up.
type link struct {
	conn   *sys.PacketConn
	keys   *volatile.Keys
	maps   [volatile.Slots]*os.File // the goroutine's until done
	mapped atomic.Int32             // how many of maps are not nil
	urgent chan string              // gets one value: how the kernel prefers the thread
	done   chan struct{}            // closed when the goroutine has ended
	others sync.WaitGroup           // what sendControl and unmap have begun
}

// newLink returns a link and the engine's end of its socket.
func newLink(keys *volatile.Keys) (*link, *os.File, error) {
	mine, theirs, err := sys.PacketPair()
	if err != nil {
		return nil, nil, err
	}
	conn, err := sys.NewPacketConn(mine)
	mine.Close() //nolint:errcheck // conn has its own descriptor
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	l := &link{conn: conn, keys: keys, urgent: make(chan string, 1), done: make(chan struct{})}
	go l.serve()
	return l, theirs, nil
}

// close ends the goroutine and forgets all maps.
func (l *link) close() error {
	// ENOTCONN: the engine has closed its end.
	if err := l.conn.Shutdown(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
		return err
	}
	<-l.done
	l.others.Wait()
	errs := []error{l.conn.Close()}
	for i, f := range l.maps {
		if f != nil {
			errs = append(errs, f.Close())
			l.maps[i] = nil
		}
	}
	return errors.Join(errs...)
}

// sendControl gives the engine a connection to control, and closes f. It does
// not wait: an engine that does not read must not keep the keeper from watching.
func (l *link) sendControl(f *os.File) {
	var b [volatile.MessageSize]byte
	(&volatile.Message{Kind: volatile.KindControl}).Encode(&b)
	l.others.Go(func() {
		defer f.Close()      //nolint:errcheck // the engine has its own
		l.conn.Send(b[:], f) //nolint:errcheck // the engine is ending, and that is seen elsewhere
	})
}

func (l *link) serve() {
	// Never unlocked: the thread ends with the goroutine, and its priority too.
	runtime.LockOSThread()
	l.urgent <- sys.Urgent()
	for l.answer() == nil {
	}
	// An engine whose link is down can no longer close a lease: let it see.
	l.conn.Shutdown() //nolint:errcheck // it is down already
	close(l.done)
}

func (l *link) answer() error {
	var b [volatile.MessageSize]byte
	file, err := l.conn.Recv(b[:])
	if file != nil {
		file.Close() //nolint:errcheck // no request carries a descriptor
	}
	if err != nil {
		return err
	}
	var m volatile.Message
	if err := m.Decode(&b); err != nil {
		return err
	}
	reply := volatile.Message{Kind: m.Kind, Reply: true, Slot: m.Slot, ID: m.ID}
	switch {
	case m.Reply || m.Kind == volatile.KindControl:
		return fmt.Errorf("the engine sent a %v, which is the keeper's: %w", m.Kind, volatile.ErrFormat)
	case m.Slot >= volatile.Slots:
		reply.Errno, file = syscall.EINVAL, nil
	case m.Kind == volatile.KindWipe:
		l.wipe(int(m.Slot), &reply)
		file = nil
	case m.Kind == volatile.KindMap:
		file, reply.Errno = l.mapSlot(int(m.Slot), &m)
	case m.Kind == volatile.KindUnmap:
		reply.Errno, file = l.unmap(int(m.Slot)), nil
	default:
		reply.Errno, file = syscall.ENOSYS, nil
	}
	reply.Encode(&b)
	return l.conn.Send(b[:], file)
}

func (l *link) wipe(slot int, reply *volatile.Message) {
	reply.StartedNs = sys.BoottimeNs()
	err := l.keys.Wipe(slot)
	reply.DoneNs = sys.BoottimeNs()
	reply.ReadBack = err == nil
	if err != nil {
		reply.Errno = syscall.EIO
	}
}

// mapSlot makes a block map and keeps its file, which stays the link's.
func (l *link) mapSlot(slot int, m *volatile.Message) (*os.File, syscall.Errno) {
	if l.maps[slot] != nil {
		return nil, syscall.EEXIST
	}
	if !l.keys.Empty(slot) {
		return nil, syscall.EBUSY
	}
	extents := int(min(m.Arg, volatile.MaxExtents+1))
	f, err := volatile.CreateMap(m.Blocks, extents, m.Lease)
	if errors.Is(err, volatile.ErrFormat) {
		return nil, syscall.EINVAL
	}
	if err != nil {
		errno := syscall.ENOMEM
		errors.As(err, &errno)
		return nil, errno
	}
	l.maps[slot] = f
	l.mapped.Add(1)
	return f, 0
}

func (l *link) unmap(slot int) syscall.Errno {
	switch {
	case !l.keys.Empty(slot):
		return syscall.EBUSY
	case l.maps[slot] == nil:
		return 0
	}
	// Freeing a map takes a millisecond a TiB that was written, and another lease's
	// key must not wait for that.
	f := l.maps[slot]
	l.others.Go(func() { f.Close() }) //nolint:errcheck // a memfd: closing frees it, nothing is written
	l.maps[slot] = nil
	l.mapped.Add(-1)
	return 0
}
