package virtioblk

import (
	"bytes"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// A ram is a volume in memory, which completes within Submit, or, with hold,
// within a Reap after the next release. Like the layers it answers EFAULT where the
// driver's memory faults.
type ram struct {
	mu      sync.Mutex
	bytes   []byte
	logical int
	fail    func(r *blk.Request) syscall.Errno // nil: nothing fails

	hold    bool
	held    chan struct{} // a release an element
	begun   atomic.Int64
	fua     atomic.Int64
	foreign atomic.Int64 // reads and writes straight from and to the driver's memory
	bounced atomic.Int64
	queues  atomic.Int64 // open
	longest int64
}

func newRAM(size int) *ram {
	return &ram{bytes: make([]byte, size), logical: 512, held: make(chan struct{}, 1<<16)}
}

// contents returns what it holds.
func (d *ram) contents() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.bytes)
}

func (d *ram) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(len(d.bytes)), Logical: d.logical, Physical: blk.BlockSize}
}

func (d *ram) NewQueue(depth int) (blk.Queue, error) {
	d.queues.Add(1)
	return &ramQueue{d: d, depth: depth}, nil
}

type ramQueue struct {
	d       *ram
	depth   int
	waiting []*blk.Request
	quit    bool
}

func (q *ramQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		q.d.begun.Add(1)
		if len(q.waiting) == q.depth {
			panic("ram: more requests than the depth")
		}
		if q.d.hold {
			q.waiting = append(q.waiting, r)
			continue
		}
		q.carryOut(r)
	}
}

func (q *ramQueue) carryOut(r *blk.Request) {
	n, errno := q.d.do(r)
	r.Finish(n, errno)
}

func (q *ramQueue) Reap(wait bool) (n int) {
	for len(q.waiting) > 0 {
		select {
		case <-q.d.held:
		default:
			if !wait || n > 0 {
				return n
			}
			<-q.d.held
		}
		r := q.waiting[0]
		q.waiting = q.waiting[1:]
		q.carryOut(r)
		n++
	}
	return n
}

func (q *ramQueue) Quit() { q.quit = true }

// Pending has the worker look again soon.
func (q *ramQueue) Pending(w *blk.Wait) {
	if len(q.waiting) > 0 {
		w.Until(1 + 1) // at once, by way of the wait
	}
}

func (q *ramQueue) Close() error {
	if len(q.waiting) > 0 {
		panic("ram: closed with requests in flight")
	}
	q.d.queues.Add(-1)
	return nil
}

func (d *ram) do(r *blk.Request) (n int64, errno syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !r.InRange(int64(len(d.bytes))) || r.Off%int64(d.logical) != 0 || r.Len%int64(d.logical) != 0 {
		return 0, syscall.EINVAL
	}
	if d.fail != nil {
		if errno := d.fail(r); errno != 0 {
			return 0, errno
		}
	}
	if r.Flags&blk.FUA != 0 {
		d.fua.Add(1)
	}
	d.longest = max(d.longest, int64(len(r.Buf)))
	switch r.Op {
	case blk.OpRead, blk.OpWrite:
		if r.Flags&blk.Foreign == 0 {
			d.bounced.Add(1)
		} else {
			d.foreign.Add(1)
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() {
				if recover() != nil {
					n, errno = 0, syscall.EFAULT
				}
			}()
		}
		if r.Op == blk.OpRead {
			copy(r.Buf, d.bytes[r.Off:])
		} else {
			copy(d.bytes[r.Off:], r.Buf)
		}
	case blk.OpDiscard, blk.OpWriteZeroes:
		clear(d.bytes[r.Off : r.Off+r.Len])
	}
	return r.Len, 0
}

// served is a worker that serves one ring of a new driver.
func served(tb testing.TB, d *driver, cfg Config) *Worker {
	tb.Helper()
	cfg.Lock = mem.TryLock
	w, err := NewWorker(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := w.Close(); err != nil {
			tb.Error(err)
		}
	})
	if err := w.Start(0, d.ring(), d.files); err != nil {
		tb.Fatal(err)
	}
	return w
}

// failSecond has the second request fail.
func failSecond(calls *int, errno syscall.Errno) func(*blk.Request) syscall.Errno {
	return func(*blk.Request) syscall.Errno {
		if *calls++; *calls == 2 {
			return errno
		}
		return 0
	}
}
