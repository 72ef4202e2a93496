package drive

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sys"
)

// onDisk opens a drive in the temporary folder, which the engine "io_uring" must
// be chosen for if that has direct I/O; else on a loop device.
func onDisk(t *testing.T, size int64) *Drive {
	t.Helper()
	path := sparse(t, "drive.img", size)
	if ins, err := Inspect(path); err != nil || !ins.Info.Direct {
		path = loopOn(t, onTmpfs(t, size))
	}
	d := open(t, enrolled(t, path))
	if i := d.Info(); i.Engine != EngineRing || i.EngineWhy != "" {
		t.Fatalf("the engine of %s is %s: %s", path, i.Engine, i.EngineWhy)
	}
	return d
}

func ringOf(t *testing.T, d *Drive, depth int) *ringQueue {
	t.Helper()
	q, err := d.NewQueue(depth)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := q.(*ringQueue)
	if !ok {
		t.Fatalf("the queue is a %T", q)
	}
	return r
}

func mustClose(t *testing.T, q blk.Queue) {
	t.Helper()
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

// A tally counts completions, in their order.
type tally []*blk.Request

func (c *tally) Complete(r *blk.Request) { *c = append(*c, r) }

// TestConformanceEngines runs the suite over every engine that a file in memory, a
// file on disk and a loop device can have.
func TestConformanceEngines(t *testing.T) {
	for _, tt := range []struct {
		on      string
		make    func(t *testing.T) string
		engines []string
	}{
		{"memory", func(t *testing.T) string { return onTmpfs(t, 32<<20) }, []string{EnginePread, EngineMmap}},
		{"disk", func(t *testing.T) string { return sparse(t, "drive.img", 32<<20) }, []string{EnginePread, EngineRing}},
		{"loop", func(t *testing.T) string { return loopOn(t, onTmpfs(t, 32<<20)) }, []string{EnginePread, EngineRing}},
	} {
		for _, engine := range tt.engines {
			t.Run(tt.on+"/"+engine, func(t *testing.T) {
				blktest.Run(t, func(t *testing.T) blk.Device {
					d := openAs(t, enrolled(t, tt.make(t)), engine)
					if i := d.Info(); i.Engine != engine && i.Direct == (engine == EngineRing) {
						t.Errorf("the engine is %s (%s)", i.Engine, i.EngineWhy)
					}
					return d
				})
			})
		}
	}
}

// openAs is open with an engine asked for.
func openAs(t testing.TB, path, engine string) *Drive {
	t.Helper()
	o := usual
	o.Engine = engine
	d, err := Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// TestEngine: which engine a drive has, and why.
func TestEngine(t *testing.T) {
	memory := enrolled(t, onTmpfs(t, 32<<20))
	disk := enrolled(t, sparse(t, "drive.img", 32<<20))
	for _, tt := range []struct {
		path, asked string
		forward     bool
		engine, why string
	}{
		{memory, "", false, EngineMmap, ""},
		{memory, EngineMmap, false, EngineMmap, ""},
		{memory, EngineRing, false, EngineMmap, "io_uring is not possible here: no direct I/O"},
		{memory, EnginePread, false, EnginePread, "the configuration asks for it"},
		{memory, "", true, EnginePread, `the flush class is "forward"`},
		{memory, EngineMmap, true, EnginePread, "mmap is not possible here"},
		{disk, "", false, EngineRing, ""},
		{disk, EngineRing, false, EngineRing, ""},
		{disk, EngineMmap, false, EngineRing, "mmap is not possible here: the drive is not a file in memory"},
		{disk, EnginePread, false, EnginePread, "the configuration asks for it"},
	} {
		o := usual
		o.Engine, o.ForceForward = tt.asked, tt.forward
		d, err := Open(t.Context(), tt.path, o)
		if err != nil {
			t.Fatal(err)
		}
		i := d.Info()
		if tt.path == disk && !i.Direct { // as if it were in memory, without what memory gives
			tt.engine, tt.why = EnginePread, ""
		}
		if i.Engine != tt.engine || !strings.Contains(i.EngineWhy, tt.why) || tt.why == "" && i.Direct && i.EngineWhy != "" {
			t.Errorf("%s asked for on %s (forward: %v): %s, %q, want %s, %q", tt.asked, tt.path, tt.forward, i.Engine, i.EngineWhy, tt.engine, tt.why)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	h := thisHost
	h.ring = func() error { return sys.UringError(syscall.EPERM) }
	d, err := h.openDrive(context.Background(), enrolled(t, sparse(t, "drive.img", 32<<20)), usual)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if i := d.Info(); i.Engine != EnginePread || i.Direct && !strings.Contains(i.EngineWhy, "io_uring_disabled") {
		t.Errorf("without io_uring: %s, %q", i.Engine, i.EngineWhy)
	}
	q, err := d.NewQueue(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := q.(*queue); !ok {
		t.Errorf("without io_uring a queue is a %T", q)
	}
	mustClose(t, q)
}

// TestRingWithoutDescriptor: a queue that gets no ring works all the same.
func TestRingWithoutDescriptor(t *testing.T) {
	d := onDisk(t, 32<<20)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 1, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	q, err := d.NewQueue(4)
	if e := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, q)
	if _, ok := q.(*queue); !ok {
		t.Errorf("the queue is a %T", q)
	}
	if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Len: 4096, Buf: blktest.Buffer(4096)}); err != nil {
		t.Error(err)
	}
}

// TestRingFull: more requests than the ring has room for.
func TestRingFull(t *testing.T) {
	const depth = 2*ringRoom + 50
	d := onDisk(t, 32<<20)
	q := ringOf(t, d, depth)
	defer mustClose(t, q)
	for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
		var done tally
		batch := make([]*blk.Request, depth)
		for i := range batch {
			buf := blktest.Buffer(4096)
			if op == blk.OpWrite {
				buf[0], buf[4095] = byte(i), byte(i>>8)
			}
			batch[i] = &blk.Request{Op: op, Off: int64(i) * 4096, Len: 4096, Buf: buf, Done: &done}
		}
		q.Submit(batch)
		if q.busy() != ringRoom || q.waiting.Len() != depth-ringRoom {
			t.Fatalf("%d in the ring, %d wait", q.busy(), q.waiting.Len())
		}
		for len(done) < depth {
			if q.Reap(true) == 0 {
				t.Fatal("B4: nothing was completed")
			}
		}
		for i, r := range batch {
			if r.Errno != 0 || r.Buf[0] != byte(i) || r.Buf[4095] != byte(i>>8) {
				t.Fatalf("%v %d: %v, % x", op, i, r.Errno, r.Buf[:1])
			}
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("more than the queue's depth did not panic")
		}
	}()
	q.Submit(make([]*blk.Request, depth+1))
}

// TestRingOrder: completions in another order than the submissions, and each
// finds its request. The kernel sees none of these: they are taken back first.
func TestRingOrder(t *testing.T) {
	q := ringOf(t, onDisk(t, 32<<20), 8)
	defer mustClose(t, q)
	var done tally
	var batch []*blk.Request
	for i := range 8 {
		batch = append(batch, &blk.Request{Op: blk.OpRead, Off: int64(i) * 8192, Len: 8192, Buf: blktest.Buffer(8192), Done: &done})
	}
	q.Submit(batch)
	ids := make([]uint32, 8)
	for i := range ids {
		ids[7-i] = uint32(q.ring.TakeBack())
	}
	var want []*blk.Request
	for _, i := range []int{5, 0, 7, 2, 1, 6, 4, 3} {
		errno := syscall.Errno(0)
		if i%2 == 1 {
			errno = syscall.EIO
		}
		if !q.settle(ids[i], 8192*int64(1-i%2), errno) {
			t.Fatalf("request %d was not completed", i)
		}
		want = append(want, batch[i])
	}
	for i, r := range done {
		if r != want[i] || r.Errno != syscall.Errno(0) != (r.Off/8192%2 == 1) {
			t.Errorf("completion %d is of the request at %d: %v", i, r.Off, r.Errno)
		}
	}
	if s := q.d.Stats(); s.Reads != 4 || s.Errors != 4 || s.ReadBytes != 4*8192 {
		t.Errorf("Stats = %+v", s)
	}
}

// TestRingChangesThread: a goroutine need not come back on the same thread.
func TestRingChangesThread(t *testing.T) {
	q := ringOf(t, onDisk(t, 32<<20), 4)
	defer mustClose(t, q)
	buf := blktest.Buffer(4096)
	hold := make(chan struct{}) // keeps the threads apart
	var wg sync.WaitGroup
	for i := range 4 {
		next := make(chan struct{})
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for range 3 {
				if err := blk.Do(q, &blk.Request{Op: blk.Op(i % 2), Len: 4096, Buf: buf}); err != nil {
					t.Error(err)
				}
			}
			close(next)
			<-hold
		})
		<-next
	}
	close(hold)
	wg.Wait()
}

// TestRingManyQueues: each with requests in flight, all on the same blocks.
func TestRingManyQueues(t *testing.T) {
	d := onDisk(t, 32<<20)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			q, err := d.NewQueue(8)
			if err != nil {
				t.Error(err)
				return
			}
			defer mustClose(t, q)
			var done tally
			for range 10 {
				done = done[:0]
				var batch []*blk.Request
				for j := range 8 {
					batch = append(batch, &blk.Request{Op: blk.Op((i + j) % 3), Done: &done})
					if r := batch[j]; r.Op != blk.OpFlush {
						r.Off, r.Len, r.Buf = int64(j)*4096, 4096, blktest.Buffer(4096)
					}
				}
				q.Submit(batch)
				for len(done) < len(batch) {
					q.Reap(true)
				}
				for _, r := range batch {
					if err := r.Err(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if s := d.Stats(); s.Reads+s.Writes+s.Flushes != 32*10*8 || s.Errors != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

// TestRingModel gives both engines the same batches of random requests, good
// and bad, and compares the answers: the pread engine is the slow, obvious model.
func TestRingModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	const depth, window = 16, 512 << 10
	drives := [2]*Drive{onDisk(t, 16<<20), onDisk(t, 16<<20)}
	drives[1].info.Engine = EnginePread
	var queues [2]blk.Queue
	for i, d := range drives {
		q, err := d.NewQueue(depth)
		if err != nil {
			t.Fatal(err)
		}
		queues[i] = q
		defer mustClose(t, q)
	}
	for round := range 60 {
		var batches [2][]*blk.Request
		var done [2]tally
		for at := int64(0); len(batches[0]) < depth && at < window; {
			n := (1 + rng.Int64N(8)) * 4096
			proto := blk.Request{Op: blk.Op(rng.IntN(5)), Off: at, Len: n}
			at += n
			if rng.IntN(4) == 0 {
				proto.Flags = blk.FUA
			}
			if rng.IntN(8) == 0 { // some that are refused
				proto.Off += []int64{1, 512, 4 << 20, -16 << 20}[rng.IntN(4)]
			}
			for i := range batches {
				r := proto
				r.Done = &done[i]
				switch r.Op {
				case blk.OpRead, blk.OpWrite:
					r.Buf = blktest.Buffer(int(n))
				case blk.OpFlush:
					r.Off, r.Len = 0, 0
				}
				batches[i] = append(batches[i], &r)
			}
			if proto.Op == blk.OpWrite {
				last := len(batches[0]) - 1
				for j := range batches[0][last].Buf {
					batches[0][last].Buf[j] = byte(rng.Uint32())
				}
				copy(batches[1][last].Buf, batches[0][last].Buf)
			}
		}
		for i, q := range queues {
			q.Submit(batches[i])
			for len(done[i]) < len(batches[i]) {
				if q.Reap(true) == 0 {
					t.Fatalf("round %d: nothing was completed", round)
				}
			}
		}
		for i, r := range batches[0] {
			if m := batches[1][i]; r.Errno != m.Errno || r.N != m.N || !bytes.Equal(r.Buf, m.Buf) {
				t.Fatalf("round %d: %v of %d at %d: %d, %v; pread: %d, %v", round, r.Op, r.Len, r.Off, r.N, r.Errno, m.N, m.Errno)
			}
		}
	}
	if a, b := drives[0].Stats(), drives[1].Stats(); a.Reads != b.Reads || a.Errors != b.Errors || a.WriteBytes != b.WriteBytes || a.Flushes != b.Flushes {
		t.Errorf("Stats = %+v, pread: %+v", a, b)
	}
}
