package vhostclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vacate/internal/nbdclient"
)

// Report is nbdclient's; Reconnects are sessions taken up again.
type Report = nbdclient.Report

// A Verify is a load that checks every byte, as nbdclient's, over all queues of one
// session. The same model judges both.
//
// The session never ends by itself: a server that hangs up, however it may come
// back, has failed, unless Breaks says that this frontend can take a session up
// again. Nothing is ever sent twice by this side.
type Verify struct {
	Target     string
	Options    Options
	Lease      string // its name: the first 16 bytes are in each sector
	Seed       uint64
	Off, Span  int64         // bytes: the part of the device to use; Span 0 means the rest
	Depth      int           // requests in flight a queue; default 16, at most a third of the queue's size
	MaxRequest int           // bytes; default 256 KiB
	Pause      time.Duration // of each queue before a request; 0: none
	Requests   int64         // end the load after as many were begun; 0 means no limit
	Duration   time.Duration // end the load after this time; 0 means no limit
	Gap        time.Duration // how long a queue may wait for an answer before that counts as a stall; 0: for ever
	Patience   time.Duration // how long a queue may wait for an answer before Run gives up; default 60 s
	Poll       bool          // watch the rings, instead of sleeping until there is an interrupt
	NoTrim     bool          // send no discards: the server's leave what was there

	// Talk is the mean time between messages that a running session may get: the
	// config space is read, a ring paused, given another call descriptor, or all of
	// them stopped as for a reset and started where they stopped, with requests in
	// flight. 0: none.
	Talk time.Duration
	// Breaks is the mean time between sessions that are broken and taken up again,
	// with requests in flight. 0: never. It needs Options.Inflight.
	Breaks time.Duration

	now atomic.Pointer[verifier]
}

// A verifier is a [Verify] under way.
type verifier struct {
	*Verify
	c     *Client
	book  *nbdclient.Book
	lanes []*lane
	calm  atomic.Bool // the load is over: no more talk
}

// Run runs the load until ctx ends, or as long as the fields say; then it reads all
// of the device's part once more. Findings are in the report (Report.Err); the
// error says why it could not go on. The report is also valid then.
func (v *Verify) Run(ctx context.Context) (Report, error) {
	if v.Breaks > 0 && !v.Options.Inflight {
		return Report{Seed: v.Seed}, errors.New("vhost-user verify: breaks lose requests without a region for those in flight")
	}
	c, err := Dial(v.Target, v.Options)
	if err != nil {
		return Report{Seed: v.Seed}, err
	}
	r := &verifier{Verify: v, c: c}
	if err := r.prepare(ctx); err != nil {
		return Report{Seed: v.Seed}, errors.Join(err, c.Close())
	}
	v.now.Store(r)
	stop := r.converse()
	err = r.phase()
	r.calm.Store(true)
	if err == nil {
		r.book.Last()
		err = r.phase()
	}
	stop()
	if err == nil { // the session must have outlived everything
		_, err = c.Conn.Get(GetFeatures)
	}
	return r.book.Report(), errors.Join(err, c.Close())
}

// Snapshot returns the report of the Run under way, so far. It may be called from
// any goroutine.
func (v *Verify) Snapshot() Report {
	if r := v.now.Load(); r != nil {
		return r.book.Report()
	}
	return Report{Seed: v.Seed}
}

func (r *verifier) prepare(ctx context.Context) (err error) {
	for _, d := range []struct {
		field *int
		value int
	}{{&r.Depth, 16}, {&r.MaxRequest, 256 << 10}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if r.Patience == 0 {
		r.Patience = time.Minute
	}
	if r.Depth > len(r.c.Queues[0].chain)/3 {
		return fmt.Errorf("vhost-user verify: depth %d in a queue of %d", r.Depth, r.c.Queues[0].Size)
	}
	plan := &nbdclient.Verify{
		Lease: r.Lease, Seed: r.Seed, Off: r.Off, Span: r.Span, Connections: len(r.c.Queues), Depth: r.Depth,
		MaxRequest: r.MaxRequest, Requests: r.Requests, Duration: r.Duration, Patience: r.Patience,
	}
	if r.book, err = plan.Book(ctx, r.c.Size(), r.c.BlockSize()); err != nil {
		return err
	}
	for i, q := range r.c.Queues {
		l := newLane(r, i, q)
		for n := range r.Depth {
			buf, err := r.c.Memory.Alloc(r.MaxRequest)
			if err != nil {
				return err
			}
			l.add(r.book.Task(i, n, buf))
		}
		r.lanes = append(r.lanes, l)
	}
	return nil
}

// phase lets all lanes ask until nothing more is to be asked and all is answered.
func (r *verifier) phase() error {
	var all sync.WaitGroup
	for _, l := range r.lanes {
		all.Go(func() {
			if err := l.run(); err != nil {
				r.book.Fail(fmt.Errorf("vhost-user verify as %s: queue %d: %w", r.c.o.Sequence.Name, l.id, err))
			}
		})
	}
	all.Wait()
	return r.book.Err()
}

// failed reports whether the run has failed.
func (r *verifier) failed() bool {
	select {
	case <-r.book.Failed():
		return true
	default:
		return false
	}
}
