package ublk

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/sys"
	"vacate/internal/ublkcmd"
	"vacate/internal/uring"
)

// A fakeDriver is the kernel's driver as a server sees it: a memory file holds
// descriptors and data, a ring a queue the commands. What a tag's command may do it
// checks.
type fakeDriver struct {
	t     testing.TB
	file  *os.File
	depth int
	mu    sync.Mutex
	rings []*fakeRing
	fail  error // of the next fetch
}

func newFake(t testing.TB, depth int) *fakeDriver {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "ublk-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) //nolint:errcheck // memory
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(ublkcmd.BufOffset(MaxQueues, 0)); err != nil {
		t.Fatal(err)
	}
	return &fakeDriver{t: t, file: f, depth: depth}
}

func (d *fakeDriver) share(*os.File) (int, error) { return syscall.Dup(int(d.file.Fd())) }

func (d *fakeDriver) requests(fd int, queue uint16, size int) ([]byte, error) {
	return sys.MapDevice(fd, ublkcmd.DescOffset(int(queue), sys.PageSize), size)
}

func (d *fakeDriver) ring(int) (commands, error) {
	event, err := sys.NewEvent()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &fakeRing{d: d, event: event, tags: make([]fakeTag, d.depth)}
	d.rings = append(d.rings, r)
	return r, nil
}

// A fakeTag is what the driver knows of a tag.
type fakeTag struct {
	armed   bool       // a command of the server's is here
	asked   bool       // a request is with the server
	answers chan int32 // of that request
}

type fakeRing struct {
	d      *fakeDriver
	event  int
	mu     sync.Mutex
	staged []staged
	done   []uring.Completion
	tags   []fakeTag
	closed bool
	ended  bool // stopped: all commands are aborted
}

type staged struct {
	op  uint32
	cmd ublkcmd.IO
}

func (r *fakeRing) Command(id uint64, _ int, op uint32, cmd [16]byte) bool {
	c := *(*ublkcmd.IO)(unsafe.Pointer(&cmd))
	if id != uint64(c.Tag) || c.Addr != 0 {
		r.d.t.Errorf("a command with id %d: %+v", id, c)
	}
	r.staged = append(r.staged, staged{op, c})
	return true
}

// Enter takes what was staged, as the driver does.
func (r *fakeRing) Enter(bool) syscall.Errno {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.staged {
		tag := &r.tags[s.cmd.Tag]
		switch {
		case tag.armed:
			r.d.t.Errorf("tag %d has two commands", s.cmd.Tag)
		case s.op == uint32(ublkcmd.FetchReq) && r.d.fail != nil:
			r.done = append(r.done, uring.Completion{ID: uint64(s.cmd.Tag), Errno: syscall.EBUSY})
			continue
		case (s.op == uint32(ublkcmd.CommitAndFetchReq)) != tag.asked:
			r.d.t.Errorf("tag %d: command %#x, and a request was asked: %v", s.cmd.Tag, s.op, tag.asked)
		case tag.asked:
			tag.answers <- s.cmd.Result
			tag.asked = false
		}
		tag.armed = true
		if r.ended {
			r.abort(int(s.cmd.Tag))
		}
	}
	r.staged = r.staged[:0]
	return 0
}

func (r *fakeRing) Next() (c uring.Completion, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.done) == 0 {
		return c, false
	}
	c, r.done = r.done[0], r.done[1:]
	if len(r.done) == 0 {
		_ = sys.ClearEvent(r.event)
	}
	return c, true
}

func (r *fakeRing) Ready() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.done)
}

func (r *fakeRing) Deferred() bool   { return false }
func (r *fakeRing) Unsubmitted() int { return len(r.staged) }
func (r *fakeRing) FD() int32        { return int32(r.event) }

func (r *fakeRing) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.tags {
		if r.tags[i].armed {
			r.d.t.Errorf("the ring is closed while the driver has the command of tag %d", i)
		}
	}
	r.closed = true
	return sys.CloseFD(r.event)
}

// complete completes the command of a tag. REQUIRES: r.mu is held.
func (r *fakeRing) complete(tag int, result int) {
	r.tags[tag].armed = false
	c := uring.Completion{ID: uint64(tag), N: result}
	if result < 0 {
		c.N, c.Errno = 0, syscall.Errno(-result)
	}
	r.done = append(r.done, c)
	_ = sys.SignalEvent(r.event)
}

func (r *fakeRing) abort(tag int) { r.complete(tag, ublkcmd.ResAbort) }

// ask puts a request to a queue's tag, which is free, and returns where its answer
// comes.
func (d *fakeDriver) ask(queue, tag int, desc ublkcmd.Desc, data []byte) <-chan int32 {
	d.t.Helper()
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&desc)), ublkcmd.DescBytes)
	if _, err := d.file.WriteAt(raw, ublkcmd.DescOffset(queue, sys.PageSize)+int64(tag)*int64(ublkcmd.DescBytes)); err != nil {
		d.t.Fatal(err)
	}
	if len(data) > 0 {
		if _, err := d.file.WriteAt(data, ublkcmd.BufOffset(uint16(queue), uint16(tag))); err != nil {
			d.t.Fatal(err)
		}
	}
	d.mu.Lock()
	r := d.rings[queue]
	d.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &r.tags[tag]
	if !t.armed {
		d.t.Fatalf("tag %d has no command", tag)
	}
	t.asked, t.answers = true, make(chan int32, 1)
	r.complete(tag, ublkcmd.ResOK)
	return t.answers
}

// data is what the server has put there for a read.
func (d *fakeDriver) data(queue, tag, n int) []byte {
	b := make([]byte, n)
	if _, err := d.file.ReadAt(b, ublkcmd.BufOffset(uint16(queue), uint16(tag))); err != nil {
		d.t.Fatal(err)
	}
	return b
}

// stop stops the device: commands that are here are aborted, and those that come.
func (d *fakeDriver) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.rings {
		r.mu.Lock()
		r.ended = true
		for i := range r.tags {
			if r.tags[i].armed {
				r.abort(i)
			}
		}
		r.mu.Unlock()
	}
}

// answer waits for an answer.
func answer(t *testing.T, answers <-chan int32) int32 {
	t.Helper()
	select {
	case a := <-answers:
		return a
	case <-time.After(time.Minute):
		t.Fatal("a request is not answered")
		return 0
	}
}
