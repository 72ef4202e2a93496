package nbdclient

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"
)

// A Pattern is what a [Load] asks for.
type Pattern uint8

// The patterns.
const (
	RandomRead Pattern = iota
	RandomWrite
	SequentialRead
	SequentialWrite
)

func (p Pattern) String() string {
	return [...]string{"random read", "random write", "sequential read", "sequential write"}[p]
}

func (p Pattern) writes() bool { return p == RandomWrite || p == SequentialWrite }

// A Load keeps Depth requests in flight on one connection. Each round it reads
// all replies that are there with one large read, and sends a new request for
// each with one write.
//
// What a read is answered with must cover all of it, in data or in holes; it is
// not looked at.
type Load struct {
	Pattern   Pattern
	Depth     int           // default 32
	BlockSize int           // bytes a request; default 4096
	Off, Span int64         // the part of the export to use; Span 0 means the rest
	Requests  int64         // end after as many; 0 means no limit
	Duration  time.Duration // end after this time; 0 means no limit
	Seed      uint64

	// Flush sends a flush after each write that was answered; the pair counts as
	// one request, from the write's sending to the flush's answer.
	Flush bool
}

// A Result is what a [Load] did.
type Result struct {
	Requests   int64 // answered, with or without an error
	Bytes      int64 // of requests without an error
	Errors     int64 // requests answered with an error
	FirstError syscall.Errno
	Elapsed    time.Duration
	// Of a request, from sent to seen answered.
	P50, P99, P999 time.Duration
}

// PerSecond returns the requests answered a second.
func (r Result) PerSecond() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

func (r Result) String() string {
	return fmt.Sprintf("%.0f requests/s, %.2f GB/s, p50 %v, p99 %v, %d errors",
		r.PerSecond(), float64(r.Bytes)/1e9/r.Elapsed.Seconds(), r.P50, r.P99, r.Errors)
}

func (l *Load) setDefaults(c *Client) error {
	if l.Depth == 0 {
		l.Depth = 32
	}
	if l.BlockSize == 0 {
		l.BlockSize = 4096
	}
	if l.Span == 0 {
		l.Span = c.size - l.Off
	}
	switch {
	case l.Depth < 1 || l.Depth > 4096:
		return fmt.Errorf("NBD load: depth %d: must be 1 to 4096", l.Depth)
	case l.BlockSize < 1 || l.BlockSize > 32<<20 || int64(l.BlockSize) > l.Span:
		return fmt.Errorf("NBD load: block size %d does not fit %d bytes", l.BlockSize, l.Span)
	case l.Off < 0 || l.Off+l.Span > c.size:
		return fmt.Errorf("NBD load: %d bytes at %d lie outside the export of %d", l.Span, l.Off, c.size)
	case l.Flush && !l.Pattern.writes():
		return fmt.Errorf("NBD load: flushes after a %v", l.Pattern)
	case l.Requests == 0 && l.Duration == 0:
		return errors.New("NBD load: neither a number of requests nor a duration is given")
	}
	return nil
}

// Run runs the load on c, which nothing else uses meanwhile. Errors of single
// requests are counted; the error returned is the connection's.
func (l Load) Run(c *Client) (Result, error) {
	if err := l.setDefaults(c); err != nil {
		return Result{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return Result{}, fmt.Errorf("NBD load: the connection has ended: %w", c.broken)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := newRun(l, c)
	err := withBlocking(c, r.loop)
	if err != nil {
		c.broken = err
		err = fmt.Errorf("NBD load: %w", err)
	}
	r.result.P50, r.result.P99, r.result.P999 = r.times.quantile(0.50), r.times.quantile(0.99), r.times.quantile(0.999)
	return r.result, err
}

// withBlocking calls f with c's descriptor in blocking mode: Go's poller costs a
// lean client more than the requests do.
func withBlocking(c *Client, f func(fd int) error) error {
	sc, ok := c.conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no descriptor", c.conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		if inner = syscall.SetNonblock(int(fd), false); inner == nil {
			// Best effort: the kernel caps it.
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 1<<20)
			inner = errors.Join(f(int(fd)), syscall.SetNonblock(int(fd), true))
		}
	})
	return errors.Join(err, inner)
}
