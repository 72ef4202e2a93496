package nbd

import (
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// The event loop of a connection. Each turn:
//
//  1. gather takes what requests are there, and answers what needs no I/O.
//  2. launch submits the others, and reaps what is done.
//  3. flush sends what is done. A request waits for no other one of its batch.
//  4. If nothing of that moved anything, the loop waits: with nothing in flight in
//     recv (fill), else for the socket and the drive at once (await); before
//     either it may poll for a short while (poll.go).
//
// Where the volume completes everything within Submit, as drives in memory do, a
// turn is one recv, one submission and one send.
//
//	E1: with requests in flight the thread never waits for its client alone: what
//	    they hold (blocks, tickets, the gate) others may wait for.
//	E2: it sleeps only when Reap(false) has just found nothing to do.
//	E3: the connection ends with nothing in flight; but for a socket that takes
//	    nothing any more, with everything answered.
//	E4: once the client is known to be gone, nothing is begun for it any more. It may
//	    have connected again, and what it writes there must not be overwritten.

// transmit serves requests until the client leaves.
func (c *conn) transmit() error {
	err := c.serve()
	if q, ok := c.queue.(blk.Quitter); ok {
		q.Quit() // E4: nothing is in flight, or nobody to be answered
	}
	// What is done, and what never will be, is cleared before the rest is waited for:
	// a drive may hang (N2, N3).
	wipe(c.rx[c.head:c.tail])
	for c.discard(); c.inflight > 0; c.discard() {
		c.mustReap()
	}
	return err
}

func (c *conn) serve() error {
	for {
		if checked && syscall.Gettid() != int(c.tid.Load()) {
			panic("nbd: connection left its thread")
		}
		next := c.gather()
		moved := c.launch()
		if err := c.flush(); err != nil {
			return err
		}
		var err error
		switch {
		case c.quiet():
			err = c.proceed(next, moved)
		case moved:
			c.look(next)
		case next == enough || next == held && c.out.empty():
		default:
			err = c.await(next)
		}
		if err != nil {
			return err
		}
	}
}

// look receives what has come meanwhile, so that a drive which completes in bursts
// is given more before all of a burst is answered.
func (c *conn) look(next next) {
	if window := c.wanted(next); window != nil {
		c.receive(window)
	}
}

// wanted is the window to receive into; nil if nothing can be taken now.
func (c *conn) wanted(next next) []byte {
	leaving := c.server.leaving.Load()
	if next != starved || c.over != nil || leaving && c.head == c.tail {
		return nil
	}
	return c.window(leaving)
}

// quiet reports whether all that was taken was answered.
func (c *conn) quiet() bool { return c.inflight == 0 && c.out.empty() }

// launch submits what is staged, and reaps. It reports whether that moved
// anything.
func (c *conn) launch() bool {
	c.inflight += len(c.submit)
	before, reaped := c.inflight, 0
	if len(c.submit) > 0 {
		c.queue.Submit(c.submit)
		c.submit = c.submit[:0]
	}
	if c.inflight > 0 {
		reaped = c.queue.Reap(false)
	}
	return reaped > 0 || c.inflight < before
}

// mustReap waits for a completion. REQUIRES: something is in flight.
func (c *conn) mustReap() {
	if c.queue.Reap(true) == 0 && c.inflight > 0 {
		panic("nbd: Reap returned with requests in flight")
	}
}

// proceed does what is next when all is quiet; moved says whether it just became
// so.
func (c *conn) proceed(next next, moved bool) error {
	switch next {
	case starved:
		if c.over != nil {
			return c.over
		}
		return c.fill()
	case big:
		return c.goAlone()
	case disconnect:
		return errEnd
	case garbage:
		return errGarbage
	case full:
		if c.taken == 0 && !moved {
			panic("nbd: a request finds no room in an empty connection")
		}
	}
	return nil
}

// fill receives at least one byte of the request at rx[head:], which is not whole,
// and waits for it. Once the server leaves it takes none beyond that request; if it
// holds none of one, the connection is at its boundary. REQUIRES: all is quiet.
func (c *conn) fill() error {
	for {
		leaving := c.server.leaving.Load()
		if leaving && c.head == c.tail {
			return errBoundary
		}
		window := c.window(leaving)
		if c.receive(window) {
			return nil
		}
		var n int
		var errno syscall.Errno
		switch {
		case leaving:
			n, errno = sys.Recv(c.fd, window)
		case c.poll(window):
			return nil
		default:
			n, errno = c.recvWake(window)
		}
		if errno != syscall.EINTR {
			c.received(n, errno)
			return nil
		}
	}
}

// recvWake receives as [sys.RecvWake], so that Leave can end it.
func (c *conn) recvWake(p []byte) (int, syscall.Errno) {
	c.waiting.Store(true)
	defer c.waiting.Store(false)
	// After the store: either this sees leaving, or wakeAll sees waiting.
	if c.server.leaving.Load() {
		return 0, syscall.EINTR
	}
	return sys.RecvWake(c.fd, p)
}

// How long await sleeps at most.
const (
	// The volume has named a time: what it waits for may come sooner, when a rate
	// limit is raised or the lease is shut.
	longestWait = int64(100 * time.Millisecond)
	// Something of the volume's waits that nothing announces, such as another
	// connection's request, beside something that is announced.
	blindWait = int64(time.Millisecond)
)

// await waits until something can move: a request is complete, or may begin; more
// of a request has come, if one can be taken; or there is room to send. It may
// return early.
func (c *conn) await(next next) error {
	if c.hungUp && next == starved && c.over != nil {
		return c.over
	}
	leaving := c.server.leaving.Load()
	window := c.wanted(next)
	if c.inflight == 0 {
		return c.sendWait()
	}
	if c.out.empty() && c.poll(window) {
		return nil
	}
	c.wait.Reset()
	blk.Pending(c.queue, &c.wait)
	if c.wait.Due == 1 { // now
		return nil
	}
	if len(c.wait.FDs) == 0 && (c.wait.Blind || c.wait.Due == 0) {
		if window == nil || !c.receive(window) {
			c.mustReap()
		}
		return nil
	}
	if c.sleep(window != nil, leaving) && window != nil {
		c.receive(window)
	}
	return nil
}

// sleep waits for the volume, and for the socket too, with receive until it can be
// received from. It reports whether the socket has something to say.
func (c *conn) sleep(receive, leaving bool) bool {
	events := int16(0)
	if receive {
		events |= sys.ReadyRead
	}
	if !c.out.empty() {
		events |= sys.ReadyWrite
	}
	socket := sys.Ready{FD: int32(c.fd), Events: events}
	if c.hungUp && events == 0 {
		socket.FD = -1 // it would say so again and again
	}
	c.ready = append(c.ready[:0], socket)
	for _, fd := range c.wait.FDs {
		c.ready = append(c.ready, sys.Ready{FD: fd, Events: sys.ReadyRead})
	}
	most := int64(0)
	switch {
	case c.wait.Blind:
		most = blindWait
	case c.wait.Due != 0:
		most = longestWait
	}
	if !leaving {
		c.waiting.Store(true)
		defer c.waiting.Store(false)
		if c.server.leaving.Load() { // as in recvWake
			return false
		}
	}
	switch errno := sys.WaitReady(c.ready, c.wait.Due, most); errno {
	case 0:
	case syscall.EINTR:
		return false
	default: // no memory
		c.mustReap()
		return false
	}
	got := c.ready[0].Got
	c.hungUp = c.hungUp || got&sys.ReadyHangup != 0
	return got != 0
}
