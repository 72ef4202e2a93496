package virtioblk

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/poll"
	"vacate/internal/sys"
	"vacate/internal/virtq"
)

// RingFiles are the event descriptors of a ring. They stay the caller's, who keeps
// them open until the worker was told of others, or was stopped. -1: there is none.
type RingFiles struct {
	Kick int // the driver has made requests available; -1: the worker looks now and then
	Call int // the worker has used some; -1: the driver looks by itself
	Err  int // the ring is broken
}

// ErrClosed is wrapped by errors of a worker that has ended, or is about to.
var ErrClosed = errors.New("the worker is closed")

// A Worker serves rings on one thread with one queue of the volume. Its methods may
// be called from any goroutine; those that say so wait for the thread.
//
//	W1: after Stop of a ring, nothing of it is in flight, all that was popped is
//	    published, and nothing touches its memory or descriptors.
//	W2: after Close, nothing uses the volume, any ring, or any descriptor; the
//	    thread has ended.
type Worker struct {
	cfg     Config
	logical int64 // bytes
	size    int64 // bytes
	wake    int   // event descriptor: orders wait
	through atomic.Bool
	tid     atomic.Int32
	urgent  atomic.Bool // orders wait, or quit is set
	quit    atomic.Bool // nothing is begun any more
	ended   chan struct{}
	err     error // of the end; set before ended is closed

	mu     sync.Mutex
	orders []*order // not yet taken up
	gone   bool     // the thread may have ended: no order is taken up any more

	// All below belongs to the thread.
	queue    blk.Queue
	quitting bool // quit was seen
	closing  *order
	rings    []*ring
	turn     int // which of rings is first in the next round
	jobs     []job
	freeJobs []*job
	taken    [batch]*job // of one ring, not yet begun
	cutting  fifo        // jobs of which not all is staged, oldest first
	parts    []part
	free     []*part
	bounces  *mem.Pool
	submit   []*blk.Request // staged for the next submission
	inflight int            // parts that were submitted and are not complete
	budget   poll.Budget
	wait     blk.Wait
	ready    []sys.Ready
	tally    tally
	told     bool // tally is empty
}

// NewWorker starts a worker without rings. The error says what could not be had;
// nothing is left behind then.
func NewWorker(cfg Config) (*Worker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("making a worker: %w", err)
	}
	cfg.setDefaults()
	g := cfg.Export.Geometry()
	w := &Worker{
		cfg: cfg, size: g.Size, logical: int64(logicalOf(g)),
		ended: make(chan struct{}), budget: poll.New(cfg.Poll), told: true,
	}
	w.furnish()
	var err error
	if w.wake, err = sys.NewEvent(); err != nil {
		return nil, fmt.Errorf("making a worker: %w", err)
	}
	if w.bounces, err = mem.NewPool(bounceSize, bounceCount, cfg.Lock); err != nil {
		return nil, errors.Join(fmt.Errorf("making a worker: %w", err), sys.CloseFD(w.wake))
	}
	started := make(chan error, 1)
	go w.run(started)
	if err := <-started; err != nil {
		<-w.ended
		return nil, errors.Join(fmt.Errorf("making a worker: %w", err), w.err)
	}
	return w, nil
}

// run is the thread, from its first step to its last.
func (w *Worker) run(started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the worker
	debug.SetPanicOnFault(true)
	w.tid.Store(int32(syscall.Gettid()))
	err := sys.Wakeable()
	if err == nil {
		w.queue, err = w.cfg.Export.NewQueue(w.cfg.Depth)
	}
	started <- err
	if err == nil {
		w.serve()
	}
	w.finish()
}

// finish gives everything back, and refuses the orders that came too late.
func (w *Worker) finish() {
	w.mu.Lock()
	w.gone = true
	late := w.orders
	w.orders = nil
	w.mu.Unlock()
	var errs []error
	if w.queue != nil {
		errs = append(errs, w.queue.Close())
	}
	errs = append(errs, w.bounces.Close(), sys.CloseFD(w.wake))
	w.err = errors.Join(errs...)
	for _, o := range late {
		o.reply(nil, ErrClosed)
	}
	close(w.ended)
}

// Start hands a ring to the worker. What is in flight in its inflight table is
// carried out first, then the ring is looked through, and the driver is called
// once. From now until Stop nobody else touches r. It waits for nothing: the thread
// may be within a request of another ring, for as long as its drive hangs. The
// error wraps sys.ErrNoEvent if a descriptor is no event descriptor, or ErrClosed.
//
// REQUIRES: index is not started.
func (w *Worker) Start(index int, r *virtq.Ring, f RingFiles) error {
	if err := f.adopt(index); err != nil {
		return err
	}
	return w.give(&order{what: orderStart, index: index, ring: r, files: f})
}

// Stop takes a ring back: no more of it is popped, what was popped is carried out
// and published. It waits for that, as long as a drive may take. It returns nil if
// the ring was not started, or the worker has ended.
func (w *Worker) Stop(index int) *virtq.Ring {
	r, _ := w.order(&order{what: orderStop, index: index}) // ErrClosed: nothing of it is in flight
	return r
}

// Signal gives a ring other descriptors, while it is served. When it returns the
// old ones are not used any more; the ring was looked through, and the driver
// called once, so that what the old ones announced is not lost. Errors as of Start;
// syscall.ENOENT if the ring is not started.
func (w *Worker) Signal(index int, f RingFiles) error {
	if err := f.adopt(index); err != nil {
		return err
	}
	_, err := w.order(&order{what: orderSignal, index: index, files: f})
	return err
}

// WriteThrough says whether each write is to reach the medium before it is
// answered: if the driver has turned the write cache off, or has not accepted
// VIRTIO_BLK_F_FLUSH (5.2.6.2). It counts for requests that are popped later.
func (w *Worker) WriteThrough(on bool) { w.through.Store(on) }

// Hurry lets the kernel run the worker's thread before others: the volume was
// shut, and somebody waits for what is in flight.
func (w *Worker) Hurry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if tid := w.tid.Load(); tid != 0 && !w.gone {
		sys.Hurry(int(tid))
	}
}

// Quit says that the lease is closed, or that nobody takes the answers: nothing is
// popped, and nothing begun, any more. What is in flight is carried out; the rest of
// what was popped is answered with IOERR. It waits for nothing. Stop and Close go on
// as ever.
func (w *Worker) Quit() {
	w.quit.Store(true)
	w.alarm()
}

// Close ends the worker, and waits for that. Rings that were not stopped end as
// after Quit. The error tells what could not be given back. It may be called again.
func (w *Worker) Close() error {
	_, _ = w.order(&order{what: orderClose}) // ErrClosed: somebody else does it
	<-w.ended
	return w.err
}

// alarm makes the thread look at its orders.
func (w *Worker) alarm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.urgent.Store(true)
	if !w.gone { // else wake may be another's
		_ = sys.SignalEvent(w.wake) // EAGAIN: it is signalled
	}
}

// How long an order waits before the thread is woken from whatever it does: a
// driver that has made its own event descriptor block, against the flag that Start
// has set, holds the thread in it.
const nudgeAfter = 50 * time.Millisecond

// give hands o to the thread, which carries orders out one after the other.
func (w *Worker) give(o *order) error {
	o.done = make(chan struct{})
	w.mu.Lock()
	if w.gone {
		w.mu.Unlock()
		return ErrClosed
	}
	w.orders = append(w.orders, o)
	w.mu.Unlock()
	w.alarm()
	return nil
}

// order is give, and waits until o is carried out.
func (w *Worker) order(o *order) (*virtq.Ring, error) {
	if err := w.give(o); err != nil {
		return nil, err
	}
	t := time.NewTicker(nudgeAfter)
	defer t.Stop()
	for {
		select {
		case <-o.done:
			return o.ring, o.err
		case <-t.C:
			w.nudge()
		}
	}
}

// nudge interrupts what the thread waits for.
func (w *Worker) nudge() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.gone {
		_ = sys.Wake(int(w.tid.Load())) // it is alive: gone is set before it ends
	}
}

// adopt checks the descriptors of a ring.
func (f RingFiles) adopt(index int) error {
	for _, d := range []struct {
		what string
		fd   int
	}{{"kick", f.Kick}, {"call", f.Call}, {"err", f.Err}} {
		if d.fd < 0 {
			continue
		}
		if err := sys.AdoptEvent(d.fd); err != nil {
			return fmt.Errorf("the %s descriptor of ring %d: %w", d.what, index, err)
		}
	}
	return nil
}
