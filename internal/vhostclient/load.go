package vhostclient

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"vacate/internal/nbdclient"
)

// A Pattern is what a [Load] asks for. It is nbdclient's, and so is Result, so that
// exports can be compared.
type Pattern = nbdclient.Pattern

// A Result is what a [Load] did.
type Result = nbdclient.Result

// The patterns.
const (
	RandomRead      = nbdclient.RandomRead
	RandomWrite     = nbdclient.RandomWrite
	SequentialRead  = nbdclient.SequentialRead
	SequentialWrite = nbdclient.SequentialWrite
)

func writes(p Pattern) bool { return p == RandomWrite || p == SequentialWrite }

// A Load keeps Depth requests in flight on the first queue of a session, each with
// a buffer of its own. Each round it takes all that the device has used, and makes a
// new request of each before it notifies once.
//
// What a read gives is not looked at.
type Load struct {
	Pattern   Pattern
	Depth     int           // default 32; at most what the ring holds
	BlockSize int           // bytes a request; default 4096
	Off, Span int64         // the part of the device to use; Span 0 means the rest
	Requests  int64         // end after as many; 0 means no limit
	Duration  time.Duration // end after this time; 0 means no limit
	Seed      uint64

	// Poll watches the used ring, and asks for no interrupts; else the client
	// sleeps on its call descriptor when nothing is to be taken.
	Poll bool

	// Flush sends a flush after each write that was answered; the pair counts as
	// one request, from the write's sending to the flush's answer.
	Flush bool
}

func (l *Load) setDefaults(c *Client) error {
	if l.Depth == 0 {
		l.Depth = 32
	}
	if l.BlockSize == 0 {
		l.BlockSize = 4096
	}
	if l.Span == 0 {
		l.Span = c.Size() - l.Off
	}
	room := c.o.QueueSize
	if !c.has(FeatureIndirect) {
		room /= 3
	}
	switch {
	case l.Depth < 1 || l.Depth > room:
		return fmt.Errorf("vhost-user load: depth %d: must be 1 to %d", l.Depth, room)
	case l.BlockSize < sectorSize || l.BlockSize%sectorSize != 0 || int64(l.BlockSize) > l.Span:
		return fmt.Errorf("vhost-user load: block size %d does not fit %d bytes", l.BlockSize, l.Span)
	case l.Off < 0 || l.Off%sectorSize != 0 || l.Off+l.Span > c.Size():
		return fmt.Errorf("vhost-user load: %d bytes at %d lie outside the device of %d", l.Span, l.Off, c.Size())
	case l.Flush && !writes(l.Pattern):
		return fmt.Errorf("vhost-user load: flushes after a %v", l.Pattern)
	case l.Requests == 0 && l.Duration == 0:
		return errors.New("vhost-user load: neither a number of requests nor a duration is given")
	case !l.Poll && c.o.NoCall:
		return errors.New("vhost-user load: without a call descriptor there is nothing to sleep on")
	}
	return nil
}

// A run is a [Load] under way.
type run struct {
	load     Load
	q        *Queue
	rng      *rand.Rand
	result   Result
	times    nbdclient.Times
	start    time.Time
	now      time.Time // read once a round
	sent     int64
	cursor   int64      // sequential: the next offset
	idle     []*Request // to be sent, or sent again as its flush
	patience time.Duration
	last     time.Time // when something was taken last
}

// Run runs the load on c, whose queues nothing else uses meanwhile. Errors of
// single requests are counted; the error returned is the session's.
func (l Load) Run(c *Client) (Result, error) {
	if err := l.setDefaults(c); err != nil {
		return Result{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return Result{}, fmt.Errorf("vhost-user load: the session has ended: %w", c.broken)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := &run{load: l, q: c.Queues[0], rng: rand.New(rand.NewPCG(l.Seed, 1)), patience: c.Conn.timeout}
	if err := r.prepare(c); err != nil {
		return Result{}, err
	}
	stop := r.watch()
	err := r.loop()
	stop()
	if err != nil {
		c.broken = err
		err = fmt.Errorf("vhost-user load: %w", err)
	}
	r.result.P50, r.result.P99, r.result.P999 = r.times.Quantile(0.50), r.times.Quantile(0.99), r.times.Quantile(0.999)
	return r.result, err
}

// prepare makes the buffers, in the memory that c has for loads, which is used
// again by the next one.
func (r *run) prepare(c *Client) error {
	need := r.load.Depth * r.load.BlockSize
	if len(c.loadBuf) < need {
		b, err := c.Memory.Alloc(need)
		if err != nil {
			return err
		}
		c.loadBuf = b
	}
	b := c.loadBuf[:need]
	for i := 0; writes(r.load.Pattern) && i+8 <= len(b); i += 8 {
		putRandom(b[i:], r.rng)
	}
	typ := uint32(TypeIn)
	if writes(r.load.Pattern) {
		typ = TypeOut
	}
	for i := range r.load.Depth {
		part := b[i*r.load.BlockSize:][:r.load.BlockSize]
		r.idle = append(r.idle, &Request{Type: typ, Data: [][]byte{part}})
	}
	return nil
}

// watch wakes the run now and then, so that it sees when nothing comes any more.
func (r *run) watch() (stop func()) {
	if r.load.Poll {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(max(r.patience/4, time.Millisecond))
		defer t.Stop()
		for {
			select {
			case <-done:
				return
			case <-t.C:
				r.q.wake()
			}
		}
	}()
	return func() { close(done); <-ended }
}

// loop runs rounds until the load is done and everything is answered.
func (r *run) loop() error {
	r.start = time.Now()
	r.now, r.last = r.start, r.start
	r.q.Mute()
	for {
		r.submit()
		if err := r.q.Publish(); err != nil {
			return err
		}
		if r.q.InFlight == 0 {
			r.result.Elapsed = r.now.Sub(r.start)
			return nil
		}
		if err := r.collect(); err != nil {
			return err
		}
	}
}

func (r *run) over() bool {
	return r.load.Requests > 0 && r.sent >= r.load.Requests ||
		r.load.Duration > 0 && r.now.Sub(r.start) >= r.load.Duration
}

// submit makes a request of each that is idle.
func (r *run) submit() {
	for n := len(r.idle) - 1; n >= 0; n-- {
		q := r.idle[n]
		if q.Type != TypeFlush {
			if r.over() {
				break
			}
			q.Sector = uint64(r.offset()) / sectorSize
			q.Sent = r.now
			r.sent++
		}
		if !r.q.Add(q) {
			break
		}
		r.idle = r.idle[:n]
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

// collect takes what the device has used, and waits until there is something.
func (r *run) collect() error {
	for spins := 0; ; spins++ {
		first := true
		for {
			q, err := r.q.Take()
			if err != nil {
				return err
			}
			if q == nil {
				break
			}
			if first {
				r.now = time.Now()
				r.last, first = r.now, false
			}
			r.complete(q)
		}
		switch {
		case !first:
			if !r.load.Poll {
				r.q.Mute()
			}
			return nil
		case r.load.Poll && spins&0xfff != 0xfff:
			continue
		case time.Since(r.last) > r.patience:
			return fmt.Errorf("%d requests have had no answer for %v", r.q.InFlight, r.patience)
		case r.load.Poll:
			if spins&0xfffff == 0xfffff { // seldom: it costs a thread that is locked tens of microseconds
				runtime.Gosched()
			}
		case !r.q.Arm():
			if _, err := r.q.Wait(0); err != nil {
				return err
			}
		}
	}
}

// complete counts a request that was answered, or makes it its flush.
func (r *run) complete(q *Request) {
	errno := q.errno()
	if r.load.Flush && q.Type == TypeOut && errno == 0 {
		q.Type, q.Data = TypeFlush, q.Data[:0]
		r.idle = append(r.idle, q)
		return
	}
	r.result.Requests++
	r.times.Add(r.now.Sub(q.Sent))
	if errno != 0 {
		r.result.Errors++
		if r.result.FirstError == 0 {
			r.result.FirstError = errno
		}
	} else {
		r.result.Bytes += int64(r.load.BlockSize)
	}
	if q.Type == TypeFlush {
		q.Type, q.Data = TypeOut, q.Data[:1]
	}
	r.idle = append(r.idle, q)
}

func putRandom(b []byte, rng *rand.Rand) {
	v := rng.Uint64()
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}
