package drive

import (
	"fmt"
	"sync/atomic"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// The engine "pread": a queue carries out each request with one system call, in
// order, on the goroutine that submits it.
//
//  1. Submit puts requests into the queue's FIFO.
//  2. The outermost Submit, or Reap, takes them out one by one, carries each out
//     and completes it. It is there that the queue waits for the device.
//  3. What a completion submits is appended to the FIFO, so the stack does not
//     grow with the number of requests.

// NewQueue implements [blk.Device].
func (d *Drive) NewQueue(depth int) (blk.Queue, error) {
	if depth < 1 {
		return nil, fmt.Errorf("making a queue of drive %s: depth %d: %w", d.info.Path, depth, syscall.EINVAL)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fmt.Errorf("making a queue of drive %s: it is closed: %w", d.info.Path, syscall.EBADF)
	}
	q := &queue{d: d, fd: d.t.fd, waiting: blk.NewFIFO(depth)}
	d.queues[q] = struct{}{}
	return q, nil
}

type queue struct {
	d       *Drive
	fd      int
	waiting blk.FIFO
	running bool // a Submit is under way further down the stack

	count counters
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
	if q.waiting.Len() > 0 && q.d.t.isFile() {
		q.d.checkSize()
	}
	for r := q.waiting.Peek(); r != nil; r = q.waiting.Peek() {
		q.waiting.Pop()
		done, errno := q.carryOut(r)
		if errno != 0 {
			q.note(r, done, errno)
		}
		r.Finish(done, errno)
		n++
	}
	return n
}

// checkSize takes note when a file has become shorter than it was.
func (d *Drive) checkSize() {
	if size, errno := sys.SizeFD(d.t.fd); errno == 0 && size < d.limit.Load() {
		d.limit.Store(size) // smaller for ever; of two queues that see it, either will do
	}
}

// carryOut does what r asks for and counts it.
func (q *queue) carryOut(r *blk.Request) (int64, syscall.Errno) {
	d := q.d
	switch r.Op {
	case blk.OpRead, blk.OpWrite:
		if !r.InRange(d.size) || (r.Off|r.Len)&(blk.BlockSize-1) != 0 {
			return 0, syscall.EINVAL
		}
		off := d.offset + r.Off
		if off+r.Len > d.limit.Load() {
			return 0, syscall.EIO
		}
		n, errno := transfer(q.fd, r, off, d.flush && r.Flags&blk.FUA != 0)
		if errno != 0 {
			return n, errno
		}
		if r.Op == blk.OpRead {
			q.count.reads.Add(1)
			q.count.readBytes.Add(uint64(n))
		} else {
			q.count.writes.Add(1)
			q.count.writeBytes.Add(uint64(n))
		}
		return n, 0
	case blk.OpFlush:
		if d.flush {
			if errno := sys.Fdatasync(q.fd); errno != 0 {
				return 0, errno
			}
		}
		q.count.flushes.Add(1)
		return r.Len, 0
	}
	// Discards never come down here: the block map knows that a block is unwritten.
	return 0, syscall.EOPNOTSUPP
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

// note counts a request that failed.
func (q *queue) note(r *blk.Request, n int64, errno syscall.Errno) {
	q.count.errors.Add(1)
	q.d.lastError.Store(&blk.Error{Op: r.Op, Off: r.Off, Len: r.Len, N: n, Errno: errno})
}

// Close implements [blk.Queue].
func (q *queue) Close() error {
	if q.waiting.Len() > 0 {
		panic("drive: queue closed with requests in flight")
	}
	q.d.mu.Lock()
	defer q.d.mu.Unlock()
	if _, open := q.d.queues[q]; !open {
		return fmt.Errorf("closing a queue of drive %s twice: %w", q.d.info.Path, syscall.EBADF)
	}
	delete(q.d.queues, q)
	q.count.addTo(&q.d.gone)
	return nil
}
