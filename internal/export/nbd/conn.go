package nbd

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/plant"
	"vacate/internal/sys"
)

// Why a connection ends. All but errGarbage are the client's or our own good
// right.
var (
	errEnd     = errors.New("the client closed the connection")
	errGarbage = errors.New("the client does not keep to the protocol")
	errHalf    = errors.New("a read failed after half of its reply was sent")
)

// A conn is one client's connection. All fields belong to its goroutine, except
// where said.
//
//	handshake ── optGo, optExportName ──> transmission ── cmdDisc, end ──> ended
//	    │                      Adopt ──────────┘ └── Leave ──> passed        │
//	    └── optAbort, timeout, garbage, Close ──────────────────────────────┘
type conn struct {
	server  *Server
	fd      int  // never changes
	adopted bool // from another server; never changes

	// Negotiated in the handshake.
	terms   terms
	noZeros bool   // no padding after the answer to optExportName
	refusal string // not empty: why this peer gets nothing
	release func() // gives the place in the host's budget back; may be nil

	// Made by enter. rx[head:tail] was received and not yet used.
	queue            blk.Queue
	rxRegion, region *mem.Region // of rx, of tx
	rx, tx           []byte
	head, tail       int
	batch            batch
	tally            tally
	tid              atomic.Int32 // of the thread; 0 before it runs
	waiting          atomic.Bool  // in await: the thread may be woken

	mu   sync.Mutex
	gone bool // under mu: fd is closed, and its number may be another file's
	// rx and tx change under mu too, so that a test can search them.
}

// run serves the connection from its first byte to its last.
func (c *conn) run() {
	// Never unlocked: the thread ends with the connection.
	runtime.LockOSThread()
	c.tid.Store(int32(syscall.Gettid()))
	defer c.server.forget(c)

	timeout := time.AfterFunc(c.server.cfg.HandshakeTimeout, c.shutdown)
	entered, err := false, sys.Wakeable()
	if err == nil {
		entered, err = c.handshake()
	}
	timeout.Stop()
	<-c.server.places
	if entered {
		err = c.transmit()
	}
	c.finish(err)
}

// finish gives everything back, after the connection has come to its end for the
// reason err.
func (c *conn) finish(err error) {
	c.tally.add(&c.server.counters)
	if errors.Is(err, errGarbage) {
		c.server.counters.garbage.Add(1)
	}
	if errors.Is(err, errBoundary) {
		err = errors.Join(c.leave(), c.server.pass(c))
	} else {
		err = errors.Join(err, c.end())
	}
	if err != nil && !errors.Is(err, errEnd) {
		c.server.cfg.Log.Debug("an NBD connection ended", "error", err)
	}
}

// enter makes what transmission needs. The error's text is for the client; after
// an error nothing is left behind.
func (c *conn) enter() error {
	admit := c.server.cfg.Admit
	if c.adopted {
		admit = c.server.cfg.Readmit
	}
	release, err := admit()
	if err != nil {
		return err
	}
	c.release = release
	if err := c.makeBuffers(); err != nil {
		return errors.Join(fmt.Errorf("no memory for another connection: %w", err), c.leave())
	}
	c.queue, err = c.server.cfg.Export.NewQueue(c.server.cfg.QueueDepth)
	if err != nil {
		return errors.Join(fmt.Errorf("no queue for another connection: %w", err), c.leave())
	}
	c.batch.init(c, c.server.cfg.QueueDepth)
	// Best effort: a smaller socket buffer means more, shorter writes.
	_ = sys.SetSocketBuffers(c.fd, socketBuffer, 0)
	return nil
}

func (c *conn) makeBuffers() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rxRegion, err = mem.Map(rxSize, c.server.cfg.Lock); err != nil {
		return err
	}
	if c.region, err = mem.Map(txSize, c.server.cfg.Lock); err != nil {
		return err
	}
	c.rx, c.tx = c.rxRegion.Bytes(), c.region.Bytes()
	return nil
}

// leave undoes enter. REQUIRES: nothing in flight (N4).
func (c *conn) leave() error {
	if c.batch.inflight != 0 {
		panic("nbd: connection ends with requests in flight")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	if c.queue != nil {
		errs = append(errs, c.queue.Close())
	}
	for _, r := range []*mem.Region{c.rxRegion, c.region} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	c.queue, c.rxRegion, c.region, c.rx, c.tx = nil, nil, nil, nil, nil
	if c.release != nil {
		c.release()
		c.release = nil
	}
	return errors.Join(errs...)
}

// end gives everything back.
func (c *conn) end() error {
	err := c.leave()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	return errors.Join(err, sys.CloseFD(c.fd))
}

// shutdown wakes the connection's goroutine if it waits for the client, and
// makes it end. It may be called from any goroutine.
func (c *conn) shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		_ = sys.Shutdown(c.fd) // ENOTCONN: the client was faster
	}
}

// transmit serves requests until the client leaves.
func (c *conn) transmit() error {
	for {
		if checked && syscall.Gettid() != int(c.tid.Load()) {
			panic("nbd: connection left its thread")
		}
		next := c.gather()
		if c.batch.n > 0 {
			if err := c.carryOut(); err != nil {
				return err
			}
		}
		var err error
		switch next {
		case starved:
			err = c.fill()
		case big:
			err = c.large()
		case disconnect:
			return nil
		case garbage:
			err = errGarbage
		}
		if err != nil {
			return err
		}
	}
}

// fill receives at least one byte more behind rx[:tail], and waits for it. The
// request at rx[head:] is not whole.
func (c *conn) fill() error {
	have := c.tail - c.head
	need := requestSize
	if have >= requestSize {
		r, _ := parseRequest(c.rx[c.head:])
		need += r.payload()
	}
	if c.head > 0 && (have <= smallMove || c.head+need > len(c.rx)) {
		c.moveToFront()
	}
	n, err := c.recvMore(need - have)
	c.tail += n
	return err
}

// moveToFront moves rx[head:tail] to the front, and clears where it was (N2).
func (c *conn) moveToFront() {
	n := copy(c.rx, c.rx[c.head:c.tail])
	wipe(c.rx[max(n, c.head):c.tail])
	c.head, c.tail = 0, n
}

// recv receives at least one byte.
func (c *conn) recv(p []byte) (int, error) {
	n, errno := sys.RecvNow(c.fd, p)
	if errno == syscall.EAGAIN {
		n, errno = sys.Recv(c.fd, p)
	}
	return received(n, errno)
}

// received judges what a call said that should have received at least one byte.
func received(n int, errno syscall.Errno) (int, error) {
	switch {
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, errEnd
	}
	return n, nil
}

// recvFull fills p.
func (c *conn) recvFull(p []byte) error {
	for len(p) > 0 {
		n, err := c.recv(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// send sends all of p.
func (c *conn) send(p []byte) error {
	for len(p) > 0 {
		n, errno := sys.SendNow(c.fd, p)
		if errno == syscall.EAGAIN {
			n, errno = sys.Send(c.fd, p)
		}
		if errno != 0 {
			return errno
		}
		p = p[n:]
	}
	return nil
}

// wipe clears a part of a connection's buffers.
func wipe(b []byte) {
	if !plant.Is(plant.BufferNotCleared) {
		mem.Wipe(b)
	}
}
