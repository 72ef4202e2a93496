package nbdclient

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// A worker is one connection of a [Verify], over all of its breaks. One goroutine
// sends, one receives; what is answered goes from the second to the first through
// free.
type worker struct {
	r        *verifier
	id       int
	rng      *rand.Rand
	c        *Client       // nil: none, or broken
	free     chan *op      // without a request
	resend   []*op         // without an answer when the connection broke
	doubtful [][2]int      // sectors (first, number) of what was given up
	attempts int           // to connect, since the failure
	failed   time.Time     // when the connection broke; zero once there was an answer
	back     time.Duration // from the failure to transmission

	mu      sync.Mutex // taken by both goroutines
	cookie  uint64
	flying  map[uint64]*op // by cookie
	waiting time.Time      // since when an answer is due; zero if none is
}

func newWorker(r *verifier, id int) *worker {
	w := &worker{
		r: r, id: id, rng: rand.New(rand.NewPCG(r.Seed, uint64(id))),
		free: make(chan *op, r.Depth), flying: make(map[uint64]*op),
	}
	for i := range r.Depth {
		w.free <- &op{slot: id*r.Depth + i}
	}
	return w
}

// phase sends what next makes until that makes nothing more and all is answered,
// over as many connections as it takes.
func (w *worker) phase(next func(*worker, *op) bool) error {
	for {
		if w.c == nil {
			c, err := w.r.dial(w)
			if err != nil {
				return err
			}
			w.use(c)
		}
		if why := w.r.given(); why != nil { // fail may have missed the new connection
			return why
		}
		err := w.converse(next)
		if why := w.r.given(); why != nil {
			return why
		}
		if err == nil {
			return nil
		}
		w.broken(err)
	}
}

// use makes c the worker's connection.
func (w *worker) use(c *Client) {
	w.mu.Lock()
	w.c = c
	w.mu.Unlock()
	if !w.failed.IsZero() {
		w.back = time.Since(w.failed)
		w.r.mu.Lock()
		w.r.report.Reconnects++
		w.r.mu.Unlock()
	}
}

// abort ends the connection from under whoever uses it. It may be called from any
// goroutine.
func (w *worker) abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.c != nil {
		_ = w.c.Abort() // it may be closed
	}
}

// waits returns since when an answer is due; zero if none is.
func (w *worker) waits() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting
}

// converse uses one connection, until it breaks or nothing more is to be done.
func (w *worker) converse(next func(*worker, *op) bool) error {
	// ended is closed by the receiver, which ends when the connection does.
	ended, received := make(chan struct{}), error(nil)
	go func() {
		defer close(ended)
		received = w.receiveAll()
	}()
	err := w.sendAll(next, ended)
	if err == nil { // all is answered, so nothing is lost when the receiver is woken
		err = w.c.conn.SetReadDeadline(time.Unix(1, 0))
		<-ended
		if !errors.Is(received, os.ErrDeadlineExceeded) || err != nil {
			return errors.Join(received, err)
		}
		w.mu.Lock()
		w.waiting = time.Time{}
		w.mu.Unlock()
		return w.c.conn.SetReadDeadline(time.Time{})
	}
	_ = w.c.Abort() // ends the receiver
	<-ended
	if errors.Is(err, errEnded) {
		return received
	}
	return err
}

var errEnded = errors.New("the receiver has ended")

// sendAll sends until next makes nothing more, and waits until all is answered.
func (w *worker) sendAll(next func(*worker, *op) bool, ended <-chan struct{}) error {
	out := bufio.NewWriterSize(w.c.conn, 64<<10)
	for len(w.resend) > 0 {
		o := w.resend[0]
		w.resend = w.resend[1:]
		if o.cmd == cmdRead {
			w.r.model.again(o)
		}
		if err := w.send(out, o); err != nil {
			return err
		}
	}
	for {
		o, err := w.idle(out, ended)
		if err != nil {
			return err
		}
		if w.r.Pause > 0 && !w.r.last.Load() {
			if err := out.Flush(); err != nil {
				w.free <- o
				return err
			}
			select {
			case <-time.After(w.r.Pause):
			case <-ended:
			}
		}
		if !next(w, o) {
			w.free <- o
			break
		}
		if err := w.send(out, o); err != nil {
			return err
		}
	}
	return w.settle(out, ended)
}

// idle returns an op without a request. Before it waits for one, it sends what is
// in out.
func (w *worker) idle(out *bufio.Writer, ended <-chan struct{}) (*op, error) {
	select {
	case o := <-w.free:
		return o, nil
	default:
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	select {
	case o := <-w.free:
		return o, nil
	case <-ended:
		return nil, errEnded
	case <-w.r.done:
		return nil, w.r.why
	}
}

// settle waits until all ops are free.
func (w *worker) settle(out *bufio.Writer, ended <-chan struct{}) error {
	var all []*op
	defer func() {
		for _, o := range all {
			w.free <- o
		}
	}()
	for range w.r.Depth {
		o, err := w.idle(out, ended)
		if err != nil {
			return err
		}
		all = append(all, o)
	}
	return nil
}

// send sends o under a cookie that no request had before.
func (w *worker) send(out *bufio.Writer, o *op) error {
	off := w.r.model.stampOf(o.first, 0).off
	if o.cmd == cmdFlush {
		off = 0
	}
	w.mu.Lock()
	w.cookie++
	cookie := w.cookie
	o.answer = answer{c: w.c, r: request{cmd: o.cmd, flags: o.flags, off: off, length: o.length(), cookie: cookie}}
	if o.cmd == cmdRead {
		o.answer.r.into = o.buf
	}
	w.flying[cookie] = o
	if w.waiting.IsZero() {
		w.waiting = time.Now()
	}
	w.mu.Unlock()
	var header [28]byte
	putRequest(header[:], o.flags, o.cmd, cookie, uint64(off), uint32(o.length()))
	if _, err := out.Write(header[:]); err != nil {
		return err
	}
	if o.cmd == cmdWrite {
		_, err := out.Write(o.buf)
		return err
	}
	return nil
}

// receiveAll receives until the connection breaks. After an answer that makes no
// sense it breaks it.
func (w *worker) receiveAll() error {
	w.c.in = bufio.NewReaderSize(w.c.conn, 256<<10)
	for {
		var b [20]byte
		if err := w.c.readFull(b[:16]); err != nil {
			return err
		}
		if err := w.message(&b); err != nil {
			if !isBreak(err) {
				w.r.mu.Lock()
				w.r.report.Nonsense++
				if w.r.report.FirstNonsense == nil {
					w.r.report.FirstNonsense = err
				}
				w.r.mu.Unlock()
			}
			_ = w.c.Abort() // err tells why
			return err
		}
	}
}

// isBreak reports whether err is a connection's end, and not an answer's fault.
func isBreak(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op)
}

// message receives the message that begins with b[:16].
func (w *worker) message(b *[20]byte) error {
	cookie := binary.BigEndian.Uint64(b[8:])
	w.mu.Lock()
	o := w.flying[cookie]
	w.mu.Unlock()
	if o == nil {
		return unsent(cookie)
	}
	if err := o.answer.rest(b); err != nil || !o.answer.done {
		return err
	}
	err := o.answer.result()
	var failed *Error
	if err != nil && !errors.As(err, &failed) {
		return err
	}
	w.finish(o, cookie, err)
	return nil
}

// finish ends o, which was answered: err is what the server says went wrong.
func (w *worker) finish(o *op, cookie uint64, err error) {
	now := time.Now()
	w.mu.Lock()
	delete(w.flying, cookie)
	since := w.waiting
	w.waiting = time.Time{}
	if len(w.flying) > 0 {
		w.waiting = now
	}
	w.mu.Unlock()
	w.stalled(since, now)
	w.judge(o, err)
	w.free <- o
}

// judge compares o, which was answered, with the model, and counts it.
func (w *worker) judge(o *op, err error) {
	m := w.r.model
	var wrong []Wrong
	switch {
	case o.cmd == cmdRead && err == nil:
		m.look(o)
		wrong = m.check(o)
	case o.cmd == cmdRead:
		m.unread(o)
	case o.writes() && err == nil:
		m.landed(o)
	case o.writes():
		m.giveUp(o)
	}
	last := w.r.last.Load()
	w.r.mu.Lock()
	w.r.report.count(o, err)
	w.r.report.addWrong(wrong, last)
	if last && err == nil {
		w.r.report.Verified += int64(o.length())
	}
	w.r.mu.Unlock()
}

// stalled notes a stall that ends now, if there was one.
func (w *worker) stalled(since, now time.Time) {
	s := Stall{Connection: w.id, Start: since, Duration: now.Sub(since)}
	if !w.failed.IsZero() {
		s.Broken, s.Reconnect, s.Attempts = true, w.back, w.attempts
		w.failed, w.attempts = time.Time{}, 0
	} else if w.r.Gap == 0 || s.Duration < w.r.Gap {
		return
	}
	w.r.mu.Lock()
	w.r.report.addStall(s)
	w.r.mu.Unlock()
}

// broken takes stock after the connection broke: what had no answer is sent again
// or given up. Neither goroutine of the connection is left.
func (w *worker) broken(why error) {
	resent, givenUp := int64(0), int64(0)
	w.mu.Lock()
	_ = w.c.Abort() // it may be closed
	w.c = nil
	if w.failed.IsZero() {
		w.failed = time.Now()
		w.attempts = 0
		if w.waiting.IsZero() {
			w.waiting = w.failed
		}
	}
	for _, cookie := range slices.Sorted(maps.Keys(w.flying)) {
		o := w.flying[cookie]
		if o.writes() && w.rng.Float64() >= w.r.Resend {
			w.r.model.giveUp(o)
			w.doubtful = append(w.doubtful, [2]int{o.first, o.n})
			givenUp++
			w.free <- o
			continue
		}
		w.resend = append(w.resend, o)
		resent++
	}
	clear(w.flying)
	w.mu.Unlock()
	w.r.mu.Lock()
	w.r.report.LastBreak = why
	w.r.report.Resent += resent
	w.r.report.GivenUp += givenUp
	w.r.mu.Unlock()
}
