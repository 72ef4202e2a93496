package drive

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// The engine "pread": a queue carries out each request with one system call, in
// order, on the goroutine that submits it. It is for what is buffered, and for
// where there is no io_uring (ring.go and mmap.go have the other engines).
//
//  1. Submit puts requests into the queue's FIFO.
//  2. The outermost Submit, or Reap, takes them out one by one, carries each out
//     and completes it. It is there that the queue waits for the device.
//  3. What a completion submits is appended to the FIFO, so the stack does not
//     grow with the number of requests.

// NewQueue implements [blk.Device]. A queue for which no ring can be made works
// without.
func (d *Drive) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a queue of drive %s: depth %d: %w", d.info.Path, depth, syscall.EINVAL)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fmt.Errorf("making a queue of drive %s: it is closed: %w", d.info.Path, syscall.EBADF)
	}
	if d.info.Engine == EngineRing {
		if q, err := newRingQueue(d, depth); err == nil {
			d.lanes[&q.lane] = struct{}{}
			return q, nil
		}
	}
	q := &mapQueue{queue: queue{lane: lane{d: d, fd: d.t.fd}, waiting: blk.NewFIFO(depth)}}
	d.lanes[&q.lane] = struct{}{}
	if d.area == nil {
		return &q.queue, nil
	}
	return q, nil
}

// A queue is a [blk.Queue] of the engine "pread".
type queue struct {
	lane
	waiting blk.FIFO
	running bool // a Submit is under way further down the stack
}

// Submit implements [blk.Queue].
func (q *queue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		q.waiting.Push(r)
	}
	if q.running {
		return
	}
	q.running = true
	q.run()
	q.running = false
}

// Reap has nothing to wait for: what is in flight is in the FIFO, and only when
// Reap is called from within a completion.
func (q *queue) Reap(bool) int { return q.run() }

func (q *queue) run() (n int) {
	q.fresh = false
	for r := q.waiting.Peek(); r != nil; r = q.waiting.Peek() {
		q.waiting.Pop()
		q.carryOut(r)
		n++
	}
	return n
}

// Pending implements [blk.Waiter]: nothing is in flight when Submit has returned.
func (q *queue) Pending(*blk.Wait) {}

// Close implements [blk.Queue].
func (q *queue) Close() error {
	if q.waiting.Len() > 0 {
		panic("drive: queue closed with requests in flight")
	}
	return q.leave()
}

// A lane is what the queues of both engines have in common: how requests are
// checked, counted and completed, and how one is carried out on the spot.
type lane struct {
	d     *Drive
	fd    int
	count counters
	// vouched: the drive was looked at after it had completed what is finished next.
	vouched bool

	fresh     bool // the size was looked at in this batch
	unchecked int  // reads and windows until it is looked at again
}

// counters are written by the queue's goroutine and read by any. The padding
// keeps them off the cache lines of other queues.
type counters struct {
	_                                                     [64]byte
	reads, writes, readBytes, writeBytes, flushes, errors atomic.Uint64
	_                                                     [64]byte
}

func (c *counters) addTo(s *Stats) {
	s.Reads += c.reads.Load()
	s.Writes += c.writes.Load()
	s.ReadBytes += c.readBytes.Load()
	s.WriteBytes += c.writeBytes.Load()
	s.Flushes += c.flushes.Load()
	s.Errors += c.errors.Load()
}

// checkEvery is how many reads, or windows, a queue lets pass between two looks at
// the size of a file. A read of what was cut off falls short, and a touch of a page
// of it is a fault, in any case; the look is for a file that was cut and made longer
// again, or within a page, where what was lost would read as zeros. A write would make it longer itself: none
// goes without a look.
const checkEvery = 32

// look looks at the size of a file before a write, and now and then.
func (l *lane) look(write bool) {
	if l.unchecked--; l.unchecked < 0 || write && !l.fresh {
		l.unchecked, l.fresh = checkEvery-1, true
		l.d.checkSize()
	}
}

// checkSize takes note when a file has become shorter than it was.
func (d *Drive) checkSize() {
	if !d.t.isFile() {
		return
	}
	size, errno := sys.SizeFD(d.t.fd)
	if errno != 0 {
		return
	}
	for limit := d.limit.Load(); size < limit; limit = d.limit.Load() { // smaller for ever, whoever else sees it
		d.limit.CompareAndSwap(limit, size)
	}
}

// admit returns where on the drive r lies, or why it is not carried out.
func (l *lane) admit(r *blk.Request) (off int64, errno syscall.Errno) {
	d := l.d
	switch r.Op {
	case blk.OpRead, blk.OpWrite:
		if !r.InRange(d.size) || (r.Off|r.Len)&(blk.BlockSize-1) != 0 {
			return 0, syscall.EINVAL
		}
		l.look(r.Op == blk.OpWrite)
		off = d.offset + r.Off
		if off+r.Len > d.limit.Load() {
			return 0, syscall.EIO
		}
		return off, 0
	case blk.OpFlush:
		return 0, 0
	}
	// Discards never come down here: the block map knows that a block is unwritten.
	return 0, syscall.EOPNOTSUPP
}

// fua reports whether r is a write that must be on the medium when it completes.
func (l *lane) fua(r *blk.Request) bool { return l.d.flush && r.Flags&blk.FUA != 0 }

// carryOut does what r asks for, waits for it, and completes it.
func (l *lane) carryOut(r *blk.Request) {
	l.vouched = false // what is done here comes after that look
	off, errno := l.admit(r)
	n := int64(0)
	switch {
	case errno != 0:
	case r.Op == blk.OpFlush:
		if l.d.flush {
			errno = sys.Fdatasync(l.fd)
		}
		if errno == 0 {
			n = r.Len
		}
	default:
		n, errno = transfer(l.fd, r, off, l.fua(r))
	}
	l.finish(r, n, errno)
}

// finish counts r and completes it.
func (l *lane) finish(r *blk.Request, n int64, errno syscall.Errno) {
	if l.d.guarded {
		n, errno = l.judge(r, n, errno)
		l.vouched = false // what r's owner submits and reaps from within its completion comes later
	}
	switch {
	case errno != 0 || n != r.Len:
		if errno == 0 {
			errno = syscall.EIO
		}
		l.failed(&blk.Error{Op: r.Op, Off: r.Off, Len: r.Len, N: n, Errno: errno})
	case r.Op == blk.OpRead:
		l.count.reads.Add(1)
		l.count.readBytes.Add(uint64(n))
	case r.Op == blk.OpWrite:
		l.count.writes.Add(1)
		l.count.writeBytes.Add(uint64(n))
	case r.Op == blk.OpFlush:
		l.count.flushes.Add(1)
	}
	r.Finish(n, errno)
}

// failed counts a request that failed. If it is because a file was cut, that is
// remembered.
func (l *lane) failed(e *blk.Error) {
	l.d.checkSize()
	l.count.errors.Add(1)
	l.d.lastError.Store(e)
}

// leave takes the lane out of its drive.
func (l *lane) leave() error {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if _, open := l.d.lanes[l]; !open {
		return fmt.Errorf("closing a queue of drive %s twice: %w", l.d.info.Path, syscall.EBADF)
	}
	delete(l.d.lanes, l)
	l.count.addTo(&l.d.gone)
	return nil
}

// transfer reads or writes all of r at off, in one call, or two if the first
// falls short. What is then missing is an error: EIO, with the count of what
// was done.
func transfer(fd int, r *blk.Request, off int64, fua bool) (int64, syscall.Errno) {
	n, errno := once(fd, r, r.Buf, off, fua)
	if errno != 0 || n == len(r.Buf) {
		return int64(n), errno
	}
	more, errno := once(fd, r, r.Buf[n:], off+int64(n), fua)
	if n += more; n == len(r.Buf) {
		return int64(n), 0
	}
	if errno == 0 || errno == syscall.EINVAL { // the end; or a direct transfer that is not aligned any more
		errno = syscall.EIO
	}
	return int64(n), errno
}

func once(fd int, r *blk.Request, p []byte, off int64, fua bool) (int, syscall.Errno) {
	switch {
	case r.Op == blk.OpRead:
		return sys.Pread(fd, p, off)
	case fua:
		return sys.PwriteSync(fd, p, off)
	}
	return sys.Pwrite(fd, p, off)
}
