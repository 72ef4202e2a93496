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
	"vacate/internal/poll"
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

	// Made by enter. rx[head:tail] was received and not yet used; it lies in the
	// gap behind rxUse.last.
	queue            blk.Queue
	bypass           blk.Bypasser // queue, or nil
	rxRegion, region *mem.Region  // of rx, of tx
	rx, tx           []byte
	rxUse, txUse     arena // payloads of writes in flight; replies with data
	head, tail       int

	slots    []slot
	free     []*slot        // without a request
	submit   []*blk.Request // staged for the next submission
	inflight int            // requests that were submitted and are not complete
	taken    int            // requests of the last gather
	laid     int            // bytes of replies with data of the last gather
	alone    bool           // a request that goes alone is under way (large.go)
	out      outbox
	runs     runs
	status   statusWriter
	pieces   sys.Pieces
	round    round

	wait    blk.Wait
	ready   []sys.Ready // of await
	hungUp  bool        // the socket has been seen to be hung up
	over    error       // nothing more can be received, and why
	polling poll.Budget
	tally   tally
	tid     atomic.Int32 // of the thread; 0 before it runs
	waiting atomic.Bool  // the thread waits for its client, and may be woken

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
	c.furnish()
	// Best effort: a smaller socket buffer means more, shorter writes.
	_ = sys.SetSocketBuffers(c.fd, socketBuffer, 0)
	return nil
}

// furnish makes what goes with queue and buffers.
func (c *conn) furnish() {
	cfg := &c.server.cfg
	c.bypass, _ = c.queue.(blk.Bypasser)
	c.makeSlots(cfg.QueueDepth)
	c.rxUse.init(rxSize)
	c.txUse.init(txSize)
	c.out.init(cfg.QueueDepth, txSize, len(c.tx))
	c.runs.init(cfg.Map, cfg.QueueDepth)
	c.status.init(cfg.Map)
	c.polling = poll.New(cfg.Poll)
	c.round.pieces = make([]piece, 0, maxPieces)
}

func (c *conn) makeBuffers() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rxRegion, err = mem.Map(rxSize, c.server.cfg.Lock); err != nil {
		return err
	}
	if c.region, err = mem.Map(txSize+(c.server.cfg.QueueDepth+smallReplies)*smallReply, c.server.cfg.Lock); err != nil {
		return err
	}
	c.rx, c.tx = c.rxRegion.Bytes(), c.region.Bytes()
	return nil
}

// leave undoes enter. REQUIRES: nothing in flight (N4).
func (c *conn) leave() error {
	if c.inflight != 0 {
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
	c.queue, c.bypass, c.rxRegion, c.region, c.rx, c.tx = nil, nil, nil, nil, nil, nil
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

// recv receives at least one byte.
func (c *conn) recv(p []byte) (int, error) {
	n, errno := sys.RecvNow(c.fd, p)
	if errno == syscall.EAGAIN {
		n, errno = sys.Recv(c.fd, p)
	}
	return judge(n, errno)
}

// judge says what it means what a call returned that should have received at least
// one byte.
func judge(n int, errno syscall.Errno) (int, error) {
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
