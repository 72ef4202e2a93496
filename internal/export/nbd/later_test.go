package nbd

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/nbdclient"
)

// A later volume completes requests on threads of its own, as a drive does, each
// after a time of its own, and announces that by a descriptor. What hold names
// stays in flight until it is released.
type later struct {
	*memory
	slow    time.Duration // at most, for one request in 16; others take a fraction of it
	hold    func(r *blk.Request) bool
	release chan struct{}
	blind   bool // Reap(true) alone tells
}

type laterQueue struct {
	v        *later
	rng      *rand.Rand
	r, w     int // of a pipe: a byte for each request that is done
	inFlight int

	mu   sync.Mutex
	done []laterDone
}

type laterDone struct {
	r     *blk.Request
	n     int64
	errno syscall.Errno
}

func (v *later) NewQueue(depth int) (blk.Queue, error) {
	var p [2]int
	if err := syscall.Pipe2(p[:], syscall.O_CLOEXEC); err != nil {
		return nil, err
	}
	q := &laterQueue{v: v, rng: rand.New(rand.NewPCG(3, uint64(depth))), r: p[0], w: p[1]}
	if v.blind {
		return struct{ blk.Queue }{q}, nil
	}
	return q, nil
}

func (q *laterQueue) Submit(batch []*blk.Request) {
	q.inFlight += len(batch)
	for _, r := range batch {
		wait := time.Duration(q.rng.Int64N(int64(q.v.slow/64 + 1)))
		if q.rng.IntN(16) == 0 {
			wait = time.Duration(q.rng.Int64N(int64(q.v.slow + 1)))
		}
		held := q.v.hold != nil && q.v.hold(r)
		go func() {
			if held {
				<-q.v.release
			}
			time.Sleep(wait)
			n, errno := q.v.carryOut(r)
			q.mu.Lock()
			defer q.mu.Unlock()
			q.done = append(q.done, laterDone{r, n, errno})
			if _, err := syscall.Write(q.w, []byte{0}); err != nil {
				panic(err)
			}
		}()
	}
}

func (q *laterQueue) Reap(wait bool) int {
	q.mu.Lock()
	n := len(q.done)
	q.mu.Unlock()
	if n == 0 && (!wait || q.inFlight == 0) {
		return 0
	}
	b := make([]byte, max(n, 1))
	for n = -1; n < 0; { // EINTR: a wake-up that came late
		var err error
		if n, err = syscall.Read(q.r, b); err != nil && err != syscall.EINTR {
			panic(err)
		}
	}
	q.mu.Lock()
	done := append([]laterDone(nil), q.done[:n]...)
	q.done = q.done[n:]
	q.mu.Unlock()
	q.inFlight -= n
	for _, d := range done {
		d.r.Finish(d.n, d.errno)
	}
	return n
}

func (q *laterQueue) Pending(w *blk.Wait) {
	if q.inFlight > 0 {
		w.FDs = append(w.FDs, int32(q.r))
	}
}

func (q *laterQueue) Bypass() bool { return true }

func (q *laterQueue) Bypassed(n int64, _ bool) { q.v.bypassed.Add(n) }

func (q *laterQueue) Close() error {
	if q.inFlight > 0 {
		panic("queue closed with requests in flight")
	}
	_ = syscall.Close(q.w)
	return syscall.Close(q.r)
}

func newLater(size int) *later {
	return &later{memory: newMemory(size), slow: 500 * time.Microsecond, release: make(chan struct{})}
}

func (v *later) config() Config {
	cfg := v.memory.config()
	cfg.Export, cfg.Poll = v, MaxPoll
	return cfg
}

// TestLaterModel: the model holds over a volume that completes requests in any
// order, while clients come and go and servers follow each other.
func TestLaterModel(t *testing.T) {
	for _, tt := range []struct {
		name    string
		blind   bool
		poll    time.Duration
		depth   int
		options nbdclient.Options
	}{
		{name: "structured"},
		{name: "simple, polling", poll: MaxPoll, options: nbdclient.Options{SimpleReplies: true}},
		{name: "blind, polling", poll: MaxPoll, blind: true},
		{name: "depth 3", depth: 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newLater(16 << 20)
			v.blind = tt.blind
			cfg := v.config()
			cfg.Poll, cfg.QueueDepth = tt.poll, tt.depth
			h := newHost(t, cfg)
			check := &nbdclient.Verify{
				Target: h.path, Lease: "a", Seed: rand.Uint64(), Depth: 32, MaxRequest: 300 << 10, Patience: 20 * time.Second,
				Options: tt.options,
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r, err := check.Run(ctx)
				t.Log(&r)
				if err != nil || r.Err() != nil || r.Requests == 0 || r.Reconnects != 0 {
					t.Errorf("seed %d: %v, %v, %d requests, %d reconnects", check.Seed, err, r.Err(), r.Requests, r.Reconnects)
				}
			}()
			for begun := time.Now(); time.Since(begun) < 2*time.Second || check.Snapshot().Requests == 0 && time.Since(begun) < time.Minute; {
				time.Sleep(50 * time.Millisecond)
				h.upgrade()
			}
			cancel()
			<-ended
		})
	}
}

// TestStraggler: a read and a write that hang hold up nothing else, not even when
// all of both buffers has been in use many times since; then they are answered too.
func TestStraggler(t *testing.T) {
	for _, size := range []int{512, 4096, 128 << 10} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			v := newLater(4 << 20)
			v.hold = func(r *blk.Request) bool { return r.Off < 1<<20 && r.Op != blk.OpFlush }
			v.mark(0, 4<<20, true)
			copy(v.data, bytes.Repeat([]byte("before"), 1000))
			c := rawConnect(t, alone(t, v.config()))
			c.enter()
			c.write(command(0, cmdRead, 1, 0, 4096))
			c.write(append(command(0, cmdWrite, 2, 512<<10, 4096), bytes.Repeat([]byte("written!"), 512)...))
			rounds := 8 << 20 / max(size, 4096)
			payload := bytes.Repeat([]byte{7}, size)
			for i := range rounds {
				off := uint64(1<<20 + i%16*size)
				c.write(append(command(0, cmdWrite, 3, off, uint32(size)), payload...))
				if got := c.readError(3); got != 0 {
					t.Fatalf("round %d: error %d", i, got)
				}
				c.write(command(0, cmdRead, 4, off, uint32(size)))
				if got := c.readError(4); got != 0 || !bytes.Equal(c.read(size), payload) {
					t.Fatalf("round %d: error %d, or other data", i, got)
				}
			}
			close(v.release)
			answers := map[uint64]bool{}
			for range 2 {
				b := c.read(simpleSize)
				answers[uint64(b[15])] = true
				if b[15] == 1 && !bytes.Equal(c.read(4096), v.data[:4096]) {
					t.Error("the read that hung brings other data")
				}
			}
			if !answers[1] || !answers[2] {
				t.Errorf("answers to %v, want 1 and 2", answers)
			}
			v.with(func() {
				if !bytes.Equal(v.data[512<<10:512<<10+4096], bytes.Repeat([]byte("written!"), 512)) {
					t.Error("the write that hung wrote other data")
				}
			})
		})
	}
}

// TestDeafIsReaped: what a client has in flight that takes no replies is completed
// all the same: others may wait for what it holds (E1).
func TestDeafIsReaped(t *testing.T) {
	v := newLater(4 << 20)
	v.hold = func(r *blk.Request) bool { return r.Op == blk.OpFlush }
	v.mark(0, 4<<20, true)
	s := alone(t, v.config())
	c := rawConnect(t, s)
	c.enter()
	c.write(command(0, cmdFlush, 1, 0, 0))
	for i := range uint64(30) {
		c.write(command(0, cmdRead, 2+i, 0, 256<<10))
	}
	var q *conn
	s.mu.Lock()
	for q = range s.conns {
	}
	s.mu.Unlock()
	eventually(t, "its socket is full", func() bool { return v.entered.Load() > 3 && q.waiting.Load() })
	close(v.release)
	eventually(t, "the flush is complete", func() bool {
		v.mu.Lock()
		defer v.mu.Unlock()
		return v.flushes == 1
	})
	// It is reaped, so that nothing is in flight and the thread waits in send: a
	// thread that cannot be woken.
	eventually(t, "nothing is in flight", func() bool {
		for range 20 {
			if q.waiting.Load() {
				return false
			}
			time.Sleep(time.Millisecond)
		}
		return true
	})
}

// TestHungUpInFlight: a client that has gone while requests are in flight costs no
// processor time until they end.
func TestHungUpInFlight(t *testing.T) {
	v := newLater(1 << 20)
	v.hold = func(r *blk.Request) bool { return r.Op == blk.OpFlush }
	s := alone(t, v.config())
	for _, extra := range []int{0, 2 * defaultDepth} { // with slots left, and without
		c := rawConnect(t, s)
		c.enter()
		var flushes []byte // sent at once: of what comes later no more is received than can be carried out
		for i := range uint64(1 + extra) {
			flushes = append(flushes, command(0, cmdFlush, i, 0, 0)...)
		}
		c.write(flushes)
		eventually(t, "all is taken that can be", func() bool { return unread(t, s) == 0 })
		c.Close()
		least := time.Hour
		for range 5 { // the least: others run in this process too
			before := processorTime(t)
			time.Sleep(200 * time.Millisecond)
			if least = min(least, processorTime(t)-before); least < 100*time.Millisecond {
				break
			}
		}
		if least > 100*time.Millisecond {
			t.Errorf("%d requests: waiting for them used %v in 200 ms", 1+extra, least)
		}
		close(v.release)
		eventually(t, "the connection has ended", func() bool { return s.Stats().Connections == 0 })
		v.release = make(chan struct{})
	}
}

// TestHolesAreCountedOnce: also those of reads that had to wait for room, and of one
// that goes alone.
func TestHolesAreCountedOnce(t *testing.T) {
	const size, reads = 128 << 10, 32
	v := newLater(4 << 20)
	v.mark(0, 4<<20, true)
	for off := int64(0); off < 4<<20; off += size {
		v.mark(off, blk.BlockSize, false)
	}
	c := rawConnect(t, alone(t, v.config()))
	c.enterStructured()
	want := int64(0)
	for _, n := range []int{size, 1 << 20} {
		for i := range reads {
			c.write(command(0, cmdRead, uint64(i), 0, uint32(n)))
		}
		for range reads * n / size {
			c.read(holeChunkSize + dataChunkSize + size - blk.BlockSize)
			want += blk.BlockSize
		}
	}
	if got := v.bypassed.Load(); got != want {
		t.Errorf("%d bytes of holes were counted, %d were told", got, want)
	}
}

func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
