package measure

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"time"

	"vacate/internal/bench"
	"vacate/internal/nbdclient"
	"vacate/internal/sys"
	"vacate/internal/uring"
)

// The raw side: requests that go to the drive as they are, without a daemon
// between. It is what the volume is compared with, so it is as lean as can be:
//
//  1. With direct I/O and io_uring, one ring on one locked thread, as fio does:
//     all requests in flight at once, one system call for a submission and the
//     wait for a completion.
//  2. Where there is no io_uring, as many threads as requests, each with pread or
//     pwrite.
//  3. Where there is no direct I/O, one thread: a page cache has nothing in
//     flight, and more threads would measure the processor's cores.

// How raw requests reach the drive.
const (
	rawRing    = "io_uring"
	rawThreads = "pread, a thread for each request"
	rawPread   = "pread"
)

// A raw is the raw side's part of the drive.
type raw struct {
	fd        int
	off, span int64 // bytes
	engine    string
}

// rawEngine says how to reach a drive.
func rawEngine(direct bool) string {
	switch {
	case !direct:
		return rawPread
	case uring.Probe() != nil:
		return rawThreads
	}
	return rawRing
}

// A tally is what a slice of time came to.
type tally struct {
	requests, bytes, errors int64
	first                   syscall.Errno // 0: none
	elapsed                 time.Duration
	times                   nbdclient.Times
}

// count takes note of a request that was answered.
func (t *tally) count(took time.Duration, want, n int, errno syscall.Errno) {
	t.requests++
	t.times.Add(took)
	if errno == 0 && n != want {
		errno = syscall.EIO
	}
	if errno == 0 {
		t.bytes += int64(n)
		return
	}
	t.errors++
	if t.first == 0 {
		t.first = errno
	}
}

func (t *tally) add(other *tally) {
	t.requests += other.requests
	t.bytes += other.bytes
	t.errors += other.errors
	if t.first == 0 {
		t.first = other.first
	}
	t.times.Merge(&other.times)
}

// run keeps w's depth of requests in flight for d.
func (r *raw) run(w bench.Workload, d time.Duration, seed uint64) (*tally, error) {
	depth := w.Depth
	if r.engine == rawPread {
		depth = 1
	}
	buf, err := sys.MapAnonymous(depth * w.BlockBytes)
	if err != nil {
		return nil, fmt.Errorf("getting %d buffers: %w", depth, err)
	}
	defer sys.Unmap(buf) //nolint:errcheck // nothing is in flight any more
	noise(buf, seed)
	if r.engine == rawRing {
		return r.ring(w, d, buf, seed)
	}
	return r.threads(w, d, depth, buf, seed), nil
}

// noise fills b with what no drive can make smaller.
func noise(b []byte, seed uint64) {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(key).Read(b) //nolint:errcheck // never fails
}

// A path gives the offsets of requests, in whole blocks.
type path struct {
	rng    *rand.Rand // nil: one after the other
	block  int64
	blocks int64
	off    int64
	next   int64 // block
}

func (r *raw) path(w bench.Workload, seed uint64) *path {
	p := &path{block: int64(w.BlockBytes), blocks: r.span / int64(w.BlockBytes), off: r.off}
	if w.Random {
		p.rng = rand.New(rand.NewPCG(seed, 2))
	}
	return p
}

func (p *path) step() int64 {
	n := p.next
	if p.rng != nil {
		n = p.rng.Int64N(p.blocks)
	} else if p.next++; p.next == p.blocks {
		p.next = 0
	}
	return p.off + n*p.block
}

// ring runs requests through a ring.
func (r *raw) ring(w bench.Workload, d time.Duration, buf []byte, seed uint64) (*tally, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ring, err := uring.New(w.Depth)
	if err != nil {
		return nil, err
	}
	l := ringLoad{ring: ring, r: r, w: w, p: r.path(w, seed), buf: buf, sent: make([]time.Time, w.Depth)}
	start := time.Now()
	for id := range w.Depth {
		l.push(id, start)
	}
	for l.inFlight > 0 {
		if errno := ring.Enter(true); errno != 0 {
			if err := l.retreat(errno); err != nil {
				return nil, err // the ring is lost with what it has in flight
			}
			continue
		}
		now := time.Now()
		for c, ok := ring.Next(); ok; c, ok = ring.Next() {
			l.inFlight--
			l.t.count(now.Sub(l.sent[c.ID]), w.BlockBytes, c.N, c.Errno)
			if now.Sub(start) < d {
				l.push(int(c.ID), now)
			}
		}
		l.t.elapsed = now.Sub(start)
	}
	return &l.t, ring.Close()
}

// A ringLoad is one ring under load.
type ringLoad struct {
	ring     *uring.Ring
	r        *raw
	w        bench.Workload
	p        *path
	buf      []byte
	sent     []time.Time // by request
	inFlight int
	t        tally
}

func (l *ringLoad) push(id int, now time.Time) {
	b := l.buf[id*l.w.BlockBytes:][:l.w.BlockBytes]
	off := l.p.step()
	if l.w.Write {
		l.ring.Write(uint64(id), l.r.fd, b, off, false)
	} else {
		l.ring.Read(uint64(id), l.r.fd, b, off)
	}
	l.sent[id] = now
	l.inFlight++
}

// retreat counts as failed what the kernel has not taken. Without any such, the
// ring itself is at fault.
func (l *ringLoad) retreat(errno syscall.Errno) error {
	if l.ring.Unsubmitted() == 0 {
		return fmt.Errorf("waiting for requests to the drive: %w", errno)
	}
	for l.ring.Unsubmitted() > 0 {
		l.ring.TakeBack()
		l.inFlight--
		l.t.count(0, l.w.BlockBytes, 0, errno)
	}
	return nil
}

// threads runs requests with one system call each, on n threads.
func (r *raw) threads(w bench.Workload, d time.Duration, n int, buf []byte, seed uint64) *tally {
	var all tally
	var mu sync.Mutex
	var group sync.WaitGroup
	start := time.Now()
	for i := range n {
		group.Go(func() {
			t := r.thread(w, start, d, buf[i*w.BlockBytes:][:w.BlockBytes], seed+uint64(i))
			mu.Lock()
			defer mu.Unlock()
			all.add(t)
		})
	}
	group.Wait()
	all.elapsed = time.Since(start)
	return &all
}

func (r *raw) thread(w bench.Workload, start time.Time, d time.Duration, buf []byte, seed uint64) *tally {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	t, p := new(tally), r.path(w, seed)
	if !w.Random { // threads of a sequential load start apart from each other
		p.next = int64(seed * 7919 % uint64(p.blocks))
	}
	for now := time.Now(); now.Sub(start) < d; {
		var n int
		var errno syscall.Errno
		if w.Write {
			n, errno = sys.Pwrite(r.fd, buf, p.step())
		} else {
			n, errno = sys.Pread(r.fd, buf, p.step())
		}
		end := time.Now()
		t.count(end.Sub(now), w.BlockBytes, n, errno)
		now = end
	}
	return t
}
