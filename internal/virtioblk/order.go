package virtioblk

import (
	"fmt"
	"slices"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/sys"
	"vacate/internal/virtq"
)

// What an order asks for.
const (
	orderStart = iota
	orderStop
	orderSignal
	orderClose
)

// An order is something that the control side wants of the thread. Who gave it,
// and has to, waits until done is closed.
type order struct {
	what  int
	index int
	files RingFiles
	ring  *virtq.Ring // of Start; and the answer to Stop
	err   error
	done  chan struct{}
}

func (o *order) reply(r *virtq.Ring, err error) {
	o.ring, o.err = r, err
	close(o.done)
}

// A ring is one ring while it is served.
//
//	served ── Stop ──> draining ── nothing in flight, all published ──> gone
//	   └── broken ──────── Stop ──────────────────────────────────────────┘
type ring struct {
	index    int
	q        *virtq.Ring
	files    RingFiles
	resubmit bool  // what is in its inflight table comes first
	dirty    bool  // used elements are staged
	inflight int   // jobs
	vain     int   // kicks since something was popped last
	broken   error // nothing more is popped
	draining bool
	stops    []*order // who waits for the end of that
}

// open reports whether requests may be taken from r: while it is drained those that a
// predecessor left in flight, which are as good as popped.
func (r *ring) open() bool { return r.broken == nil && (!r.draining || r.q.Resubmit() > 0) }

// drained reports whether nothing of r is in flight any more that is to be carried out.
func (w *Worker) drained(r *ring) bool {
	return r.draining && r.inflight == 0 && (r.broken != nil || w.quitting || r.q.Resubmit() == 0)
}

// obey carries out the orders that wait. It reports whether the worker is to end.
func (w *Worker) obey() bool {
	if w.urgent.Load() {
		w.urgent.Store(false) // before the look at the orders: a later one sets it again
		w.mu.Lock()
		orders := w.orders
		w.orders = nil
		w.mu.Unlock()
		if w.quit.Load() {
			w.leave()
		}
		for _, o := range orders {
			w.carryOut(o)
		}
		w.settle()
	}
	return w.closing != nil && len(w.rings) == 0
}

func (w *Worker) carryOut(o *order) {
	at := slices.IndexFunc(w.rings, func(r *ring) bool { return r.index == o.index })
	switch {
	case o.what == orderClose && w.closing != nil:
		o.reply(nil, ErrClosed)
	case o.what == orderClose:
		w.closing = o
		w.leave()
		for _, r := range w.rings {
			r.draining = true
		}
	case o.what == orderStart && w.closing != nil:
		o.reply(nil, ErrClosed)
	case o.what == orderStart && at >= 0:
		panic(fmt.Sprintf("virtioblk: ring %d started twice", o.index))
	case o.what == orderStart:
		r := &ring{index: o.index, q: o.ring, files: o.files, resubmit: true}
		w.rings = append(w.rings, r)
		w.begin(r)
		o.reply(nil, nil)
	case at < 0 && o.what == orderSignal:
		o.reply(nil, fmt.Errorf("giving ring %d other descriptors: it is not started: %w", o.index, syscall.ENOENT))
	case at < 0:
		o.reply(nil, nil)
	case o.what == orderSignal:
		r := w.rings[at]
		r.files = o.files
		w.call(r)
		o.reply(nil, nil)
	default:
		r := w.rings[at]
		r.draining = true
		r.stops = append(r.stops, o)
	}
}

// begin is what a ring is begun to be served with.
func (w *Worker) begin(r *ring) {
	if err := r.q.Broken(); err != nil {
		w.breakRing(r, err)
		return
	}
	r.q.Disable()
	w.call(r) // what a predecessor has published it may not have announced
}

// settle gives back the rings that are drained.
func (w *Worker) settle() {
	for i := 0; i < len(w.rings); {
		r := w.rings[i]
		if !w.drained(r) {
			i++
			continue
		}
		w.publish(r)
		w.rings = slices.Delete(w.rings, i, i+1)
		w.forget()
		q := r.q
		for _, o := range r.stops {
			o.reply(q, nil)
			q = nil // it has one owner
		}
	}
}

// forget drops the slices of requests that are over: their memory may be unmapped
// now, and the Go heap grow into its place, where the collector would follow them.
func (w *Worker) forget() {
	for _, j := range w.freeJobs {
		j.chain, j.data = virtq.Chain{}, cursor{}
	}
	for _, p := range w.free {
		p.data = cursor{}
	}
}

// leave has nothing begun any more.
func (w *Worker) leave() {
	if w.quitting {
		return
	}
	w.quitting = true
	if q, ok := w.queue.(blk.Quitter); ok {
		q.Quit()
	}
}

// call notifies the driver.
func (w *Worker) call(r *ring) {
	w.signal(r.files.Call)
	w.tally.calls++
	w.told = false
}

// signal signals an event descriptor of a stranger. Only what makes it block, or
// fills it up, could fail: it is signalled then, or its owner wants no signals.
func (w *Worker) signal(fd int) {
	if fd < 0 {
		return
	}
	for sys.SignalEvent(fd) == syscall.EINTR && !w.urgent.Load() {
		continue
	}
}

// breakRing ends the service of a ring (V1): nothing more is popped. What is in
// flight goes on, and is published if the ring's memory is still there.
func (w *Worker) breakRing(r *ring, err error) {
	if r.broken != nil {
		return
	}
	r.broken = err
	w.tally.broken++
	w.told = false
	w.signal(r.files.Err)
	w.cfg.Broken(r.index, err)
}
