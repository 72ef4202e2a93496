package ublk

import (
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
	"vacate/internal/uring"
)

// A mill is a driver that has the next request for a tag as soon as the last one is
// answered, as long as there is any to do. It costs next to nothing, and allocates
// nothing.
type mill struct {
	*fakeDriver
	op    uint32
	bytes int
	rings []*millRing
}

type millRing struct {
	d      *mill
	event  int
	descs  []ublkcmd.Desc
	staged []staged
	idle   []uint16 // tags whose command waits for a request
	ready  []uint16 // that have one
	next   int      // of ready
	failed int32    // an answer that was an error
	todo   atomic.Int64
	left   atomic.Int64 // answers to come
	over   atomic.Bool
	done   chan struct{}
}

func (d *mill) ring(depth int) (commands, error) {
	event, err := sys.NewEvent()
	if err != nil {
		return nil, err
	}
	i := len(d.rings)
	b, err := syscall.Mmap(int(d.file.Fd()), ublkcmd.DescOffset(i, sys.PageSize), sys.PageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	r := &millRing{d: d, event: event, descs: unsafe.Slice((*ublkcmd.Desc)(unsafe.Pointer(unsafe.SliceData(b))), depth), done: make(chan struct{}, 1)}
	r.staged, r.idle, r.ready = make([]staged, 0, depth), make([]uint16, 0, depth), make([]uint16, 0, 2*depth)
	d.rings = append(d.rings, r)
	d.t.Cleanup(func() { _ = syscall.Munmap(b) })
	return r, nil
}

func (r *millRing) Command(_ uint64, _ int, op uint32, cmd [16]byte) bool {
	r.staged = append(r.staged, staged{op, *(*ublkcmd.IO)(unsafe.Pointer(&cmd))})
	return true
}

func (r *millRing) Enter(bool) syscall.Errno {
	for _, s := range r.staged {
		if s.op == uint32(ublkcmd.CommitAndFetchReq) {
			if s.cmd.Result < 0 {
				r.failed = s.cmd.Result
			}
			if r.left.Add(-1) == 0 {
				r.done <- struct{}{}
			}
		}
		r.idle = append(r.idle, s.cmd.Tag)
	}
	r.staged = r.staged[:0]
	return 0
}

// fill gives idle tags requests. It is called by the thread before it looks.
func (r *millRing) fill() {
	if r.next == len(r.ready) {
		r.ready, r.next = r.ready[:0], 0
	}
	for len(r.idle) > 0 && (r.over.Load() || r.todo.Load() > 0) {
		last := len(r.idle) - 1
		tag := r.idle[last]
		r.idle = r.idle[:last]
		if !r.over.Load() {
			n := r.todo.Add(-1)
			r.descs[tag] = desc(r.d.op, int(n)%512*r.d.bytes%volLen, r.d.bytes)
		}
		r.ready = append(r.ready, tag)
	}
}

func (r *millRing) Next() (c uring.Completion, ok bool) {
	r.fill()
	if r.next == len(r.ready) {
		return c, false
	}
	c.ID = uint64(r.ready[r.next])
	r.next++
	if r.over.Load() {
		c.Errno = syscall.ENODEV
	}
	return c, true
}

func (r *millRing) Ready() int {
	_ = sys.ClearEvent(r.event)
	r.fill()
	return len(r.ready) - r.next
}

func (r *millRing) Deferred() bool   { return false }
func (r *millRing) Unsubmitted() int { return len(r.staged) }
func (r *millRing) FD() int32        { return int32(r.event) }
func (r *millRing) Close() error     { return sys.CloseFD(r.event) }

// run has n requests carried out.
func (r *millRing) run(n int) {
	r.left.Store(int64(n))
	r.todo.Store(int64(n))
	_ = sys.SignalEvent(r.event)
	<-r.done
}

// grind serves a device of one queue by v.
func grind(t testing.TB, op uint32, bytes, depth int, v blk.Device) *millRing {
	t.Helper()
	d := &mill{fakeDriver: newFake(t, depth), op: op, bytes: bytes}
	s, err := serve(nil, Config{Queues: 1, Depth: depth, MaxIO: blk.MaxTransfer, Lock: mem.TryLock}, d)
	if err != nil {
		t.Fatal(err)
	}
	r := d.rings[0]
	t.Cleanup(func() {
		s.Close()
		r.over.Store(true)
		_ = sys.SignalEvent(r.event)
		gone(t, s)
		if r.failed != 0 {
			t.Errorf("a request is answered %d", r.failed)
		}
	})
	if err := s.Resume(v); err != nil {
		t.Fatal(err)
	}
	return r
}

// atOnce carries requests out when they are submitted.
type atOnce struct{}

func (atOnce) Geometry() blk.Geometry {
	return blk.Geometry{Size: volLen, Logical: 512, Physical: 4096}
}
func (atOnce) NewQueue(int) (blk.Queue, error) { return atOnce{}, nil }
func (atOnce) Reap(bool) int                   { return 0 }
func (atOnce) Close() error                    { return nil }
func (atOnce) Submit(batch []*blk.Request) {
	for _, r := range batch {
		r.Finish(r.Len, 0)
	}
}

// TestAllocs: a request allocates nothing.
func TestAllocs(t *testing.T) {
	for name, op := range map[string]uint32{"read": ublkcmd.OpRead, "write": ublkcmd.OpWrite, "flush": ublkcmd.OpFlush} {
		t.Run(name, func(t *testing.T) {
			r := grind(t, op, 4096, 32, atOnce{})
			r.run(1000)
			if n := testing.AllocsPerRun(5, func() { r.run(2000) }); n > 20 { // of 2,000 requests: the runtime has its own
				t.Errorf("2,000 requests allocate %v times", n)
			}
		})
	}
}

// BenchmarkRequest is what a request costs without volume, driver and io_uring, but
// with the copy of its data.
func BenchmarkRequest(b *testing.B) {
	for name, op := range map[string]uint32{"read": ublkcmd.OpRead, "write": ublkcmd.OpWrite, "flush": ublkcmd.OpFlush} {
		b.Run(name, func(b *testing.B) {
			r := grind(b, op, 4096, 32, atOnce{})
			r.run(1000)
			b.ReportAllocs()
			b.ResetTimer()
			r.run(b.N)
			b.StopTimer()
		})
	}
}

var _ kernel = (*mill)(nil)
