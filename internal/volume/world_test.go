package volume_test

import (
	"math/rand/v2"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/sim"
)

const (
	worldBlocks = 24
	worldSize   = worldBlocks * blk.BlockSize
	worldDepth  = 6
)

// A world is tenants after each other on one simulated drive. All connections
// are driven from one goroutine, so that a seed replays a run exactly.
type world struct {
	t       *testing.T
	name    string // of the run, with its seed
	rng     *rand.Rand
	drive   *sim.Drive
	lease   *lease
	conns   []*conn
	model   *model
	leases  uint64
	faulty  bool // errors are to be expected
	crashAt int64
}

// A conn is a queue and its requests.
type conn struct {
	w    *world
	q    blk.Queue
	jobs []*job
	dead bool
}

// A job is a request in flight, or free.
type job struct {
	c    *conn
	r    blk.Request
	buf  []byte
	busy bool
	id   uint32 // of a change
	look look   // of a read
}

func newWorld(t *testing.T, name string, seed uint64) *world {
	w := &world{
		t: t, name: name,
		rng:   rand.New(rand.NewPCG(seed, 11)),
		drive: sim.New(sim.Config{Size: worldSize, Seed: seed, Fill: 0xA7}),
		model: newModel(worldSize),
	}
	w.moveIn()
	return w
}

func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf(w.name+": "+format, args...)
}

// moveIn makes a new lease of the same space, and its connections.
func (w *world) moveIn() {
	w.leases++
	w.lease = newLease(w.t, w.drive, w.rng.Uint64())
	w.model.reset()
	w.connect()
}

func (w *world) connect() {
	w.conns = nil
	for range 3 {
		q, err := w.lease.NewQueue(worldDepth)
		if err != nil {
			w.failf("%v", err)
		}
		c := &conn{w: w, q: q}
		for range worldDepth {
			c.jobs = append(c.jobs, &job{c: c, buf: make([]byte, 8*blk.BlockSize)})
		}
		w.conns = append(w.conns, c)
	}
}

// step submits a few requests on some connection, or reaps there.
func (w *world) step() {
	c := w.conns[w.rng.IntN(len(w.conns))]
	if w.rng.IntN(2) == 0 {
		c.q.Reap(false)
		return
	}
	var batch []*blk.Request
	for _, j := range c.jobs {
		if !j.busy && len(batch) < 3 && w.rng.IntN(2) == 0 {
			j.begin()
			batch = append(batch, &j.r)
		}
	}
	c.q.Submit(batch)
}

// begin makes a request of some alignment: bytes, sectors or blocks.
func (j *job) begin() {
	w := j.c.w
	unit := []int64{1, blk.SectorSize, blk.SectorSize, blk.BlockSize, blk.BlockSize}[w.rng.IntN(5)]
	longest := int64(2 * blk.BlockSize)
	if w.rng.IntN(8) == 0 {
		longest = int64(len(j.buf))
	}
	length := unit * (1 + w.rng.Int64N(longest/unit))
	off := unit * w.rng.Int64N((worldSize-length)/unit+1)
	op := []blk.Op{blk.OpRead, blk.OpRead, blk.OpWrite, blk.OpWrite, blk.OpWrite, blk.OpDiscard, blk.OpWriteZeroes, blk.OpFlush}[w.rng.IntN(8)]
	j.busy = true
	j.r = blk.Request{Op: op, Off: off, Len: length, Done: j}
	switch op {
	case blk.OpFlush:
		j.r.Off, j.r.Len = 0, 0
	case blk.OpRead:
		j.r.Buf = j.buf[:length]
		for i := range j.r.Buf {
			j.r.Buf[i] = 0x5E // so that bytes that nobody fills are seen
		}
		j.look = w.model.look(off, length)
	case blk.OpWrite:
		j.id = w.model.begin(off, length, false)
		j.r.Buf = j.buf[:length]
		for i := range j.r.Buf {
			j.r.Buf[i] = w.model.value(j.id, off+int64(i))
		}
		if w.rng.IntN(4) == 0 {
			j.r.Flags = blk.FUA
		}
	default:
		j.id = w.model.begin(off, length, true)
	}
}

// Complete holds the result against the model.
func (j *job) Complete(r *blk.Request) {
	w := j.c.w
	if !j.busy || j.c.dead {
		w.failf("%v at %d completed twice, or after a crash", r.Op, r.Off)
	}
	j.busy = false
	if r.Errno != 0 && !w.faulty {
		w.failf("%v", r.Err())
	}
	switch r.Op {
	case blk.OpFlush:
	case blk.OpRead:
		if r.Errno == 0 {
			if err := w.model.check(&j.look, r.Buf); err != nil {
				w.failf("lease %d, read of %d bytes at %d: %v", w.leases, r.Len, r.Off, err)
			}
		}
	default:
		w.model.end(j.id, r.Errno == 0)
	}
}

func (w *world) busy() bool {
	for _, c := range w.conns {
		for _, j := range c.jobs {
			if j.busy {
				return true
			}
		}
	}
	return false
}

// drain reaps until nothing is in flight.
func (w *world) drain() {
	for range 10_000 {
		if !w.busy() {
			return
		}
		for _, c := range w.conns {
			c.q.Reap(false)
		}
	}
	w.failf("requests are stuck")
}

// verify reads everything, with nothing else in flight.
func (w *world) verify() {
	w.drain()
	c := w.conns[w.rng.IntN(len(w.conns))]
	j := c.jobs[0]
	for off := int64(0); off < worldSize; off += int64(len(j.buf)) {
		j.busy = true
		j.r = blk.Request{Op: blk.OpRead, Off: off, Len: int64(len(j.buf)), Buf: j.buf, Done: j}
		j.look = w.model.look(off, j.r.Len)
		c.q.Submit([]*blk.Request{&j.r})
		w.drain()
	}
}

// moveOut closes the lease in the engine's order.
func (w *world) moveOut() {
	w.lease.Shut()
	w.lease.c.Revoke()
	clear(w.lease.sched[:])
	w.faulty = true // what is in flight gets ESHUTDOWN
	w.drain()
	w.faulty = false
	select {
	case <-w.lease.Drained():
	default:
		w.failf("not drained with nothing in flight")
	}
	for _, c := range w.conns {
		if err := c.q.Close(); err != nil {
			w.failf("%v", err)
		}
	}
}

// kill ends the engine: what it had in flight is done, or not, block by block;
// what was complete stays, as it does in a page cache.
func (w *world) kill() {
	q, err := w.drive.NewQueue(1)
	if err != nil {
		w.failf("%v", err)
	}
	w.drive.Heal()
	if err := blk.Do(q, &blk.Request{Op: blk.OpFlush}); err != nil {
		w.failf("%v", err)
	}
	w.abandon()
	w.drive.Crash()
	w.model.crash()
}

// abandon forgets the connections: nothing of theirs may complete any more.
func (w *world) abandon() {
	for _, c := range w.conns {
		c.dead = true
	}
}
