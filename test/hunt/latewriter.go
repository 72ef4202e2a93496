package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"time"

	"vacate/internal/blk"
	"vacate/internal/drive"
	"vacate/internal/mem"
)

// A writer is a process that stands for an engine: this program once more, with
// writerEnv in its environment. It is started while its predecessor lives, and
// speaks to the hunt in lines.
//
//  1. "ready"; then it waits for a line: its predecessor was killed and reaped.
//  2. "fenced R NS": it holds the drive's fence, and was refused R times before.
//  3. "still": it has read all blocks, and then again: nothing changed.
//  4. "written": each block holds its generation.
//  5. "verified": for a while no block held another.
//  6. "deep": random writes of its generation are in flight, as many as the queue
//     takes, until it is killed.
//
// What it finds at 3 or 5 it says, and ends: that is what is hunted.

// writerEnv names the environment variable with a writer's orders.
const writerEnv = "VACATE_LATE_WRITER"

// lateIDs are those of the drive and of its node.
var lateIDs = struct{ node, drive drive.ID }{drive.ID{1}, drive.ID{2}}

// orders are what a writer is told when it is started.
type orders struct {
	Path   string
	Gen    uint64
	Seed   uint64
	Bytes  int64 // of the area that is written
	Depth  int
	Verify time.Duration
}

type writer struct {
	orders
	rng   *rand.Rand
	queue blk.Queue
	slots []writerSlot
	next  int64 // bytes: where all goes on
	op    blk.Op
	busy  int
	deep  bool
	found error

	count uint64                   // writes made
	seen  []stamp                  // of each block, when it was read first
	look  func(stamp, int64) error // at each block that is read
}

// A stamp is what a block begins with.
type stamp struct{ gen, place, count uint64 }

type writerSlot struct {
	blk.Request
	w   *writer
	mem []byte
}

// writeLate is the writer's process.
func writeLate(spec string) error {
	runtime.LockOSThread()
	w := &writer{}
	if err := json.Unmarshal([]byte(spec), &w.orders); err != nil {
		return err
	}
	w.rng = rand.New(rand.NewPCG(w.Seed, w.Gen))
	r, err := mem.Map(w.Depth*blk.MaxTransfer, mem.TryLock)
	if err != nil {
		return err
	}
	w.slots = make([]writerSlot, w.Depth)
	for i := range w.slots {
		s := &w.slots[i]
		s.w, s.mem = w, r.Bytes()[i*blk.MaxTransfer:][:blk.MaxTransfer]
		s.Done = s
	}
	fmt.Println("ready")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	d, err := drive.Open(context.Background(), w.Path, drive.OpenOptions{
		Node: lateIDs.node, UUID: lateIDs.drive, Epoch: 1, NewEpoch: 1, FenceWait: time.Minute,
	})
	if err != nil {
		return err
	}
	info := d.Info()
	if info.Engine != drive.EngineRing {
		return fmt.Errorf("the engine of %s is %s, %s: no write outlives its process; use -device", w.Path, info.Engine, info.EngineWhy)
	}
	fmt.Println("fenced", info.FenceRefused, info.FenceWaited.Nanoseconds())
	if w.queue, err = d.NewQueue(w.Depth); err != nil {
		return err
	}
	return w.work()
}

func (w *writer) work() error {
	w.seen = make([]stamp, w.Bytes/blk.BlockSize)
	for _, look := range []func(stamp, int64) error{w.remember, w.compare} {
		w.look = look
		if err := w.all(blk.OpRead); err != nil {
			return err
		}
	}
	fmt.Println("still")
	if err := w.all(blk.OpWrite); err != nil {
		return err
	}
	fmt.Println("written")
	w.look = w.mine
	for start := time.Now(); time.Since(start) < w.Verify; {
		if err := w.all(blk.OpRead); err != nil {
			return err
		}
	}
	fmt.Println("verified")
	w.deep = true
	for i := range w.slots {
		w.start(&w.slots[i])
	}
	w.queue.Reap(false)
	fmt.Println("deep")
	for w.found == nil {
		w.queue.Reap(true)
	}
	return w.found
}

// all reads or writes every block once.
func (w *writer) all(op blk.Op) error {
	w.op, w.next = op, 0
	for i := range w.slots {
		w.start(&w.slots[i])
	}
	for w.busy > 0 {
		w.queue.Reap(true)
	}
	return w.found
}

// start makes the next request in s, if there is one.
func (w *writer) start(s *writerSlot) {
	switch {
	case w.found != nil:
		return
	case w.deep:
		s.Op, s.Len = blk.OpWrite, blk.BlockSize<<w.rng.IntN(7)
		s.Off = w.rng.Int64N((w.Bytes-s.Len)/blk.BlockSize+1) * blk.BlockSize
	case w.next == w.Bytes:
		return
	default:
		s.Op, s.Off, s.Len = w.op, w.next, min(blk.MaxTransfer, w.Bytes-w.next)
		w.next += s.Len
	}
	s.Buf = s.mem[:s.Len]
	if s.Op == blk.OpWrite {
		w.stamp(s)
	}
	w.busy++
	w.queue.Submit([]*blk.Request{&s.Request})
}

// stamp writes into each block of s its generation, its place, and which write
// it is.
func (w *writer) stamp(s *writerSlot) {
	w.count++
	for at := int64(0); at < s.Len; at += blk.BlockSize {
		b := s.Buf[at:][:blk.BlockSize]
		binary.LittleEndian.PutUint64(b, w.Gen)
		binary.LittleEndian.PutUint64(b[8:], uint64(s.Off+at))
		binary.LittleEndian.PutUint64(b[16:], w.count)
		copy(b[blk.BlockSize-24:], b[:24])
	}
}

// Complete checks what was done, and goes on.
func (s *writerSlot) Complete(*blk.Request) {
	w := s.w
	w.busy--
	if err := s.Err(); err != nil {
		w.found = errors.Join(w.found, err)
	}
	if s.Op == blk.OpRead && w.found == nil {
		w.found = w.check(s)
	}
	w.start(s)
}

// lateMark is how all begins that is hunted.
const lateMark = "LATE WRITE: "

// check looks at what was read.
func (w *writer) check(s *writerSlot) error {
	for at := int64(0); at < s.Len; at += blk.BlockSize {
		b := s.Buf[at:][:blk.BlockSize]
		if !bytes.Equal(b[:24], b[blk.BlockSize-24:]) {
			return fmt.Errorf("the block at %d is half of one write and half of another", s.Off+at)
		}
		got := stamp{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])}
		if got != (stamp{}) && got.place != uint64(s.Off+at) {
			return fmt.Errorf("the block at %d holds what was written to %d", s.Off+at, got.place)
		}
		if err := w.look(got, s.Off+at); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) remember(got stamp, at int64) error {
	w.seen[at/blk.BlockSize] = got
	return nil
}

func (w *writer) compare(got stamp, at int64) error {
	if before := w.seen[at/blk.BlockSize]; got != before {
		return fmt.Errorf(lateMark+"the block at %d, which nobody writes, held write %d of generation %d, and then write %d of generation %d",
			at, before.count, before.gen, got.count, got.gen)
	}
	return nil
}

func (w *writer) mine(got stamp, at int64) error {
	if got.gen != w.Gen {
		return fmt.Errorf(lateMark+"the block at %d was written by generation %d, and then held write %d of generation %d", at, w.Gen, got.count, got.gen)
	}
	return nil
}
