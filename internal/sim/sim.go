// Package sim is a drive in memory that behaves as badly as real ones do, on
// command and repeatably. Tests stack the layers of the data plane on it.
//
// # What is simulated
//
//   - Completions come from Reap only, in an order that the seed decides, and
//     not all at once. What two requests in flight do to the same bytes is
//     decided by that order too.
//   - Faults strike operation n ([Drive.At]) or all from n on ([Drive.From]): a
//     request that was lost, one that was done although it failed, one that was
//     cut short, one that hangs until [Drive.Release].
//   - [Drive.Crash] keeps a random part of what was written since the last
//     flush, and a random part of what was in flight.
//
// Operations are counted from 1, over all queues, in the order of Submit. With
// one goroutine the same seed gives the same run; tests print it.
package sim

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"

	"vacate/internal/blk"
)

// A Config describes a simulated drive.
type Config struct {
	Size    int64  // bytes, a multiple of Logical
	Logical int    // bytes, a power of two; 0 means blk.BlockSize. Requests that are not aligned to it get EINVAL.
	Seed    uint64 // decides the order of completions, and what a crash keeps
	Fill    byte   // what every byte is at first: a drive is not empty because it is new here
}

// A Kind is what a fault does to a request.
type Kind uint8

// The kinds of faults.
const (
	Lost  Kind = iota + 1 // an error, and nothing was done
	Done                  // an error, but everything was done
	Short                 // part of it was done: EIO, and N says how much
	Hang                  // no completion until Release; then it is carried out
)

// A Fault is what happens to one operation. Errno 0 means EIO.
type Fault struct {
	Kind  Kind
	Errno syscall.Errno
}

// A Drive is a simulated drive. It is a [blk.Device]; its methods may be called
// from any goroutine.
type Drive struct {
	cfg Config

	mu       sync.Mutex
	wake     *sync.Cond // something may have become ready: Release, Crash
	rng      *rand.Rand
	now      []byte // what a read sees
	durable  []byte // what a crash is sure to keep
	dirty    []bool // by logical block: now may differ from durable
	ops      int64
	at       map[int64]Fault
	from     int64 // 0: none
	fromHow  Fault
	released int // generation: hung requests of older ones are ready
	queues   map[*queue]struct{}
}

// New makes a drive. It panics on a Config that makes no sense: this is for
// tests.
func New(cfg Config) *Drive {
	if cfg.Logical == 0 {
		cfg.Logical = blk.BlockSize
	}
	if cfg.Logical < 1 || cfg.Logical&(cfg.Logical-1) != 0 || cfg.Size <= 0 || cfg.Size%int64(cfg.Logical) != 0 {
		panic(fmt.Sprintf("sim: size %d with logical blocks of %d bytes", cfg.Size, cfg.Logical))
	}
	d := &Drive{
		cfg:     cfg,
		rng:     rand.New(rand.NewPCG(cfg.Seed, 0x7661636174650000)),
		now:     make([]byte, cfg.Size),
		durable: make([]byte, cfg.Size),
		dirty:   make([]bool, cfg.Size/int64(cfg.Logical)),
		at:      make(map[int64]Fault),
		queues:  make(map[*queue]struct{}),
	}
	d.wake = sync.NewCond(&d.mu)
	if cfg.Fill != 0 {
		for i := range d.now {
			d.now[i] = cfg.Fill
		}
		copy(d.durable, d.now)
	}
	return d
}

// Geometry implements [blk.Device].
func (d *Drive) Geometry() blk.Geometry {
	return blk.Geometry{Size: d.cfg.Size, Logical: d.cfg.Logical, Physical: max(d.cfg.Logical, blk.BlockSize)}
}

// Ops returns the number of operations submitted so far.
func (d *Drive) Ops() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops
}

// At makes f strike operation n, 1 ≤ n, counted from the making of the drive.
func (d *Drive) At(n int64, f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[n] = f
}

// From makes f strike every operation from n on: a drive that is gone.
func (d *Drive) From(n int64, f Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.from, d.fromHow = n, f
}

// Heal takes back all faults that have not struck yet.
func (d *Drive) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.at)
	d.from = 0
}

// Release lets the requests that hang now complete.
func (d *Drive) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.released++
	d.wake.Broadcast()
}

// Peek copies what lies at off into p, as a hunt through the raw medium would.
func (d *Drive) Peek(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.now[off:off+int64(len(p))])
}

// Poke overwrites what lies at off, on the medium, behind every queue's back.
func (d *Drive) Poke(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.now[off:], p)
	copy(d.durable[off:], p)
}

// Crash ends every queue: what is in flight is never completed, and new
// requests get ENODEV. Each logical block that was written since the last flush,
// or is being written, keeps its new or its old contents, at random. The drive
// goes on with new queues, without faults. No queue may be inside Submit.
func (d *Drive) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for q := range d.queues {
		q.dead = true
		for _, p := range q.flight {
			if r := p.r; r.Op == blk.OpWrite && p.bad == 0 {
				d.scatter(r)
			}
		}
		q.flight = q.flight[:0]
	}
	clear(d.queues)
	unit := d.cfg.Logical
	for b, dirty := range d.dirty {
		if !dirty {
			continue
		}
		lo, hi := b*unit, (b+1)*unit
		if d.rng.IntN(2) == 0 {
			copy(d.now[lo:hi], d.durable[lo:hi])
		} else {
			copy(d.durable[lo:hi], d.now[lo:hi])
		}
		d.dirty[b] = false
	}
	clear(d.at)
	d.from = 0
	d.wake.Broadcast()
}

// scatter carries out a random part of a write.
func (d *Drive) scatter(r *blk.Request) {
	unit := int64(d.cfg.Logical)
	for at := int64(0); at < r.Len; at += unit {
		if d.rng.IntN(2) == 0 {
			d.write(r.Off+at, r.Buf[at:at+unit])
		}
	}
}

// The functions below are called with mu held.

func (d *Drive) write(off int64, p []byte) {
	copy(d.now[off:], p)
	unit := int64(d.cfg.Logical)
	for b := off / unit; b < (off+int64(len(p)))/unit; b++ {
		d.dirty[b] = true
	}
}

// flush makes a range durable.
func (d *Drive) flush(off, n int64) {
	unit := int64(d.cfg.Logical)
	for b := off / unit; b < (off+n)/unit; b++ {
		if d.dirty[b] {
			copy(d.durable[b*unit:(b+1)*unit], d.now[b*unit:(b+1)*unit])
			d.dirty[b] = false
		}
	}
}

// strike returns the fault of the next operation, if there is one.
func (d *Drive) strike() Fault {
	d.ops++
	f, ok := d.at[d.ops]
	switch {
	case ok:
		delete(d.at, d.ops)
	case d.from != 0 && d.ops >= d.from:
		f = d.fromHow
	default:
		return Fault{}
	}
	if f.Errno == 0 {
		f.Errno = syscall.EIO
	}
	return f
}
