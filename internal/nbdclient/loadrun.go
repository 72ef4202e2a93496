package nbdclient

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"time"
)

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

	out     []byte // requests to send; each payload lies behind its header for good
	outLen  int    // bytes of out
	stride  int    // bytes of one request
	slots   []slot // by cookie
	idle    []uint64
	flushes []uint64 // cookies whose write was answered, and whose flush is to be sent

	in    []byte // received, from the front
	inLen int
	skip  int    // bytes of payload to come
	whose uint64 // cookie of the message being received
	last  bool   // it is the last of its reply
}

// A slot is one request in flight.
type slot struct {
	sentAt   time.Time // zero: nothing is in flight
	off      int64
	covered  int // bytes of a read that were told so far
	failed   syscall.Errno
	flushing bool
}

func newRun(l Load, c *Client) *run {
	r := &run{load: l, c: c, now: time.Now(), rng: rand.New(rand.NewPCG(l.Seed, 1)), stride: 28, in: make([]byte, 512<<10)}
	if l.Pattern.writes() {
		r.stride += l.BlockSize
	}
	r.out = make([]byte, l.Depth*r.stride)
	for i := 0; i+8 <= len(r.out); i += 8 {
		binary.LittleEndian.PutUint64(r.out[i:], r.rng.Uint64())
	}
	r.slots = make([]slot, l.Depth)
	r.idle, r.flushes = make([]uint64, 0, l.Depth), make([]uint64, 0, l.Depth)
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

// compose makes a request for each idle cookie, and the flushes that are due.
func (r *run) compose() {
	r.outLen = 0
	for _, cookie := range r.flushes {
		putRequest(r.out[r.outLen:], 0, cmdFlush, cookie, 0, 0)
		r.outLen += 28
	}
	r.flushes = r.flushes[:0]
	cmd := uint16(cmdRead)
	if r.load.Pattern.writes() {
		cmd = cmdWrite
	}
	for len(r.idle) > 0 && !r.over() {
		cookie := r.idle[len(r.idle)-1]
		r.idle = r.idle[:len(r.idle)-1]
		off := r.offset()
		putRequest(r.out[r.outLen:], 0, cmd, cookie, uint64(off), uint32(r.load.BlockSize))
		r.outLen += r.stride
		r.slots[cookie] = slot{sentAt: r.now, off: off}
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
			if err := r.complete(); err != nil {
				return err
			}
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
	r.whose = binary.BigEndian.Uint64(b[8:])
	if r.whose >= uint64(len(r.slots)) || r.slots[r.whose].sentAt.IsZero() {
		return 0, fmt.Errorf("a reply to request %#x, which was not sent", r.whose)
	}
	s := &r.slots[r.whose]
	switch binary.BigEndian.Uint32(b) {
	case simpleMagic:
		s.failed = syscall.Errno(binary.BigEndian.Uint32(b[4:]))
		r.last = true
		if s.failed == 0 && !r.load.Pattern.writes() {
			r.skip = r.load.BlockSize
			s.covered += r.skip
		}
		return 16, nil
	case structuredMagic:
		return r.chunk(b, s)
	}
	return 0, fmt.Errorf("no NBD reply: %x", b[:16])
}

// chunk takes the header of a structured reply's chunk off b, which answers s. Its
// payload is skipped after that.
func (r *run) chunk(b []byte, s *slot) (int, error) {
	if len(b) < 20 {
		return 0, nil
	}
	typ, length := binary.BigEndian.Uint16(b[6:]), int64(binary.BigEndian.Uint32(b[16:]))
	head, covers := int64(0), int64(0) // bytes of the payload that are looked at; of the read, that it tells
	switch {
	case typ&chunkErrors != 0:
		head = 4
	case typ == chunkOffsetData:
		head, covers = 8, length-8
	case typ == chunkOffsetHole:
		head = 12
	}
	switch {
	case length < head:
		return 0, fmt.Errorf("a chunk of type %d and %d bytes", typ, length)
	case int64(len(b)) < 20+head:
		return 0, nil
	}
	if typ&chunkErrors != 0 {
		s.failed = syscall.Errno(binary.BigEndian.Uint32(b[20:]))
	} else if head > 0 {
		if typ == chunkOffsetHole {
			covers = int64(binary.BigEndian.Uint32(b[28:]))
		}
		off := int64(binary.BigEndian.Uint64(b[20:])) - s.off
		if r.load.Pattern.writes() || off < 0 || off+covers > int64(r.load.BlockSize) {
			return 0, fmt.Errorf("%d bytes at %d tell of a request for %d bytes at %d", covers, s.off+off, r.load.BlockSize, s.off)
		}
		s.covered += int(covers)
	}
	r.last = binary.BigEndian.Uint16(b[4:])&chunkDone != 0
	r.skip = int(length)
	return 20, nil
}

// complete counts the request whose last message has been received.
func (r *run) complete() error {
	s := &r.slots[r.whose]
	r.last = false
	if s.failed == 0 && !r.load.Pattern.writes() && s.covered != r.load.BlockSize {
		return fmt.Errorf("%d bytes were told of %d at %d", s.covered, r.load.BlockSize, s.off)
	}
	if r.load.Flush && !s.flushing && s.failed == 0 {
		s.flushing = true
		r.flushes = append(r.flushes, r.whose)
		return nil
	}
	r.result.Requests++
	if s.failed != 0 {
		r.result.Errors++
		if r.result.FirstError == 0 {
			r.result.FirstError = s.failed
		}
	} else {
		r.result.Bytes += int64(r.load.BlockSize)
	}
	r.times.add(r.now.Sub(s.sentAt))
	s.sentAt = time.Time{}
	r.idle = append(r.idle, r.whose)
	r.inFlight--
	return nil
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
