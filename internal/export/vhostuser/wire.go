package vhostuser

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"vacate/internal/sys"
	"vacate/internal/uring"
)

// A message is looked at while it lies in the socket, and taken out of it and
// answered in one system call when what it asks for is done. Whenever the process
// is killed, the message is there for a successor, or it is answered; there is
// nothing between (io_uring carries submissions that need not wait out in their
// order, within the call that hands them over). Where there is no io_uring two
// calls must do, the taking first: a frontend that waits for a reply which never
// comes is worse off than one whose message is done again, but one that gets two
// replies takes the second for that to its next message.

// A wire is the connection to a frontend. It belongs to one goroutine, which stays
// on its thread.
type wire struct {
	fd     int
	ring   *uring.Ring // nil: there is none
	parcel *sys.Parcel
	buf    []byte // of what is peeked; never moves
	pieces []int  // how what was peeked lies in the socket: a piece a recv
}

// How long a frontend may take between the parts of one message, and how often it
// is looked at meanwhile: a socket with half a message in it is readable.
const (
	partTimeout  = 10 * time.Second
	firstPartGap = time.Millisecond
	lastPartGap  = 50 * time.Millisecond
)

var (
	errHungUp  = errors.New("the frontend has hung up")
	errNothing = errors.New("no whole message is there")
)

// maxPieces is in how many sends a message may come. Beyond it: garbage.
const maxPieces = 8

// newWire uses the connection fd, which it owns from now on, also after an error.
func newWire(fd int) (*wire, error) {
	parcel, err := sys.NewParcel()
	if err != nil {
		return nil, errors.Join(err, sys.CloseFD(fd))
	}
	w := &wire{fd: fd, parcel: parcel}
	// A predecessor that was killed between two pieces of a message has left it
	// where the second begins: the offset is the socket's, not a process's.
	if err := errors.Join(sys.PeekFrom(fd, -1), sys.UrgentInline(fd)); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if w.buf, err = sys.MapAnonymous(headerSize + maxPayload + 1); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if w.ring, err = uring.New(maxPieces + 1); err != nil {
		w.ring = nil // two calls must do
	}
	return w, nil
}

// peek returns the message that waits, whole. errNothing: none does; partial says
// that a part of one does.
func (w *wire) peek() (m message, partial bool, err error) {
	n, errno := sys.PeekHead(w.fd, w.buf[:headerSize])
	switch {
	case errno == syscall.EAGAIN:
		return m, false, errNothing
	case errno != 0:
		return m, false, fmt.Errorf("%w: %w", errHungUp, errno)
	case n == 0:
		return m, false, errHungUp
	}
	if n < headerSize { // one send with descriptors, or one of which not all is there
		if err := w.peekAll(&m, headerSize); err != nil {
			m.close()
			return message{}, true, err
		}
		m.close()
	}
	m, size, err := parseHeader(w.buf)
	if err != nil {
		return m, false, err
	}
	err = w.peekAll(&m, headerSize+size)
	if err != nil {
		m.close()
		return message{}, true, err
	}
	m.payload = w.buf[headerSize : headerSize+size]
	return m, false, nil
}

// peekAll copies the first size bytes that wait, and takes duplicates of what came
// with them.
func (w *wire) peekAll(m *message, size int) (err error) {
	w.pieces = w.pieces[:0]
	moved := false
	for at := 0; at < size; {
		// One byte more than the message has: in a look at what has no descriptors
		// the kernel goes on to the next message, and gives out those of that
		// although no room is left for its bytes (net/unix/af_unix.c). With room for
		// one, it tells by that byte.
		n, files, errno := sys.PeekFiles(w.fd, w.buf[at:size+1])
		if n > size-at {
			later := message{files: files}
			later.close()
			n, files = size-at, nil
		}
		m.files = append(m.files, files...)
		switch {
		case errno == syscall.EMSGSIZE:
			err = fmt.Errorf("a message with more than %d descriptors: %w", sys.MaxPassed, errGarbage)
		case errno == syscall.EAGAIN:
			err = errNothing
		case errno != 0:
			err = fmt.Errorf("%w: %w", errHungUp, errno)
		case n == 0:
			err = fmt.Errorf("%w in the middle of a message", errHungUp)
		case len(w.pieces) == maxPieces:
			err = fmt.Errorf("a message in more than %d pieces: %w", maxPieces, errGarbage)
		}
		if err != nil {
			break
		}
		w.pieces = append(w.pieces, n)
		if at += n; at < size {
			moved = true
			if err = sys.PeekFrom(w.fd, at); err != nil {
				break
			}
		}
	}
	if moved {
		err = errors.Join(err, sys.PeekFrom(w.fd, -1))
	}
	return err
}

// answer takes the message that was peeked out of the socket, and sends reply,
// unless it is empty, with a descriptor, unless that is -1. An error is the end of the
// connection.
//
// REQUIRES: peek returned a message, and writable has returned true since.
func (w *wire) answer(reply []byte, fd int) error {
	if w.ring == nil || len(reply) == 0 && len(w.pieces) == 1 {
		return w.answerPlainly(reply, fd, w.pieces)
	}
	at := 0
	for i, n := range w.pieces {
		w.ring.Recv(uint64(i), w.fd, w.buf[at:at+n])
		at += n
	}
	want := len(w.pieces)
	if len(reply) > 0 {
		w.parcel.Fill(reply, fd)
		w.ring.Send(uint64(want), w.fd, w.parcel)
		want++
	}
	return w.reap(want, reply, fd)
}

// reap waits for what answer submitted.
func (w *wire) reap(want int, reply []byte, file int) error {
	var sent, received error
	for done := 0; done < want; {
		if errno := w.ring.Enter(true); errno != 0 {
			return fmt.Errorf("taking a message: io_uring_enter: %w", errno)
		}
		for c, ok := w.ring.Next(); ok; c, ok = w.ring.Next() {
			done++
			switch i := int(c.ID); {
			case i < len(w.pieces) && (c.Errno != 0 || c.N != w.pieces[i]):
				received = fmt.Errorf("taking a message: %d of %d bytes: %w", c.N, w.pieces[i], cmpErrno(c.Errno))
			case i == len(w.pieces) && c.Errno == syscall.EINVAL: // Linux before 6.0: no descriptors
				sent = w.answerPlainly(reply, file, nil)
			case i == len(w.pieces) && (c.Errno != 0 || c.N != len(reply)):
				sent = fmt.Errorf("sending a reply: %d of %d bytes: %w", c.N, len(reply), cmpErrno(c.Errno))
			}
		}
	}
	return errors.Join(received, sent)
}

func cmpErrno(e syscall.Errno) error {
	if e == 0 {
		return syscall.EIO // short
	}
	return e
}

// answerPlainly receives pieces and sends a reply, a call each.
func (w *wire) answerPlainly(reply []byte, file int, pieces []int) error {
	for _, n := range pieces {
		if got, errno := sys.RecvNow(w.fd, w.buf[:n]); errno != 0 || got != n {
			return fmt.Errorf("taking a message: %d of %d bytes: %w", got, n, cmpErrno(errno))
		}
	}
	if len(reply) == 0 {
		return nil
	}
	if n, errno := sys.SendFile(w.fd, reply, file); errno != 0 || n != len(reply) {
		return fmt.Errorf("sending a reply: %d of %d bytes: %w", n, len(reply), cmpErrno(errno))
	}
	return nil
}

// writable reports whether a reply would find room now.
func (w *wire) writable() bool {
	f := []sys.Ready{{FD: int32(w.fd), Events: sys.ReadyWrite}}
	return sys.WaitReady(f, 0, 1) == 0 && f[0].Got&sys.ReadyWrite != 0
}

// hungUp reports whether the frontend has closed its end, whatever waits yet.
func hungUp(fd int) bool {
	f := []sys.Ready{{FD: int32(fd)}}
	return sys.WaitReady(f, 0, 1) == 0 && f[0].Got&sys.ReadyHangup != 0
}

// close frees everything. Towards the frontend the connection is closed if nobody
// else holds it.
func (w *wire) close() error {
	errs := []error{sys.CloseFD(w.fd), w.parcel.Close()}
	if w.buf != nil {
		errs = append(errs, sys.Unmap(w.buf))
	}
	if w.ring != nil {
		errs = append(errs, w.ring.Close())
	}
	return errors.Join(errs...)
}
