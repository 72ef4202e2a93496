package nbdclient

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A Verify is a load that checks every byte. Several connections to one export
// write sectors that say who they are, read them back, discard, write zeroes and
// flush, in requests of all sizes; when a connection breaks, for whatever reason,
// it is opened again at once, and what had no answer is sent again, or given up:
// then both the old and the new is right, until one of them is seen.
//
// The part of the export that it uses holds zeros at the start, and nobody else
// writes there. Discarded sectors must read as zeros.
//
// It takes a server at its word about failures: a write whose connection broke
// never lands after the connection that followed has been answered.
type Verify struct {
	Target      string        // a path or URI as [SocketPath] takes them
	Options     Options       // Timeout is not used
	Lease       string        // its name: the first 16 bytes are in each sector
	Seed        uint64        // of the requests; in each sector too
	Off, Span   int64         // bytes: the part of the export to use; Span 0 means the rest
	Connections int           // default 4
	Depth       int           // requests in flight a connection; default 16
	MaxRequest  int           // bytes, at most 32 MiB; default 1 MiB
	Pause       time.Duration // of each connection before a request; 0: none
	Requests    int64         // end the load after as many were begun; 0 means no limit
	Duration    time.Duration // end the load after this time; 0 means no limit
	// Resend is the share of writes, zeroings and discards without an answer that
	// is sent again when their connection broke; the others are given up.
	// 0 means 3/4, negative none. Reads and flushes are always sent again.
	Resend float64
	// Gap is how long a connection that did not break may wait for an answer
	// before it counts as a stall; 0 means for ever.
	Gap time.Duration
	// Patience is how long a connection may fail to be opened, or wait for an
	// answer, before Run gives up. Default 60 s.
	Patience time.Duration

	now atomic.Pointer[verifier]
}

func (v *Verify) setDefaults() {
	for _, d := range []struct {
		field *int
		value int
	}{{&v.Connections, 4}, {&v.Depth, 16}, {&v.MaxRequest, 1 << 20}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if v.Resend == 0 {
		v.Resend = 0.75
	}
	if v.Patience == 0 {
		v.Patience = time.Minute
	}
}

// validate checks what can be checked before the export is known.
func (v *Verify) validate() error {
	switch {
	case v.Connections < 1 || v.Depth < 1 || v.Connections > 1<<10 || v.Depth > 1<<10 || v.Connections*v.Depth > 1<<15:
		return fmt.Errorf("NBD verify: %d connections with %d requests each: too few or too many", v.Connections, v.Depth)
	case v.MaxRequest < sectorSize || v.MaxRequest > 32<<20:
		return fmt.Errorf("NBD verify: requests of up to %d bytes: must be %d to 32 MiB", v.MaxRequest, sectorSize)
	case v.Off < 0 || v.Span < 0 || v.Pause < 0 || v.Gap < 0 || v.Patience < 0:
		return errors.New("NBD verify: a field is negative")
	}
	return nil
}

// fit checks what is left, against the export.
func (v *Verify) fit(c *Client) error {
	if v.Span == 0 {
		v.Span = c.size - v.Off
	}
	unit := int64(v.unit(c))
	if v.MaxRequest < int(unit) || v.Off%unit != 0 || v.Span < unit || v.Span%unit != 0 || v.Off+v.Span > c.size {
		return fmt.Errorf("NBD verify: %d bytes at %d of an export of %d, in requests of up to %d: it takes units of %d",
			v.Span, v.Off, c.size, v.MaxRequest, unit)
	}
	return nil
}

// unit is what offsets and lengths are multiples of.
func (v *Verify) unit(c *Client) int { return max(sectorSize, int(c.blockSizes[0])) }

// Run runs the load until ctx ends, or as long as the fields say; then it reads
// all of the export's part once more. Findings are in the report
// ([Report.Err]); the error says why it could not go on. The report is also valid
// then.
func (v *Verify) Run(ctx context.Context) (Report, error) {
	v.setDefaults()
	r := &verifier{Verify: v, load: ctx, start: time.Now(), done: make(chan struct{})}
	r.report.Seed, r.report.Connections = v.Seed, int64(v.Connections)
	if err := v.validate(); err != nil {
		return r.snapshot(), err
	}
	for i := range v.Connections {
		r.workers = append(r.workers, newWorker(r, i))
	}
	first, err := r.dial(r.workers[0])
	if err != nil {
		return r.snapshot(), err
	}
	r.workers[0].c = first
	defer r.hangUp()
	if err := v.fit(first); err != nil {
		return r.snapshot(), err
	}
	r.step = v.unit(first)
	r.model = newModel(stamp{lease: leaseWords(v.Lease), seed: v.Seed}, v.Off, int(v.Span/sectorSize), v.Connections*v.Depth)
	v.now.Store(r)
	watched := make(chan struct{})
	stop := make(chan struct{})
	go func() { defer close(watched); r.watch(stop) }()
	if err = r.phase((*worker).draw); err == nil {
		r.mu.Lock()
		r.report.Elapsed = time.Since(r.start)
		r.mu.Unlock()
		r.last.Store(true)
		r.model.claim = claim{} // nobody else is there
		err = r.phase((*worker).sweep)
	}
	close(stop)
	<-watched
	return r.snapshot(), err
}

// Snapshot returns the report of the Run under way, so far. It may be called from
// any goroutine.
func (v *Verify) Snapshot() Report {
	if r := v.now.Load(); r != nil {
		return r.snapshot()
	}
	return Report{Seed: v.Seed}
}

// A verifier is a [Verify] under way.
type verifier struct {
	*Verify
	load  context.Context //nolint:containedctx // it ends the load, not a call
	start time.Time

	done    chan struct{} // closed when Run must give up
	once    sync.Once
	why     error // set before done is closed
	workers []*worker
	model   *model
	step    int // offsets and lengths are multiples of it

	begun  atomic.Int64 // requests of the load
	last   atomic.Bool  // the last pass has begun
	cursor atomic.Int64 // of the last pass: bytes

	mu     sync.Mutex // after worker.mu
	report Report
}

func (r *verifier) snapshot() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.report.snapshot()
	if c.Elapsed == 0 {
		c.Elapsed = time.Since(r.start)
	}
	return c
}

// fail makes all workers give up.
func (r *verifier) fail(why error) {
	r.once.Do(func() {
		r.why = why
		close(r.done)
	})
	for _, w := range r.workers {
		w.abort()
	}
}

// given reports why the workers must give up; nil if they need not.
func (r *verifier) given() error {
	select {
	case <-r.done:
		return r.why
	default:
		return nil
	}
}

// watch fails the run when a connection waits for too long, until stop is closed.
func (r *verifier) watch(stop <-chan struct{}) {
	tick := time.NewTicker(max(r.Patience/20, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		for _, w := range r.workers {
			if since := w.waits(); !since.IsZero() && time.Since(since) > r.Patience {
				r.fail(fmt.Errorf("NBD verify: connection %d has had no answer for %v", w.id, r.Patience))
			}
		}
	}
}

// phase lets all workers send what next makes, until that makes nothing more and
// all is answered.
func (r *verifier) phase(next func(*worker, *op) bool) error {
	var all sync.WaitGroup
	for _, w := range r.workers {
		all.Go(func() {
			if err := w.phase(next); err != nil {
				r.fail(err)
			}
		})
	}
	all.Wait()
	return r.given()
}

func (r *verifier) hangUp() {
	for _, w := range r.workers {
		if w.c != nil {
			_ = w.c.Close() // all is answered; or it is broken anyway
		}
	}
}

func (r *verifier) over() bool {
	return r.load.Err() != nil ||
		r.Requests > 0 && r.begun.Load() >= r.Requests ||
		r.Duration > 0 && time.Since(r.start) >= r.Duration
}

// dial opens a connection for w, however often that fails, until patience ends.
func (r *verifier) dial(w *worker) (*Client, error) {
	deadline := time.Now().Add(r.Patience)
	o := r.Options
	for {
		o.Timeout = max(time.Until(deadline), time.Millisecond)
		c, err := Dial(r.Target, o)
		if err == nil {
			if err = c.conn.SetDeadline(time.Time{}); err == nil {
				return c, nil
			}
			_ = c.Abort() // err tells more
		}
		w.attempts++
		if why := r.given(); why != nil {
			return nil, why
		}
		r.mu.Lock()
		r.report.Attempts++
		r.report.LastBreak = err
		r.mu.Unlock()
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("NBD verify: no connection in %v: %w", r.Patience, err)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-r.done:
			return nil, r.why
		}
	}
}

// An op is one request, over all of its attempts.
type op struct {
	slot     int // among all workers'
	cmd      uint16
	flags    uint16
	first, n int     // sectors of the part that is used
	state    state   // what it writes
	racing   []raced // of a read
	buf      []byte  // payload, or where the data goes
	found    []state // of a read
	answer   answer
}

func (o *op) length() int { return o.n * sectorSize }

func (o *op) writes() bool { return o.cmd == cmdWrite || o.cmd == cmdTrim || o.cmd == cmdWriteZeroes }

// draw makes the next request of the load.
func (w *worker) draw(o *op) bool {
	r := w.r
	if r.over() {
		return false
	}
	r.begun.Add(1)
	o.flags = 0
	if last := len(w.doubtful) - 1; last >= 0 { // what was given up is looked at first
		o.cmd, o.first, o.n = cmdRead, w.doubtful[last][0], w.doubtful[last][1]
		if w.begin(o) {
			w.doubtful = w.doubtful[:last]
			return true
		}
	}
	if r.model.reserved(w.id, o) && w.begin(o) {
		return true
	}
	o.cmd = pick(w.rng)
	if o.writes() && w.rng.IntN(8) == 0 {
		o.flags = FUA
	}
	for range 16 {
		o.first, o.n = w.span()
		if w.begin(o) {
			return true
		}
	}
	if o.writes() {
		r.model.reserve(w.id, o)
	}
	o.cmd, o.flags = cmdFlush, 0 // as good as anything while it waits
	return w.begin(o)
}

func pick(rng *rand.Rand) uint16 {
	switch n := rng.IntN(100); {
	case n < 45:
		return cmdRead
	case n < 86:
		return cmdWrite
	case n < 92:
		return cmdWriteZeroes
	case n < 97:
		return cmdTrim
	}
	return cmdFlush
}

// span draws a range of sectors: lengths of every order of magnitude, half of
// them in whole blocks of 4096 bytes.
func (w *worker) span() (first, n int) {
	unit := w.r.step
	if w.rng.IntN(2) == 0 && w.r.Off%4096 == 0 && w.r.Span >= 4096 && w.r.MaxRequest >= 4096 {
		unit = max(unit, 4096)
	}
	most := int(min(int64(w.r.MaxRequest), w.r.Span)) / unit
	units := 1 + w.rng.IntN(min(most, 1<<w.rng.IntN(bits.Len(uint(most))+1)))
	places := int(w.r.Span)/unit - units + 1
	return w.rng.IntN(places) * (unit / sectorSize), units * (unit / sectorSize)
}

// sweep makes the next request of the last pass.
func (w *worker) sweep(o *op) bool {
	length := int64(w.r.MaxRequest / w.r.step * w.r.step)
	at := w.r.cursor.Add(length) - length
	if at >= w.r.Span {
		return false
	}
	o.cmd, o.flags = cmdRead, 0
	o.first, o.n = int(at/sectorSize), int(min(length, w.r.Span-at)/sectorSize)
	return w.begin(o)
}

// begin admits o, and makes its payload.
func (w *worker) begin(o *op) bool {
	if o.cmd == cmdFlush {
		o.first, o.n = 0, 0
	}
	m := w.r.model
	if !m.begin(w.id, o) {
		return false
	}
	if o.cmd != cmdRead && o.cmd != cmdWrite {
		o.buf = o.buf[:0]
		return true
	}
	if cap(o.buf) < o.length() {
		o.buf = make([]byte, o.length())
	}
	o.buf = o.buf[:o.length()]
	if o.cmd == cmdWrite {
		for i := range o.n {
			m.stampOf(o.first+i, o.state.gen()).put(o.buf[i*sectorSize:])
		}
	}
	return true
}
