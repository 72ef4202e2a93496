package nbd

import (
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
)

// A memory is a volume in memory, for tests. It completes requests within
// Submit, or, if async, within Reap, in random order.
type memory struct {
	logical int
	async   bool
	fail    func(r *blk.Request) syscall.Errno // called under mu; nil: nothing fails
	hang    chan struct{}                      // requests wait until it is closed; nil: none does

	entered  atomic.Int64 // requests that were carried out, or hang
	bypassed atomic.Int64 // bytes of holes that were told

	mu      sync.RWMutex
	data    []byte
	written []bool // by block
	flushes int
	fua     int // writes, zeroes and discards with FUA
}

func newMemory(size int) *memory {
	return &memory{logical: 512, data: make([]byte, size), written: make([]bool, (size+blk.BlockSize-1)/blk.BlockSize)}
}

func (m *memory) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(len(m.data)), Logical: m.logical, Physical: blk.BlockSize}
}

func (m *memory) NewQueue(depth int) (blk.Queue, error) {
	return &memoryQueue{m: m, depth: depth, rng: rand.New(rand.NewPCG(1, uint64(depth)))}, nil
}

// extents is Config.Map.
func (m *memory) extents(off, length int64, yield func(off, n int64, written bool) bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for end := off + length; off < end; {
		next := min(end, (off/blk.BlockSize+1)*blk.BlockSize)
		if !yield(off, next-off, m.written[off/blk.BlockSize]) {
			return
		}
		off = next
	}
}

func (m *memory) carryOut(r *blk.Request) (int64, syscall.Errno) {
	m.entered.Add(1)
	if m.hang != nil {
		<-m.hang
	}
	if !r.InRange(int64(len(m.data))) {
		return 0, syscall.EINVAL
	}
	if r.Op == blk.OpRead {
		m.mu.RLock()
		defer m.mu.RUnlock()
	} else {
		m.mu.Lock()
		defer m.mu.Unlock()
	}
	if m.fail != nil {
		if errno := m.fail(r); errno != 0 {
			return 0, errno
		}
	}
	if r.Op == blk.OpRead {
		copy(r.Buf, m.data[r.Off:])
		return r.Len, 0
	}
	if r.Flags&blk.FUA != 0 {
		m.fua++
	}
	switch r.Op {
	case blk.OpFlush:
		m.flushes++
		return r.Len, 0
	case blk.OpWrite:
		copy(m.data[r.Off:], r.Buf)
		m.mark(r.Off, r.Len, true)
	default:
		clear(m.data[r.Off : r.Off+r.Len])
		m.mark(r.Off, r.Len, false)
	}
	return r.Len, 0
}

// mark sets the state of blocks: of whole ones only if they become unwritten.
func (m *memory) mark(off, n int64, written bool) {
	first, last := off/blk.BlockSize, (off+n-1)/blk.BlockSize
	for b := first; b <= last; b++ {
		if written || b*blk.BlockSize >= off && (b+1)*blk.BlockSize <= off+n {
			m.written[b] = written
		}
	}
}

// with calls f while no request is carried out: sockets order what two threads
// do, but the race detector does not know that.
func (m *memory) with(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

type memoryQueue struct {
	m       *memory
	depth   int
	waiting []*blk.Request
	rng     *rand.Rand
}

func (q *memoryQueue) Submit(batch []*blk.Request) {
	if len(q.waiting)+len(batch) > q.depth {
		panic("more requests than the queue is deep")
	}
	if q.m.async {
		q.waiting = append(q.waiting, batch...)
		return
	}
	for _, r := range batch {
		r.Finish(q.m.carryOut(r))
	}
}

func (q *memoryQueue) Reap(wait bool) int {
	n := q.rng.IntN(len(q.waiting) + 1)
	if wait && n == 0 && len(q.waiting) > 0 {
		n = 1
	}
	for range n {
		i := q.rng.IntN(len(q.waiting))
		r := q.waiting[i]
		q.waiting[i] = q.waiting[len(q.waiting)-1]
		q.waiting = q.waiting[:len(q.waiting)-1]
		r.Finish(q.m.carryOut(r))
	}
	return n
}

// Bypass implements [blk.Bypasser]: a volume that fails, or hangs, has the last word.
func (q *memoryQueue) Bypass() bool {
	q.m.mu.RLock()
	defer q.m.mu.RUnlock()
	return q.m.fail == nil && q.m.hang == nil
}

func (q *memoryQueue) Bypassed(n int64, _ bool) { q.m.bypassed.Add(n) }

func (q *memoryQueue) Close() error {
	if len(q.waiting) > 0 {
		panic("queue closed with requests in flight")
	}
	return nil
}

// config is a Config for m with small limits.
func (m *memory) config() Config {
	return Config{Export: m, Map: m.extents, Lock: mem.TryLock}
}

// serve serves cfg on a socket in a folder of the test and returns its path.
func serve(t testing.TB, cfg Config) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Serve(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop(t, s)
		l.Close()
	})
	return s, path
}

// stop closes s and checks that it ends.
func stop(t testing.TB, s *Server) {
	t.Helper()
	s.Close()
	ended := make(chan struct{})
	go func() { s.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the server did not end within a minute of Close")
	}
	if n := s.Stats().Connections; n != 0 {
		t.Errorf("%d connections after Wait, want 0", n)
	}
}

// alone returns a server without a socket of its own.
func alone(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := newServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) })
	return s
}

// connect hands s one end of a socket pair and returns the other.
func connect(t testing.TB, s *Server) net.Conn {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "socketpair")
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.places <- struct{}{}
	s.start(fds[0])
	return conn
}

// client opens a connection to s.
func client(t testing.TB, s *Server, o nbdclient.Options) *nbdclient.Client {
	t.Helper()
	c, err := nbdclient.New(connect(t, s), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Abort() })
	return c
}
