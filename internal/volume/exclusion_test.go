package volume_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/sim"
)

// TestL4ExclusionOrder: who waits for whom, step by step. A drive that hangs
// shows what has been let through.
func TestL4ExclusionOrder(t *testing.T) {
	const b = blk.BlockSize
	sub := func(off int64) blk.Request { return blk.Request{Op: blk.OpWrite, Off: off, Len: 512} }
	whole := func(op blk.Op, off, n int64) blk.Request { return blk.Request{Op: op, Off: off, Len: n} }
	for _, tt := range []struct {
		name   string
		first  blk.Request
		second blk.Request
		waits  bool
	}{
		{"two parts of a block", sub(0), sub(1024), true},
		{"parts of two blocks", sub(0), sub(b), false},
		{"part, then write", sub(b), whole(blk.OpWrite, 0, 2*b), true},
		{"part, then read", sub(b), whole(blk.OpRead, 0, 2*b), true},
		{"part, then discard of everything", sub(b), whole(blk.OpDiscard, 0, 1<<20), true},
		{"part, then zeroes", sub(b), whole(blk.OpWriteZeroes, b, b), true},
		{"part, then write elsewhere", sub(b), whole(blk.OpWrite, 2*b, b), false},
		{"part, then flush", sub(b), whole(blk.OpFlush, 0, 0), false},
		{"write, then part", whole(blk.OpWrite, 0, 2*b), sub(b), true},
		{"read, then part", whole(blk.OpRead, 0, 2*b), sub(b), true},
		{"write, then part elsewhere", whole(blk.OpWrite, 0, b), sub(b), false},
		{"write, then write", whole(blk.OpWrite, 0, b), whole(blk.OpWrite, 0, b), false},
		{"zeroes of a part, then read", blk.Request{Op: blk.OpWriteZeroes, Off: 512, Len: 512}, whole(blk.OpRead, 0, b), true},
		{"discard of a part, then read", blk.Request{Op: blk.OpDiscard, Off: 512, Len: 512}, whole(blk.OpRead, 0, b), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := sim.New(sim.Config{Size: 1 << 20, Fill: 0xA7})
			l := newLease(t, d, 1)
			q, other := mustQueue(t, l, 4), mustQueue(t, l, 4)
			page := make([]byte, 8*b)
			for off := int64(0); off < 4*b; off += 4 * b { // so that every request is I/O
				if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: off, Len: 4 * b, Buf: page[:4*b]}); err != nil {
					t.Fatal(err)
				}
			}
			var n counter
			for _, r := range []*blk.Request{&tt.first, &tt.second} {
				r.Done = &n
				if r.Op == blk.OpRead || r.Op == blk.OpWrite {
					r.Buf = make([]byte, r.Len)
				}
			}
			d.At(d.Ops()+1, sim.Fault{Kind: sim.Hang})
			q.Submit([]*blk.Request{&tt.first})
			before := d.Ops()
			other.Submit([]*blk.Request{&tt.second})
			if waits := d.Ops() == before && n == 0; waits != tt.waits {
				t.Errorf("the second waits: %v, want %v", waits, tt.waits)
			}
			d.Release()
			for range 1000 {
				q.Reap(false)
				other.Reap(false)
			}
			if n != 2 || tt.first.Errno != 0 || tt.second.Errno != 0 {
				t.Errorf("%d of 2 completed: %v, %v", n, tt.first.Errno, tt.second.Errno)
			}
			closeAll(t, q, other)
			runtime.KeepAlive(page)
		})
	}
}

func closeAll(t *testing.T, queues ...blk.Queue) {
	t.Helper()
	for _, q := range queues {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestMoreThanTickets: more requests want blocks for themselves than there are
// tickets. All have their turn.
func TestMoreThanTickets(t *testing.T) {
	const depth, queues = 50, 3
	d := sim.New(sim.Config{Size: 1 << 20, Seed: 4})
	l := newLease(t, d, 1)
	var n counter
	var qs []blk.Queue
	for i := range queues {
		q := mustQueue(t, l, depth)
		qs = append(qs, q)
		batch := make([]*blk.Request, depth)
		for j := range batch {
			at := int64(j)*blk.BlockSize + int64(i)*512
			batch[j] = &blk.Request{Op: blk.OpWrite, Off: at, Len: 512, Buf: bytes.Repeat([]byte{byte(i + 1)}, 512), Done: &n}
		}
		q.Submit(batch)
	}
	for range 5000 {
		for _, q := range qs {
			q.Reap(false)
		}
	}
	if n != depth*queues {
		t.Fatalf("%d of %d completed", n, depth*queues)
	}
	buf := make([]byte, blk.BlockSize)
	for j := range int64(depth) {
		if err := blk.Do(qs[0], &blk.Request{Op: blk.OpRead, Off: j * blk.BlockSize, Len: blk.BlockSize, Buf: buf}); err != nil {
			t.Fatal(err)
		}
		for i := range queues {
			if !bytes.Equal(buf[i*512:(i+1)*512], bytes.Repeat([]byte{byte(i + 1)}, 512)) {
				t.Errorf("block %d lost what queue %d wrote", j, i)
			}
		}
	}
	closeAll(t, qs...)
}

// stress runs one goroutine a queue, each blocking in Reap(true) as an export
// does. It fails if they do not end: a wake-up was lost.
func stress(t *testing.T, l *lease, workers int, work func(id int, q blk.Queue, rng *rand.Rand) error) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("VACATE_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	var wg sync.WaitGroup
	ended := make(chan struct{})
	for i := range workers {
		q := mustQueue(t, l, 4)
		wg.Go(func() {
			if err := work(i, q, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
				t.Errorf("VACATE_SEED=%d, queue %d: %v", seed, i, err)
			}
			if err := q.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	go func() { wg.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(2 * time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("VACATE_SEED=%d: stuck\n%s", seed, buf[:runtime.Stack(buf, true)])
	}
}

// sharedBlocks is the work of a queue in the stress tests: all queues write to
// the same few blocks. Queue 0 writes whole blocks, and between that the others
// write sectors, each its own: after a write of its own, a queue reads what it
// wrote, and queue 0 finds the sectors that nobody else writes as it left them.
func sharedBlocks(iterations, workers int) func(id int, q blk.Queue, rng *rand.Rand) error {
	const blocks = 3
	return func(id int, q blk.Queue, rng *rand.Rand) error {
		buf := make([]byte, blk.BlockSize)
		last := [blocks]byte{}
		for n := range iterations {
			b := rng.Int64N(blocks)
			version := byte(n%250 + 1)
			if id == 0 {
				for i := range buf {
					buf[i] = version
				}
				if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: b * blk.BlockSize, Len: blk.BlockSize, Buf: buf}); err != nil {
					return err
				}
				last[b] = version
			} else {
				at := b*blk.BlockSize + int64(id)*512 + rng.Int64N(100)
				length := 300 + rng.Int64N(100)
				for i := range buf[:length] {
					buf[i] = version
				}
				if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: at, Len: length, Buf: buf[:length]}); err != nil {
					return err
				}
				continue
			}
			b = rng.Int64N(blocks)
			if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: b * blk.BlockSize, Len: blk.BlockSize, Buf: buf}); err != nil {
				return err
			}
			mine := append(bytes.Clone(buf[:512]), buf[(workers)*512:]...)
			if !bytes.Equal(mine, bytes.Repeat([]byte{last[b]}, len(mine))) {
				return syscall.EILSEQ // a read-modify-write brought back what was there before
			}
		}
		return nil
	}
}

// TestL4ExclusionStress: sub-block writes beside whole ones on other queues,
// over a drive that completes at once and over one that does not.
func TestL4ExclusionStress(t *testing.T) {
	const workers = 4
	iterations := 3000
	if testing.Short() {
		iterations = 300
	}
	t.Run("sync", func(t *testing.T) {
		stress(t, newLease(t, yielding{newRAM(1 << 20)}, 1), workers, sharedBlocks(iterations, workers))
	})
	t.Run("sim", func(t *testing.T) {
		d := sim.New(sim.Config{Size: 1 << 20, Seed: 1, Fill: 0xA7})
		stress(t, newLease(t, d, 1), workers, sharedBlocks(iterations, workers))
	})
}

// TestL4LostUpdates: queues write neighbouring parts of the same blocks, none
// overlapping another's, several at a time. Each reads back all of its own.
func TestL4LostUpdates(t *testing.T) {
	const workers, blocks = 4, 2
	iterations := 1000
	if testing.Short() {
		iterations = 100
	}
	work := func(id int, q blk.Queue, rng *rand.Rand) error {
		const part = 1000 // not a whole number of sectors
		var last [blocks]byte
		for n := range iterations {
			var done counter
			batch := make([]*blk.Request, blocks)
			for b := range blocks {
				op := blk.OpWrite
				last[b] = byte(n%250 + 1)
				if rng.IntN(4) == 0 {
					op, last[b] = blk.OpWriteZeroes, 0
				}
				batch[b] = &blk.Request{Op: op, Off: int64(b*blk.BlockSize + id*part), Len: part, Done: &done}
				if op == blk.OpWrite {
					batch[b].Buf = bytes.Repeat(last[b : b+1 : b+1][:1], part)
					for i := range batch[b].Buf {
						batch[b].Buf[i] = last[b]
					}
				}
			}
			q.Submit(batch)
			for done < blocks {
				q.Reap(true)
			}
			for b, r := range batch {
				if r.Errno != 0 {
					return r.Err()
				}
				got := make([]byte, part)
				if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: r.Off, Len: part, Buf: got}); err != nil {
					return err
				}
				if !bytes.Equal(got, bytes.Repeat([]byte{last[b]}, part)) {
					return syscall.EILSEQ
				}
			}
		}
		return nil
	}
	t.Run("sync", func(t *testing.T) { stress(t, newLease(t, yielding{newRAM(1 << 20)}, 1), workers, work) })
	t.Run("sim", func(t *testing.T) {
		stress(t, newLease(t, sim.New(sim.Config{Size: 1 << 20, Seed: 2}), 1), workers, work)
	})
}

// yielding is a device that lets other goroutines run before it completes.
type yielding struct{ blk.Device }

func (d yielding) NewQueue(depth int) (blk.Queue, error) {
	q, err := d.Device.NewQueue(depth)
	return yieldingQueue{q}, err
}

type yieldingQueue struct{ blk.Queue }

func (q yieldingQueue) Submit(batch []*blk.Request) {
	runtime.Gosched()
	q.Queue.Submit(batch)
}
