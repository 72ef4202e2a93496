package virtioblk

import (
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/fail"
	"vacate/internal/sys"
)

// The loop of a worker. Each round:
//
//  1. obey carries out what the control side has ordered.
//  2. advance and take stage what there is room for.
//  3. launch submits it, and reaps.
//  4. spread publishes what is done.
//  5. If nothing of that moved anything, await polls, and then sleeps until a
//     driver kicks, the volume has something to do, or an order comes.
//
// Where the volume completes everything within Submit, as drives in memory do, a
// round pops, carries out and publishes a batch, and makes no system call but the
// one that calls the driver.

// serve works until Close.
func (w *Worker) serve() {
	for !w.obey() {
		if checked && syscall.Gettid() != int(w.tid.Load()) {
			panic("virtioblk: worker left its thread")
		}
		if !w.round() {
			w.await()
		}
	}
	w.tell()
	if w.closing != nil {
		w.closing.reply(nil, nil)
	}
}

// round does steps 2 to 4, and reports whether anything moved. Who comes first may use
// up the room, so that changes each time.
func (w *Worker) round() bool {
	w.turn++
	old := w.turn%2 == 0 && w.advance()
	moved := false
	for i := range w.rings {
		if w.take(w.rings[(w.turn/2+i)%len(w.rings)]) {
			moved = true
		}
	}
	if w.turn%2 != 0 {
		old = w.advance()
	}
	launched := w.launch()
	w.spread()
	return old || moved || launched
}

// advance goes on with the jobs that found no room before, in turns. It reports
// whether one has got on.
func (w *Worker) advance() (moved bool) {
	for n := w.cutting.n; n > 0 && (len(w.free) > 0 || w.quitting); n-- {
		j := w.cutting.peek()
		w.cutting.pop()
		if w.quitting {
			j.fail(syscall.ECANCELED)
		}
		before := len(w.submit)
		if !w.stage(j) {
			moved = moved || len(w.submit) > before
			w.cutting.push(j)
			continue
		}
		moved = true
		j.queued = false
		if j.parts == 0 {
			w.answer(j)
		}
	}
	return moved
}

// room reports whether a request could be taken.
func (w *Worker) room() bool { return len(w.freeJobs) > 0 && len(w.free) > 0 && !w.quitting }

// take pops a batch from r, answers what needs no I/O, and stages the others. It
// reports whether there was something. The requests are in the cache of the
// driver's processor: all are asked for before the first is looked at.
func (w *Worker) take(r *ring) bool {
	n, err := w.pop(r)
	for _, j := range w.taken[:n] {
		j.begin()
		if !w.stage(j) {
			w.cutting.push(j)
			j.queued = true
		} else if j.parts == 0 {
			w.answer(j)
		}
	}
	clear(w.taken[:n])
	if err != nil {
		w.breakRing(r, err)
	}
	return n > 0 || err != nil
}

// pop puts what there is in r, and room for, into taken. The error breaks r, after
// what was popped.
func (w *Worker) pop(r *ring) (n int, err error) {
	bytes := uint64(0)
	for most := min(batch, len(w.free), len(w.freeJobs)); n < most && bytes < batchBytes && w.room() && r.open(); n++ {
		last := len(w.freeJobs) - 1
		j := w.freeJobs[last]
		ok, err := r.q.Pop(&j.chain)
		if !ok {
			return n, err
		}
		j.fetch()
		bytes += j.chain.ReadLen + j.chain.WriteLen
		w.freeJobs = w.freeJobs[:last]
		j.ring = r
		r.inflight++
		r.vain = 0
		if j.chain.Again {
			w.tally.resubmitted++
		}
		w.taken[n] = j
	}
	return n, nil
}

// launch submits what is staged, and reaps. It reports whether that moved
// anything.
func (w *Worker) launch() bool {
	w.inflight += len(w.submit)
	before, reaped := w.inflight, 0
	if len(w.submit) > 0 {
		fail.At(fail.EngineRingPopped)
		w.queue.Submit(w.submit)
		w.submit = w.submit[:0]
	}
	if w.inflight > 0 {
		reaped = w.queue.Reap(false)
	}
	return reaped > 0 || w.inflight < before
}

// spread publishes what is done, and gives back rings that are drained.
func (w *Worker) spread() {
	draining := false
	for _, r := range w.rings {
		w.publish(r)
		draining = draining || w.drained(r)
	}
	if draining {
		w.settle()
	}
	w.tell()
}

// tell adds the tally up.
func (w *Worker) tell() {
	if !w.told {
		w.tally.tell(w.cfg.Counters)
		w.told = true
	}
}

// How long await sleeps at most.
const (
	// The volume has named a time: what it waits for may come sooner, when a rate
	// limit is raised or the lease is shut.
	longestWait = int64(100 * time.Millisecond)
	// Something of the volume's waits that nothing announces, such as another
	// worker's request, beside something that is announced.
	blindWait = int64(time.Millisecond)
	// A driver announces nothing: it has no kick descriptor.
	silentWait = int64(200 * time.Microsecond)
	// A driver has announced nothing too often.
	vainWait = int64(10 * time.Millisecond)
)

// await waits until something can move. It may return early.
func (w *Worker) await() {
	room := w.room()
	if w.poll(room) || room && w.enable() {
		return
	}
	w.wait.Reset()
	if w.inflight > 0 {
		blk.Pending(w.queue, &w.wait)
		if w.wait.Due == 1 { // now
			return
		}
		if len(w.wait.FDs) == 0 && (w.wait.Blind || w.wait.Due == 0) {
			w.mustReap()
			return
		}
	}
	w.sleep(room)
	if room {
		for _, r := range w.rings {
			if r.open() {
				r.q.Disable()
			}
		}
	}
}

// mustReap waits for a completion. REQUIRES: something is in flight.
func (w *Worker) mustReap() {
	if w.queue.Reap(true) == 0 && w.inflight > 0 {
		panic("virtioblk: Reap returned with requests in flight")
	}
}

// poll looks for something to do, as long as that has paid lately. It reports
// whether something was found; if not, Reap(false) has just found nothing.
func (w *Worker) poll(room bool) bool {
	if len(w.rings) == 0 {
		return false
	}
	budget := w.budget.Begin()
	if budget == 0 {
		return false
	}
	found := false
	for start := time.Now(); !found; {
		found = w.inflight > 0 && w.queue.Reap(false) > 0 || room && w.pending() || w.urgent.Load()
		if time.Since(start) >= budget {
			break
		}
	}
	w.budget.End(found)
	return found
}

// pending reports whether a ring has something to be popped.
func (w *Worker) pending() bool {
	for _, r := range w.rings {
		if r.open() && r.q.Pending() {
			return true
		}
	}
	return false
}

// enable asks the drivers to kick. It reports whether one has added something
// meanwhile, for which it may not.
func (w *Worker) enable() (more bool) {
	for _, r := range w.rings {
		if !r.open() {
			continue
		}
		if r.q.Enable() {
			more = true
		} else if err := r.q.Broken(); err != nil {
			w.breakRing(r, err)
		}
	}
	return more
}

// watch returns what announces requests of r; or -1, and after how long to look.
func (r *ring) watch() (fd int32, look int64) {
	switch {
	case r.files.Kick < 0:
		return -1, silentWait
	case r.vain > maxVain:
		return -1, vainWait
	}
	return int32(r.files.Kick), 0
}

// sleep waits for orders, for the volume, and, if requests could be taken, for
// kicks.
func (w *Worker) sleep(room bool) {
	w.ready = append(w.ready[:0], sys.Ready{FD: int32(w.wake), Events: sys.ReadyRead})
	most := int64(0)
	switch {
	case w.wait.Blind:
		most = blindWait
	case w.wait.Due != 0:
		most = longestWait
	}
	for _, r := range w.rings {
		fd := int32(-1) // passed over
		if room && r.open() {
			var look int64
			if fd, look = r.watch(); fd < 0 && (most == 0 || most > look) {
				most = look
			}
		}
		w.ready = append(w.ready, sys.Ready{FD: fd, Events: sys.ReadyRead})
	}
	for _, fd := range w.wait.FDs {
		w.ready = append(w.ready, sys.Ready{FD: fd, Events: sys.ReadyRead})
	}
	switch errno := sys.WaitReady(w.ready, w.wait.Due, most); errno {
	case 0:
	case syscall.EINTR:
		return
	default: // no memory
		if w.inflight > 0 {
			w.mustReap()
		}
		return
	}
	if w.ready[0].Got != 0 {
		_ = sys.ClearEvent(w.wake) // EAGAIN: it was signalled for what was done already
	}
	for i, r := range w.ready[1 : 1+len(w.rings)] {
		if r.Got != 0 {
			_ = sys.ClearEvent(int(r.FD)) // likewise
			w.rings[i].vain++
			w.tally.kicks++
			w.told = false
		}
	}
}
