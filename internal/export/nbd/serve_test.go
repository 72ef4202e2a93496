package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/nbdclient"
)

// modes are the ways to talk to the server, each over a volume that answers at
// once and one that answers later.
var modes = []struct {
	name    string
	options nbdclient.Options
	async   bool
	depth   int
}{
	{name: "structured"},
	{name: "structured, async", async: true},
	{name: "structured, no block size", options: nbdclient.Options{NoBlockSize: true}},
	{name: "structured, depth 1", depth: 1, async: true},
	{name: "simple", options: nbdclient.Options{SimpleReplies: true, NoBlockSize: true}},
	{name: "simple, async", options: nbdclient.Options{SimpleReplies: true, NoBlockSize: true}, async: true},
	{name: "export name", options: nbdclient.Options{OldStyle: true}},
}

// TestModel compares the volume, as clients see it, with a slow and obvious
// model, over random requests of every alignment and length.
func TestModel(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			m := newMemory(3 << 20)
			m.async = mode.async
			cfg := m.config()
			cfg.QueueDepth = mode.depth
			s := alone(t, cfg)
			c := client(t, s, mode.options)
			unit := int64(1)
			if minimum, _, _ := c.BlockSizes(); minimum > 0 && !mode.options.NoBlockSize {
				unit = int64(minimum)
			}
			runModel(t, c, m, unit)
		})
	}
}

func runModel(t *testing.T, c *nbdclient.Client, m *memory, unit int64) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	want := make([]byte, c.Size())
	for range 400 {
		// Lengths of every order of magnitude.
		n := max(1, rng.Int64N(1+c.Size()>>rng.IntN(20))/unit) * unit
		off := rng.Int64N((c.Size()-n)/unit+1) * unit
		var err error
		switch rng.IntN(6) {
		case 0, 1:
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			copy(want[off:], p)
			_, err = c.WriteAt(p, off)
		case 2:
			clear(want[off : off+n])
			err = c.Zero(off, n, nbdclient.FastZero)
		case 3:
			clear(want[off : off+n])
			err = c.Trim(off, n, nbdclient.FUA)
		default:
			p := make([]byte, n)
			_, err = c.ReadAt(p, off)
			if !bytes.Equal(p, want[off:off+n]) {
				t.Fatalf("read of %d bytes at %d differs from the model", n, off)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	m.with(func() {
		if !bytes.Equal(m.data, want) {
			t.Error("the volume differs from the model")
		}
	})
}

func TestBlockStatus(t *testing.T) {
	m := newMemory(16 << 20)
	s := alone(t, m.config())
	c := client(t, s, nbdclient.Options{NoBlockSize: true})
	const bs = blk.BlockSize
	for _, off := range []int64{0, 3 * bs, 4 * bs, 5000, c.Size() - bs} {
		if _, err := c.WriteAt(make([]byte, bs), off/bs*bs); err != nil {
			t.Fatal(err)
		}
	}
	const unwritten = nbdclient.Hole | nbdclient.Zero
	want := []nbdclient.Extent{
		{Off: 0, Len: 2 * bs},
		{Off: 2 * bs, Len: bs, Flags: unwritten},
		{Off: 3 * bs, Len: 2 * bs},
		{Off: 5 * bs, Len: c.Size() - 6*bs, Flags: unwritten},
		{Off: c.Size() - bs, Len: bs},
	}
	got, err := c.BlockStatus(0, c.Size())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("BlockStatus = %v, %v, want %v", got, err, want)
	}

	// A part of it, cut at both ends.
	got, err = c.BlockStatus(100, 3*bs)
	want = []nbdclient.Extent{{Off: 100, Len: 2*bs - 100}, {Off: 2 * bs, Len: bs, Flags: unwritten}, {Off: 3 * bs, Len: 100}}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("BlockStatus of a part = %v, %v, want %v", got, err, want)
	}

	// ReqOne: one, and all of it.
	got, err = c.StatusOnce(5*bs, c.Size()-5*bs, nbdclient.ReqOne)
	if err != nil || len(got) != 1 || got[0].Len != c.Size()-6*bs {
		t.Errorf("StatusOnce(ReqOne) = %v, %v, want one extent of %d bytes", got, err, c.Size()-6*bs)
	}

	// More extents than one reply tells.
	if err := c.Trim(0, c.Size(), 0); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < c.Size(); off += 2 * bs {
		if _, err := c.WriteAt(make([]byte, bs), off); err != nil {
			t.Fatal(err)
		}
	}
	if once, err := c.StatusOnce(0, c.Size(), 0); err != nil || len(once) != maxDescriptors {
		t.Errorf("StatusOnce told %d extents, %v, want %d", len(once), err, maxDescriptors)
	}
	got, err = c.BlockStatus(0, c.Size())
	if err != nil || int64(len(got)) != c.Size()/bs {
		t.Errorf("BlockStatus told %d extents, %v, want %d", len(got), err, c.Size()/bs)
	}

	// Without a map all is allocated.
	cfg := m.config()
	cfg.Map = nil
	got, err = client(t, alone(t, cfg), nbdclient.Options{}).BlockStatus(0, c.Size())
	if err != nil || fmt.Sprint(got) != fmt.Sprint([]nbdclient.Extent{{Off: 0, Len: c.Size()}}) {
		t.Errorf("BlockStatus without a map = %v, %v", got, err)
	}
}

// TestFailures lets the volume fail, at once and in the middle of a large
// request; the connection goes on wherever the protocol can tell it.
func TestFailures(t *testing.T) {
	const at = 1624 << 10 // in the seventh piece of MaxTransfer, behind what the send buffer takes at once
	tests := []struct {
		errno, want syscall.Errno
	}{
		{syscall.EIO, syscall.EIO},
		{syscall.ENODEV, syscall.EIO},
		{syscall.ESHUTDOWN, syscall.ESHUTDOWN},
		{syscall.EROFS, syscall.EPERM},
		{syscall.EDQUOT, syscall.ENOSPC},
		{syscall.ENOTSUP, syscall.ENOTSUP},
		{syscall.EINVAL, syscall.EINVAL},
		{syscall.ENOMEM, syscall.ENOMEM},
		{syscall.EOVERFLOW, syscall.EOVERFLOW},
	}
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			m := newMemory(4 << 20)
			m.async = mode.async
			var errno syscall.Errno
			m.fail = func(r *blk.Request) syscall.Errno {
				if r.Off <= at && at < r.Off+r.Len || r.Op == blk.OpFlush {
					return errno
				}
				return 0
			}
			s := alone(t, m.config())
			c := client(t, s, mode.options)
			for _, tt := range tests {
				m.with(func() { errno = tt.errno })
				calls := map[string]error{
					"read":        c.ReadFlags(make([]byte, 4096), at, 0),
					"large read":  c.ReadFlags(make([]byte, 512<<10), at&^4095, 0),
					"write":       c.WriteFlags(make([]byte, 4096), at, 0),
					"large write": c.WriteFlags(make([]byte, 2<<20), 0, 0),
					"zero":        c.Zero(0, 2<<20, 0),
					"trim":        c.Trim(0, 2<<20, 0),
					"flush":       c.Flush(),
				}
				for name, err := range calls {
					if !errors.Is(err, tt.want) {
						t.Errorf("%s with %v below: error %v, want %v", name, tt.errno, err, tt.want)
					}
				}
				if err := c.ReadFlags(make([]byte, 4096), 0, 0); err != nil {
					t.Fatalf("read beside the failure: %v", err)
				}
			}

			m.with(func() { errno = syscall.EIO })
			err := c.ReadFlags(make([]byte, 2<<20), 0, 0)
			var failed *nbdclient.Error
			if mode.options.SimpleReplies {
				if err == nil || errors.As(err, &failed) {
					t.Errorf("read that fails behind its header: error %v, want the connection's end", err)
				}
				return
			}
			if !errors.As(err, &failed) || failed.Errno != syscall.EIO || failed.At != 1536<<10 {
				t.Errorf("read that fails in its seventh piece: error %v, want EIO at %d", err, 1536<<10)
			}
			if err := c.ReadFlags(make([]byte, 4096), 0, 0); err != nil {
				t.Errorf("read after it: %v", err)
			}
		})
	}
}

// TestGaps pipelines reads of which some fail, so that the replies around them
// are sent in parts.
func TestGaps(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			m := newMemory(1 << 20)
			m.async = mode.async
			m.fail = func(r *blk.Request) syscall.Errno {
				if r.Off/4096%3 == 0 {
					return syscall.EIO
				}
				return 0
			}
			c := client(t, alone(t, m.config()), mode.options)
			r, err := nbdclient.Load{Pattern: nbdclient.SequentialRead, Requests: 2560}.Run(c)
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(10 * (256 + 2) / 3); r.Errors != want || r.FirstError != syscall.EIO || r.Requests != 2560 {
				t.Errorf("load: %d of %d requests failed, first with %v; want %d with EIO", r.Errors, r.Requests, r.FirstError, want)
			}
		})
	}
}

// TestManyConnections runs loads on several connections and both kinds of
// volume at once.
func TestManyConnections(t *testing.T) {
	for _, async := range []bool{false, true} {
		m := newMemory(8 << 20)
		m.async = async
		s, path := serve(t, m.config())
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for _, size := range []int{512, 4096, 128 << 10, 1 << 20} {
					c, err := nbdclient.Dial("nbd+unix:///?socket="+path, nbdclient.Options{SimpleReplies: i%2 == 0})
					if err != nil {
						t.Error(err)
						return
					}
					l := nbdclient.Load{Pattern: nbdclient.Pattern(i), BlockSize: size, Requests: 4 << 20 / int64(size)}
					if r, err := l.Run(c); err != nil || r.Errors > 0 || r.Requests != l.Requests {
						t.Errorf("%v of %d bytes: %v, %v", l.Pattern, size, r, err)
					}
					if err := c.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		eventually(t, "no connection is left", func() bool { return s.Stats().Connections == 0 })
		st := s.Stats()
		if st.ReadBytes != 32<<20 || st.WriteBytes != 32<<20 || st.Errors != 0 || st.Accepted != 16 {
			t.Errorf("stats: %+v, want 32 MiB read and written over 16 connections", st)
		}
	}
}

// TestAllocations: no allocation a request on the good path (blk rule B6), whether
// the volume answers at once or later, announced or not, and whatever a read finds.
func TestAllocations(t *testing.T) {
	for _, tt := range []struct {
		name      string
		pattern   nbdclient.Pattern
		size      int
		written   func(block int) bool
		async     bool
		announced bool
	}{
		{name: "reads", pattern: nbdclient.RandomRead, size: 4096, written: func(int) bool { return true }},
		{name: "reads of holes", pattern: nbdclient.RandomRead, size: 4096, written: func(int) bool { return false }},
		{name: "reads of both", pattern: nbdclient.RandomRead, size: 64 << 10, written: func(b int) bool { return b%3 > 0 }},
		{name: "writes", pattern: nbdclient.RandomWrite, size: 4096, written: func(int) bool { return false }},
		{name: "reads, later", pattern: nbdclient.RandomRead, size: 4096, written: func(int) bool { return true }, async: true},
		{name: "writes, announced", pattern: nbdclient.RandomWrite, size: 4096, written: func(int) bool { return true }, async: true, announced: true},
		{name: "reads, announced", pattern: nbdclient.RandomRead, size: 64 << 10, written: func(b int) bool { return b%3 > 0 }, async: true, announced: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory(1 << 20)
			m.async = tt.async
			for b := range m.written {
				m.written[b] = tt.written(b)
			}
			cfg := m.config()
			if tt.announced {
				cfg.Export = newAnnounced(t, m)
			}
			c := client(t, alone(t, cfg), nbdclient.Options{})
			load := nbdclient.Load{Pattern: tt.pattern, BlockSize: tt.size, Requests: 100}
			if _, err := load.Run(c); err != nil { // warm up
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			load.Requests = 20_000
			if r, err := load.Run(c); err != nil || r.Errors > 0 {
				t.Fatal(r, err)
			}
			runtime.ReadMemStats(&after)
			// The client's own set-up is in there; an allocation a request, or one
			// every ten, would not hide behind it.
			if n := after.Mallocs - before.Mallocs; n > 500 {
				t.Errorf("%d allocations in %d requests, want none a request", n, load.Requests)
			}
		})
	}
}

// An announced volume has a descriptor that is always readable.
type announced struct {
	*memory
	fd int32
}

type announcedQueue struct {
	*memoryQueue
	fd int32
}

func newAnnounced(t testing.TB, m *memory) announced {
	t.Helper()
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Close(p[0])
		syscall.Close(p[1])
	})
	if _, err := syscall.Write(p[1], []byte{0}); err != nil {
		t.Fatal(err)
	}
	return announced{m, int32(p[0])}
}

func (a announced) NewQueue(depth int) (blk.Queue, error) {
	q, err := a.memory.NewQueue(depth)
	if err != nil {
		return nil, err
	}
	return &announcedQueue{q.(*memoryQueue), a.fd}, nil
}

func (q *announcedQueue) Pending(w *blk.Wait) {
	if len(q.waiting) > 0 {
		w.FDs = append(w.FDs, q.fd)
	}
}

// eventually waits until ok, for at most 10 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}
