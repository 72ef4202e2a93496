package ublk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/poll"
	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
)

// A queue is one queue of the device, and the thread that serves it.
type queue struct {
	mailbox
	s     *Server
	index uint16
	dead  chan struct{} // closed after Close, once the volume has no queue of this one

	// All below belongs to the thread.
	ring     commands
	mapped   []byte         // the driver's descriptors
	descs    []ublkcmd.Desc // of mapped, one a tag
	arena    *arena
	tags     []tag
	volume   blk.Queue // nil: paused, or dead
	size     int64     // bytes of the volume
	dying    bool      // shut was seen
	pausing  []*order  // who waits until nothing is in flight
	asked    []*tag    // requests that wait to be begun, oldest first; at most all tags
	submit   []*blk.Request
	inflight int // in the volume
	commands int // with the driver
	budget   poll.Budget
	wait     blk.Wait
	ready    []sys.Ready
}

// startQueue starts queue i of s, and returns when the driver has its commands.
func startQueue(s *Server, i int, running *sync.WaitGroup) (*queue, error) {
	q := &queue{s: s, index: uint16(i), dead: make(chan struct{}), budget: poll.New(s.cfg.Poll)}
	var err error
	if q.wake, err = sys.NewEvent(); err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	running.Go(func() { q.run(started) })
	return q, <-started
}

// run is the thread, from its first step to its last.
func (q *queue) run(started chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the queue
	debug.SetPanicOnFault(true)
	q.tid.Store(int32(syscall.Gettid()))
	err := q.furnish()
	if err == nil {
		err = q.fetchAll()
	}
	if err != nil { // what the driver has already is to be given back all the same
		q.shut.Store(true)
		q.urgent.Store(true)
	}
	started <- err
	if q.ring != nil {
		q.serve()
	}
	q.finish()
}

// furnish makes what the queue needs, but for a volume.
func (q *queue) furnish() (err error) {
	depth := q.s.cfg.Depth
	if err := sys.Wakeable(); err != nil {
		return err
	}
	size := (depth*int(ublkcmd.DescBytes) + sys.PageSize - 1) / sys.PageSize * sys.PageSize
	if q.mapped, err = q.s.kernel.requests(q.s.fd, q.index, size); err != nil {
		return fmt.Errorf("mapping its requests: %w", err)
	}
	q.descs = unsafe.Slice((*ublkcmd.Desc)(unsafe.Pointer(unsafe.SliceData(q.mapped))), depth)
	if q.arena, err = newArena(arenaBytes, q.s.cfg.Lock); err != nil {
		return err
	}
	q.tags = make([]tag, depth)
	for i := range q.tags {
		t := &q.tags[i]
		t.queue, t.index = q, uint16(i)
		t.blk.Done = t
	}
	q.asked, q.submit = make([]*tag, 0, depth), make([]*blk.Request, 0, depth)
	q.ring, err = q.s.kernel.ring(depth)
	return err
}

// fetchAll gives the driver a command for each tag.
func (q *queue) fetchAll() error {
	for i := range q.tags {
		q.command(&q.tags[i], ublkcmd.FetchReq, 0)
	}
	if errno := q.ring.Enter(false); errno != 0 {
		return os.NewSyscallError("io_uring_enter", errno)
	}
	// What the driver refuses it says at once.
	for q.ring.Ready() > 0 {
		if c, ok := q.ring.Next(); ok {
			q.commands--
			return fmt.Errorf("fetching requests: %w", c.Errno)
		}
	}
	return nil
}

// command fills in a command for a tag. There is room: a tag has one at a time.
func (q *queue) command(t *tag, op ublkcmd.Op, result int32) {
	c := ublkcmd.IO{Queue: q.index, Tag: t.index, Result: result}
	if !q.ring.Command(uint64(t.index), q.s.fd, uint32(op), *(*[16]byte)(unsafe.Pointer(&c))) {
		panic("ublk: more commands than tags")
	}
	q.commands++
}

// finish gives everything back: the volume's queue first, for which others wait.
func (q *queue) finish() {
	var errs []error
	q.giveUp() // the device was stopped while it was served
	q.mu.Lock()
	q.ended = true
	late := q.orders
	q.orders = nil
	q.mu.Unlock()
	for _, o := range append(q.pausing, late...) {
		o.done <- o.refuse(nil)
	}
	q.die()
	if q.ring != nil {
		errs = append(errs, q.ring.Close())
	}
	if q.arena != nil {
		errs = append(errs, q.arena.close())
	}
	if q.mapped != nil {
		errs = append(errs, sys.Unmap(q.mapped))
	}
	if err := errors.Join(append(errs, sys.CloseFD(q.wake))...); err != nil {
		q.s.cfg.Log.Warn("giving back what a block device's queue had", "error", err)
	}
}

// serve works until the driver has given back every command (U4). What is staged for
// it is handed over at the start of each round.
func (q *queue) serve() {
	for {
		q.obey()
		if errno := q.ring.Enter(false); errno != 0 && errno != syscall.EAGAIN {
			panic("ublk: " + os.NewSyscallError("io_uring_enter", errno).Error()) // the device's next server goes on
		}
		moved := q.take()
		moved = q.launch() || moved
		q.rest()
		if q.commands == 0 && q.inflight == 0 && len(q.asked) == 0 {
			return
		}
		if !moved && q.ring.Unsubmitted() == 0 {
			q.await()
		}
	}
}

// obey carries out what others have ordered.
func (q *queue) obey() {
	if !q.urgent.Load() {
		return
	}
	q.urgent.Store(false) // before the look at the orders: a later one sets it again
	q.mu.Lock()
	orders := q.orders
	q.orders = nil
	q.mu.Unlock()
	if q.shut.Load() && !q.dying {
		q.leave()
	}
	for _, o := range orders {
		switch {
		case o.volume == nil:
			q.pausing = append(q.pausing, o)
		case q.dying:
			o.done <- o.refuse(nil)
		case q.volume != nil:
			o.done <- o.refuse(ErrServed)
		default:
			q.resume(o)
			o.done <- nil
		}
	}
}

// leave has nothing carried out any more. What is in flight is answered at once: its
// drive may hang, and then nobody could stop the device.
func (q *queue) leave() {
	q.dying = true
	if v, ok := q.volume.(blk.Quitter); ok {
		v.Quit()
	}
	for i := range q.tags {
		if t := &q.tags[i]; t.flying {
			t.orphan = true
			t.answer(-int32(syscall.EIO))
		}
	}
}

// resume has requests carried out by the volume that o brings.
func (q *queue) resume(o *order) {
	q.volume, q.size = o.volume, o.size
	if r, ok := q.volume.(blk.Registrar); ok {
		r.Register(q.arena.region.Bytes())
	}
}

// rest gives the volume back if somebody waits for that, nothing is in flight, and the
// driver has been told what became of it.
func (q *queue) rest() {
	if len(q.pausing) == 0 && !q.dying || q.inflight > 0 || !q.dying && q.ring.Unsubmitted() > 0 {
		return
	}
	q.giveUp()
	for _, o := range q.pausing {
		o.done <- nil
	}
	q.pausing = q.pausing[:0]
	if q.dying {
		q.die()
	}
}

// giveUp gives the volume back, if there is one. REQUIRES: nothing is in flight.
func (q *queue) giveUp() {
	if q.volume == nil {
		return
	}
	if err := q.volume.Close(); err != nil {
		q.s.cfg.Log.Warn("giving back a volume's queue", "error", err)
	}
	q.volume = nil
}

// die says that nothing of this queue reaches the volume any more.
func (q *queue) die() {
	select {
	case <-q.dead:
	default:
		close(q.dead)
	}
}

// How long await sleeps at most.
const (
	longestWait = int64(100 * time.Millisecond) // the volume has named a time
	blindWait   = int64(time.Millisecond)       // something that nothing announces, beside something that is announced
)

// await polls, and then sleeps until the driver has a request, the volume has
// something to do, or somebody orders something. It may return early.
func (q *queue) await() {
	if q.poll() {
		return
	}
	q.wait.Reset()
	most := int64(0)
	if q.inflight > 0 {
		blk.Pending(q.volume, &q.wait)
		switch {
		case q.wait.Due == 1: // now
			return
		case q.wait.Blind || q.wait.Due == 0 && len(q.wait.FDs) == 0:
			most = blindWait
		case q.wait.Due != 0:
			most = longestWait
		}
	}
	q.ready = append(q.ready[:0], sys.Ready{FD: int32(q.wake), Events: sys.ReadyRead}, sys.Ready{FD: q.ring.FD(), Events: sys.ReadyRead})
	for _, fd := range q.wait.FDs {
		q.ready = append(q.ready, sys.Ready{FD: fd, Events: sys.ReadyRead})
	}
	if errno := sys.WaitReady(q.ready, q.wait.Due, most); errno == 0 && q.ready[0].Got != 0 {
		_ = sys.ClearEvent(q.wake) // EAGAIN: it was signalled for what was done already
	}
}

// poll looks for something to do, as long as that has paid lately.
func (q *queue) poll() bool {
	if q.volume == nil {
		return false
	}
	budget := q.budget.Begin()
	if budget == 0 {
		return false
	}
	found := false
	for start := time.Now(); !found && time.Since(start) < budget; {
		found = q.inflight > 0 && q.volume.Reap(false) > 0 || q.ring.Ready() > 0 || q.ring.Deferred() || q.urgent.Load()
	}
	q.budget.End(found)
	return found
}
