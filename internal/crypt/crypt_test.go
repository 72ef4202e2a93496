package crypt

import (
	"bytes"
	"crypto/aes"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/mem"
	"vacate/internal/sim"
	"vacate/internal/xts"

	reference "golang.org/x/crypto/xts"
)

// newSchedule expands a key that the seed decides, and returns both. The key is
// kept apart: a test that wipes the schedule can still decrypt.
func newSchedule(tb testing.TB, seed uint64) (*xts.Schedule, []byte) {
	tb.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	var key [xts.KeySize]byte
	for i := range key {
		key[i] = byte(rng.Uint32())
	}
	s := new(xts.Schedule)
	if err := s.Expand(&key); err != nil {
		tb.Fatal(err)
	}
	return s, key[:]
}

// open decrypts one block with an implementation that is not ours.
func open(tb testing.TB, key, block []byte, number uint64) []byte {
	tb.Helper()
	c, err := reference.NewCipher(aes.NewCipher, key)
	if err != nil {
		tb.Fatal(err)
	}
	plain := make([]byte, len(block))
	c.Decrypt(plain, block, number)
	return plain
}

func newQueue(t *testing.T, c *Crypt, depth int) blk.Queue {
	t.Helper()
	q, err := c.NewQueue(depth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	return q
}

func TestConformance(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		s, _ := newSchedule(t, 1)
		return New(sim.New(sim.Config{Size: 4 << 20, Seed: 1}), s, mem.TryLock)
	})
}

// TestL3CiphertextBelow: what reaches the device is AES-256-XTS with the block's
// number as tweak, read back by another implementation; from a buffer that has
// no alignment, in lengths that do and do not end with a stretch.
func TestL3CiphertextBelow(t *testing.T) {
	s, key := newSchedule(t, 2)
	d := sim.New(sim.Config{Size: 4 << 20, Seed: 1})
	q := newQueue(t, New(d, s, mem.TryLock), 1)
	for _, tt := range []struct{ first, blocks int64 }{{0, 1}, {7, 8}, {100, 9}, {200, 64}} {
		buf := bytes.Repeat([]byte("the tenant's secret "), 14_000)[3:][:tt.blocks*blk.BlockSize]
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: tt.first * blk.BlockSize, Len: int64(len(buf)), Buf: buf}); err != nil {
			t.Fatal(err)
		}
		for b := range tt.blocks {
			raw := make([]byte, blk.BlockSize)
			d.Peek(raw, (tt.first+b)*blk.BlockSize)
			plain := buf[b*blk.BlockSize : (b+1)*blk.BlockSize]
			if bytes.Contains(raw, []byte("secret")) {
				t.Fatalf("block %d reached the device as plaintext", tt.first+b)
			}
			if !bytes.Equal(open(t, key, raw, uint64(tt.first+b)), plain) {
				t.Fatalf("block %d on the device does not decrypt with its number as tweak", tt.first+b)
			}
		}
		got := make([]byte, len(buf)+1)[1:]
		if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: tt.first * blk.BlockSize, Len: int64(len(got)), Buf: got}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, buf) {
			t.Errorf("%d blocks at %d are not read back", tt.blocks, tt.first)
		}
		runtime.KeepAlive(got)
	}
}

// TestRefusals: whole blocks only, and nothing that would put other bytes than
// ciphertext on the device.
func TestRefusals(t *testing.T) {
	s, _ := newSchedule(t, 1)
	d := sim.New(sim.Config{Size: 1 << 20, Logical: 512})
	q := newQueue(t, New(d, s, mem.TryLock), 2)
	buf := make([]byte, 2*blk.BlockSize)
	for _, tt := range []struct {
		r    blk.Request
		want syscall.Errno
	}{
		{blk.Request{Op: blk.OpWrite, Off: 512, Len: blk.BlockSize, Buf: buf[:blk.BlockSize]}, syscall.EINVAL},
		{blk.Request{Op: blk.OpRead, Off: 0, Len: 512, Buf: buf[:512]}, syscall.EINVAL},
		{blk.Request{Op: blk.OpRead, Off: 1 << 20, Len: blk.BlockSize, Buf: buf[:blk.BlockSize]}, syscall.EINVAL},
		{blk.Request{Op: blk.OpWriteZeroes, Off: 0, Len: blk.BlockSize}, syscall.EOPNOTSUPP},
	} {
		if blk.Do(q, &tt.r); tt.r.Errno != tt.want {
			t.Errorf("%v of %d bytes at %d: %v, want %v", tt.r.Op, tt.r.Len, tt.r.Off, tt.r.Errno, tt.want)
		}
	}
	if n := d.Ops(); n != 0 {
		t.Errorf("%d operations on the device", n)
	}
}

type counter int

func (c *counter) Complete(*blk.Request) { *c++ }

// TestScratchRunsOut: more is asked for than there is scratch; all is done in
// the end.
func TestScratchRunsOut(t *testing.T) {
	s, _ := newSchedule(t, 1)
	const depth = 16
	d := sim.New(sim.Config{Size: depth * blk.MaxTransfer, Seed: 9})
	q := newQueue(t, New(d, s, mem.TryLock), depth)
	var done counter
	for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
		done = 0
		batch := make([]*blk.Request, depth)
		for i := range batch {
			size := int64(blk.MaxTransfer)
			if i%3 == 1 {
				size = blk.BlockSize
			}
			batch[i] = &blk.Request{Op: op, Off: int64(i) * blk.MaxTransfer, Len: size, Done: &done}
			batch[i].Buf = bytes.Repeat([]byte{byte(i + 1)}, int(size))
			if op == blk.OpRead {
				clear(batch[i].Buf)
			}
		}
		q.Submit(batch)
		for done < depth {
			q.Reap(true)
		}
		for i, r := range batch {
			if r.Errno != 0 || !bytes.Equal(r.Buf, bytes.Repeat([]byte{byte(i + 1)}, len(r.Buf))) {
				t.Errorf("%v %d: errno %v, or wrong bytes", op, i, r.Errno)
			}
		}
	}
}

// TestL5LateRead: a read that the device completes after the gate was shut fails
// and leaves its buffer as it was; Revoke does not wait for it.
func TestL5LateRead(t *testing.T) {
	s, _ := newSchedule(t, 1)
	d := sim.New(sim.Config{Size: 1 << 20})
	c := New(d, s, mem.TryLock)
	q := newQueue(t, c, 2)
	buf := bytes.Repeat([]byte("late"), blk.MaxTransfer/4)
	if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Len: blk.MaxTransfer, Buf: buf}); err != nil {
		t.Fatal(err)
	}
	got := bytes.Repeat([]byte{0xEE}, blk.MaxTransfer)
	var done counter
	r := blk.Request{Op: blk.OpRead, Len: blk.MaxTransfer, Buf: got, Done: &done}
	d.At(2, sim.Fault{Kind: sim.Hang})
	q.Submit([]*blk.Request{&r})
	c.Revoke() // the device hangs, and this returns
	d.Release()
	for done == 0 {
		q.Reap(true)
	}
	if r.Errno != syscall.ESHUTDOWN || r.N != 0 {
		t.Errorf("the late read: errno %v, N = %d, want ESHUTDOWN and 0", r.Errno, r.N)
	}
	if !bytes.Equal(got, bytes.Repeat([]byte{0xEE}, len(got))) {
		t.Error("the late read changed its buffer")
	}
	clear(s[:]) // C2: a use of it would panic from now on
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		r := blk.Request{Op: op, Len: blk.BlockSize, Buf: buf[:blk.BlockSize]}
		if blk.Do(q, &r); r.Errno != syscall.ESHUTDOWN {
			t.Errorf("%v after Revoke: %v, want ESHUTDOWN", op, r.Errno)
		}
	}
	if _, err := c.NewQueue(1); !errors.Is(err, syscall.ESHUTDOWN) {
		t.Errorf("a queue after Revoke: %v, want ESHUTDOWN", err)
	}
}

// TestL5RevokeWaitsForCiphers: the schedule is wiped as soon as Revoke returns,
// under load. Whatever was acknowledged is good ciphertext, and nothing is
// enciphered or deciphered with a wiped schedule (that would panic, or show).
func TestL5RevokeWaitsForCiphers(t *testing.T) {
	rounds := 400
	if testing.Short() {
		rounds = 150
	}
	want := bytes.Repeat([]byte{0x5C}, blk.BlockSize)
	for round := range rounds {
		// Short requests: a kernel that has loaded its keys no longer shows that they
		// are wiped. Long ones: more than a stretch.
		size := blk.BlockSize
		if round%8 == 0 {
			size = blk.MaxTransfer
		}
		s, key := newSchedule(t, uint64(round))
		d := newInMemory(t, size)
		d.windows = func(int64) bool { return round%2 == 0 } // by both ways
		c := New(d, s, mem.TryLock)
		q := newQueue(t, c, 1)
		var acknowledged atomic.Int64
		ended := make(chan any, 1)
		go func() {
			defer func() { ended <- recover() }()
			buf := bytes.Repeat(want, size/blk.BlockSize)
			for {
				r := blk.Request{Op: blk.OpWrite, Len: int64(size), Buf: buf}
				if blk.Do(q, &r); r.Errno != 0 {
					return
				}
				acknowledged.Add(1)
			}
		}()
		for acknowledged.Load() < 3 { // awake, so as to be quick
			runtime.Gosched()
		}
		for range round * 37 % 1000 { // to strike at another moment each time
			acknowledged.Load()
		}
		c.Revoke()
		clear(s[:]) // the keeper's part
		if p := <-ended; p != nil {
			t.Fatalf("round %d: a cipher call ran after Revoke: %v", round, p)
		}
		for b := range size / blk.BlockSize {
			if !bytes.Equal(open(t, key, d.bytes[b*blk.BlockSize:][:blk.BlockSize], uint64(b)), want) {
				t.Fatalf("round %d: block %d was enciphered while its key was wiped", round, b)
			}
		}
	}
}

// ram is a device that completes within Submit.
type ram struct{ bytes []byte }

func newRAM(size int) *ram { return &ram{bytes: make([]byte, size)} }

func (d *ram) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(len(d.bytes)), Logical: 1, Physical: 1}
}
func (d *ram) NewQueue(int) (blk.Queue, error) { return ramQueue{d}, nil }

type ramQueue struct{ d *ram }

func (q ramQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		if !r.InRange(int64(len(q.d.bytes))) {
			r.Finish(0, syscall.EINVAL)
			continue
		}
		switch r.Op {
		case blk.OpRead:
			copy(r.Buf, q.d.bytes[r.Off:])
		case blk.OpWrite:
			copy(q.d.bytes[r.Off:], r.Buf)
		case blk.OpDiscard, blk.OpWriteZeroes:
			r.Finish(0, syscall.EOPNOTSUPP)
			continue
		}
		r.Finish(r.Len, 0)
	}
}
func (q ramQueue) Reap(bool) int { return 0 }
func (q ramQueue) Close() error  { return nil }

func TestConformanceSync(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		s, _ := newSchedule(t, 1)
		return New(newRAM(4<<20), s, mem.TryLock)
	})
}

// BenchmarkCrypt is the layer over memory: the cipher alone, in place, and with
// scratch and a copy.
func BenchmarkCrypt(b *testing.B) {
	s, _ := newSchedule(b, 1)
	d := newInMemory(b, 1<<20)
	for _, way := range []string{"cipher alone", "in place", "scratch"} {
		d.windows = func(int64) bool { return way == "in place" }
		q, err := New(d, s, mem.TryLock).NewQueue(1)
		if err != nil {
			b.Fatal(err)
		}
		for _, bb := range []struct {
			name string
			op   blk.Op
			size int64
		}{{"read4K", blk.OpRead, 4 << 10}, {"write4K", blk.OpWrite, 4 << 10}, {"read128K", blk.OpRead, 128 << 10}, {"write128K", blk.OpWrite, 128 << 10}} {
			b.Run(way+"/"+bb.name, func(b *testing.B) {
				r := blk.Request{Op: bb.op, Len: bb.size, Buf: blktest.Buffer(int(bb.size)), Done: new(counter)}
				batch := []*blk.Request{&r}
				b.SetBytes(bb.size)
				for b.Loop() {
					switch {
					case way != "cipher alone":
						q.Submit(batch)
					case bb.op == blk.OpRead:
						s.Decrypt(r.Buf, d.bytes[:bb.size], blk.BlockSize, 0)
					default:
						s.Encrypt(d.bytes[:bb.size], r.Buf, blk.BlockSize, 0)
					}
				}
				if r.Errno != 0 {
					b.Fatal(r.Err())
				}
			})
		}
		if err := q.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCold is the layer in place over more memory than caches hold, in
// batches, in nanoseconds a request of 4 KiB.
func BenchmarkCold(b *testing.B) {
	const size, batch = 1 << 30, 32
	s, _ := newSchedule(b, 1)
	d := newInMemory(b, size)
	for i := 0; i < size; i += blk.BlockSize {
		d.bytes[i] = 1 // so that it is there
	}
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		b.Run(op.String(), func(b *testing.B) {
			q, err := New(d, s, mem.TryLock).NewQueue(batch)
			if err != nil {
				b.Fatal(err)
			}
			defer q.Close()
			rng := rand.New(rand.NewPCG(1, 2))
			all := make([]*blk.Request, batch)
			for i := range all {
				all[i] = &blk.Request{Op: op, Len: blk.BlockSize, Buf: blktest.Buffer(blk.BlockSize), Done: new(counter)}
			}
			for b.Loop() {
				for _, r := range all {
					r.Off = rng.Int64N(size/blk.BlockSize) * blk.BlockSize
				}
				q.Submit(all)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/request")
		})
	}
}
