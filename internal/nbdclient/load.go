package nbdclient

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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
type Load struct {
	Pattern   Pattern
	Depth     int           // default 32
	BlockSize int           // bytes a request; default 4096
	Off, Span int64         // the part of the export to use; Span 0 means the rest
	Requests  int64         // end after as many; 0 means no limit
	Duration  time.Duration // end after this time; 0 means no limit
	Seed      uint64
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

// A run is a [Load] under way.
type run struct {
	load     Load
	c        *Client
	rng      *rand.Rand
	result   Result
	times    histogram
	start    time.Time
	now      time.Time // read once a round
	sent     int64
	inFlight int
	cursor   int64 // sequential: the next offset

	out    []byte      // requests to send; each payload lies behind its header for good
	outLen int         // bytes of out
	stride int         // bytes of one request
	sentAt []time.Time // by cookie
	idle   []uint64    // cookies without a request

	in     []byte // received, from the front
	inLen  int
	skip   int    // bytes of payload to come
	whose  uint64 // cookie of the message being received
	last   bool   // it is the last of its reply
	failed syscall.Errno
}

func newRun(l Load, c *Client) *run {
	r := &run{load: l, c: c, rng: rand.New(rand.NewPCG(l.Seed, 1)), stride: 28, in: make([]byte, 512<<10)}
	if l.Pattern.writes() {
		r.stride += l.BlockSize
	}
	r.out = make([]byte, l.Depth*r.stride)
	for i := 0; i+8 <= len(r.out); i += 8 {
		binary.LittleEndian.PutUint64(r.out[i:], r.rng.Uint64())
	}
	r.sentAt = make([]time.Time, l.Depth)
	for i := range l.Depth {
		r.idle = append(r.idle, uint64(i))
	}
	return r
}

// loop runs rounds until the load is done and everything is answered.
func (r *run) loop(fd int) error {
	r.start = time.Now()
	r.now = r.start
	for {
		r.compose()
		if r.inFlight == 0 {
			r.result.Elapsed = r.now.Sub(r.start)
			return nil
		}
		if err := writeFull(fd, r.out[:r.outLen]); err != nil {
			return err
		}
		n, err := syscall.Read(fd, r.in[r.inLen:])
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		r.now = time.Now()
		if err := r.parse(r.in[:r.inLen+n]); err != nil {
			return err
		}
	}
}

func (r *run) over() bool {
	return r.load.Requests > 0 && r.sent >= r.load.Requests ||
		r.load.Duration > 0 && r.now.Sub(r.start) >= r.load.Duration
}

// compose makes a request for each idle cookie.
func (r *run) compose() {
	r.outLen = 0
	cmd := uint16(cmdRead)
	if r.load.Pattern.writes() {
		cmd = cmdWrite
	}
	for len(r.idle) > 0 && !r.over() {
		cookie := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		putRequest(r.out[r.outLen:], 0, cmd, cookie, uint64(r.offset()), uint32(r.load.BlockSize))
		r.outLen += r.stride
		r.sentAt[cookie] = r.now
		r.sent++
		r.inFlight++
	}
}

func (r *run) offset() int64 {
	bs := int64(r.load.BlockSize)
	if p := r.load.Pattern; p == RandomRead || p == RandomWrite {
		return r.load.Off + r.rng.Int64N(r.load.Span/bs)*bs
	}
	if r.cursor+bs > r.load.Span {
		r.cursor = 0
	}
	r.cursor += bs
	return r.load.Off + r.cursor - bs
}

// parse takes whole messages off b, and keeps the start of one that is not whole.
func (r *run) parse(b []byte) error {
	for {
		n := min(r.skip, len(b))
		b, r.skip = b[n:], r.skip-n
		if r.skip > 0 {
			break
		}
		if r.last {
			r.complete()
		}
		n, err := r.header(b)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		b = b[n:]
	}
	r.inLen = copy(r.in, b)
	return nil
}

// header takes the header of a message off b: 0 bytes if it is not whole.
func (r *run) header(b []byte) (int, error) {
	if len(b) < 16 {
		return 0, nil
	}
	n := 16
	r.whose = binary.BigEndian.Uint64(b[8:])
	switch binary.BigEndian.Uint32(b) {
	case simpleMagic:
		r.failed = syscall.Errno(binary.BigEndian.Uint32(b[4:]))
		r.last = true
		if r.failed == 0 && !r.load.Pattern.writes() {
			r.skip = r.load.BlockSize
		}
	case structuredMagic:
		n = 20
		if len(b) < n {
			return 0, nil
		}
		typ := binary.BigEndian.Uint16(b[6:])
		r.last = binary.BigEndian.Uint16(b[4:])&chunkDone != 0
		r.skip = int(binary.BigEndian.Uint32(b[16:]))
		if typ&chunkErrors != 0 {
			if len(b) < n+4 {
				return 0, nil
			}
			r.failed = syscall.Errno(binary.BigEndian.Uint32(b[n:]))
		}
	default:
		return 0, fmt.Errorf("no NBD reply: %x", b[:16])
	}
	if r.whose >= uint64(len(r.sentAt)) || r.sentAt[r.whose].IsZero() {
		return 0, fmt.Errorf("a reply to request %#x, which was not sent", r.whose)
	}
	return n, nil
}

// complete counts the request whose last message has been received.
func (r *run) complete() {
	r.result.Requests++
	if r.failed != 0 {
		r.result.Errors++
		if r.result.FirstError == 0 {
			r.result.FirstError = r.failed
		}
	} else {
		r.result.Bytes += int64(r.load.BlockSize)
	}
	r.times.add(r.now.Sub(r.sentAt[r.whose]))
	r.sentAt[r.whose] = time.Time{}
	r.idle = append(r.idle, r.whose)
	r.inFlight--
	r.last, r.failed = false, 0
}

func writeFull(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := syscall.Write(fd, p)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
