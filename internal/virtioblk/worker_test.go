package virtioblk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/poll"
)

// pieces cuts n bytes of fresh guest memory into spans, as rng decides: by blocks,
// or anyhow.
func pieces(g *guest, rng *rand.Rand, n int) (data []span) {
	odd := rng.IntN(3) == 0
	for n > 0 {
		m := min(n, 4096*(1+rng.IntN(40)))
		if odd {
			m = min(n, 1+rng.IntN(9000))
		}
		data = append(data, span{addr: g.alloc(m, 1<<rng.IntN(13)), n: uint32(m)})
		n -= m
	}
	return data
}

// TestModel: whatever a driver asks for, cut however, the volume holds and it reads
// what an array of bytes would.
func TestModel(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		for _, hold := range []bool{false, true} {
			for _, polls := range []bool{false, true} {
				t.Run(fmt.Sprintf("eventIdx=%v,hold=%v,poll=%v", eventIdx, hold, polls), func(t *testing.T) {
					dev := newRAM(4 << 20)
					dev.hold = hold
					if hold {
						for range cap(dev.held) {
							dev.held <- struct{}{}
						}
					}
					cfg := Config{Export: dev, Depth: 8}
					if polls {
						cfg.Poll = poll.Max
					}
					model(t, dev.contents, cfg, eventIdx)
					dev.mu.Lock() // all is answered: for the race detector, who does not know the rings
					defer dev.mu.Unlock()
					if dev.longest > blk.MaxTransfer {
						t.Errorf("a part has %d bytes", dev.longest)
					}
					if dev.foreign.Load() == 0 || dev.bounced.Load() == 0 {
						t.Errorf("%d parts went straight, %d by a bounce buffer: want both", dev.foreign.Load(), dev.bounced.Load())
					}
				})
			}
		}
	}
}

func model(t *testing.T, contents func() []byte, cfg Config, eventIdx bool) {
	rng := rand.New(rand.NewPCG(5, 8))
	g := newGuest(t, 64<<20)
	d := newDriver(g, 256, eventIdx)
	served(t, d, cfg)
	want := contents()
	start := g.next
	for range 50 {
		g.next = start + uint64(rng.IntN(g.half*2-40<<20)) // over the rim too
		asked := map[uint16]func(){}
		before := d.made
		sector := uint64(0)
		for range 1 + rng.IntN(6) { // disjoint
			sector += uint64(rng.IntN(500))
			n := 512 * (1 + rng.IntN(1200))
			if sector*512+uint64(n) > uint64(len(want)) {
				break
			}
			typ := [...]uint32{typeIn, typeOut, typeWriteZeroes, typeDiscard, typeFlush}[rng.IntN(5)]
			ask(t, d, rng, want, typ, sector, n, asked)
			sector += uint64(n) / 512
		}
		d.kick(before)
		for len(asked) > 0 {
			head, _ := d.await()
			asked[head]()
			delete(asked, head)
		}
		if !bytes.Equal(contents(), want) {
			t.Fatal("the volume holds something else")
		}
	}
}

// ask makes one request of the model, and notes in asked how its answer is checked.
func ask(t *testing.T, d *driver, rng *rand.Rand, want []byte, typ uint32, sector uint64, n int, asked map[uint16]func()) {
	var data []span
	there := want[sector*512:][:n]
	indirect := rng.IntN(2) == 0
	switch typ {
	case typeIn:
		data = pieces(d.g, rng, n)
	case typeOut:
		data = pieces(d.g, rng, n)
		for i := range there {
			there[i] = byte(rng.Uint32())
		}
		d.scatter(data, there)
	case typeDiscard, typeWriteZeroes:
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], sector)
		binary.LittleEndian.PutUint32(b[8:], uint32(n/512))
		data = []span{{addr: d.g.alloc(16, 1), n: 16}}
		d.scatter(data, b[:])
		clear(there)
	}
	if len(data) > 30 {
		indirect = true
	}
	r := d.ask(typ, sector, data, typ != typeIn, indirect)
	asked[r.head] = func() {
		if s := d.statusOf(r); s != statusOK {
			t.Fatalf("a request of type %d at sector %d has status %d", typ, sector, s)
		}
		if typ == typeIn && !bytes.Equal(d.gather(data), there) {
			t.Fatalf("a read of %d bytes at sector %d returns something else", n, sector)
		}
	}
}

// TestBlindModel: TestModel over a volume that only Reap can wait for.
func TestBlindModel(t *testing.T) {
	dev := newRAM(4 << 20)
	dev.hold = true
	for range cap(dev.held) {
		dev.held <- struct{}{}
	}
	model(t, dev.contents, Config{Export: blind{dev}, Depth: 8}, true)
}

// A blind is a volume whose queues do not say what they wait for.
type blind struct{ *ram }

func (b blind) NewQueue(depth int) (blk.Queue, error) {
	q, err := b.ram.NewQueue(depth)
	return struct{ blk.Queue }{q}, err
}

// TestAnswers: types, lengths and places of all sorts, and what is written to the
// driver's memory.
func TestAnswers(t *testing.T) {
	const size = 1 << 20
	seg := func(sector uint64, sectors, flags uint32) []byte {
		b := binary.LittleEndian.AppendUint64(nil, sector)
		b = binary.LittleEndian.AppendUint32(b, sectors)
		return binary.LittleEndian.AppendUint32(b, flags)
	}
	for _, tt := range []struct {
		name    string
		typ     uint32
		sector  uint64
		in      int    // bytes that the device may write, besides the status
		out     []byte // what it is sent
		ro      bool
		logical int
		status  uint8
		written uint32
	}{
		{name: "read", typ: typeIn, in: 4096, written: 4097},
		{name: "read of a sector", typ: typeIn, sector: 3, in: 512, written: 513},
		{name: "read of nothing", typ: typeIn, written: 1},
		{name: "read to the end", typ: typeIn, sector: size/512 - 8, in: 4096, written: 4097},
		{name: "read beyond the end", typ: typeIn, sector: size/512 - 7, in: 4096, status: statusIOErr},
		{name: "read far beyond", typ: typeIn, sector: 1 << 63, in: 4096, status: statusIOErr},
		{name: "read where bytes overflow", typ: typeIn, sector: 1<<55 + 1, in: 4096, status: statusIOErr},
		{name: "read of half a sector", typ: typeIn, in: 256, status: statusIOErr},
		{name: "read of a sector of 4096", typ: typeIn, in: 4096, logical: 4096, written: 4097},
		{name: "read of less than 4096", typ: typeIn, in: 512, logical: 4096, status: statusIOErr},
		{name: "read between 4096", typ: typeIn, sector: 1, in: 4096, logical: 4096, status: statusIOErr},
		{name: "write", typ: typeOut, out: make([]byte, 4096), written: 1},
		{name: "write beyond the end", typ: typeOut, sector: size / 512, out: make([]byte, 512), status: statusIOErr, written: 1},
		{name: "write, read-only", typ: typeOut, out: make([]byte, 512), ro: true, status: statusIOErr, written: 1},
		{name: "read, read-only", typ: typeIn, in: 512, ro: true, written: 513},
		{name: "flush", typ: typeFlush, written: 1},
		{name: "flush of an old driver", typ: typeFlushOut, written: 1},
		{name: "flush, read-only", typ: typeFlush, sector: 77, ro: true, written: 1},
		{name: "id", typ: typeGetID, in: 20, written: 21},
		{name: "long id", typ: typeGetID, in: 40, written: 20},
		{name: "short id", typ: typeGetID, in: 3, written: 4},
		{name: "unknown", typ: 99, status: statusUnsupp, written: 1},
		{name: "secure erase", typ: 14, out: seg(0, 8, 0), status: statusUnsupp, written: 1},
		{name: "discard", typ: typeDiscard, out: seg(8, 8, 0), written: 1},
		{name: "discard of several", typ: typeDiscard, out: append(seg(8, 8, 0), seg(64, 1, 0)...), written: 1},
		{name: "discard of nothing", typ: typeDiscard, out: seg(8, 0, 0), written: 1},
		{name: "discard, unmap", typ: typeDiscard, out: seg(8, 8, 1), status: statusUnsupp, written: 1},
		{name: "discard, unknown flag", typ: typeDiscard, out: seg(8, 8, 2), status: statusUnsupp, written: 1},
		{name: "discard without a range", typ: typeDiscard, status: statusIOErr, written: 1},
		{name: "discard of half a range", typ: typeDiscard, out: seg(8, 8, 0)[:8], status: statusIOErr, written: 1},
		{name: "discard of too many", typ: typeDiscard, out: bytes.Repeat(seg(8, 8, 0), maxSegments+1), status: statusIOErr, written: 1},
		{name: "discard beyond the end", typ: typeDiscard, out: append(seg(8, 8, 0), seg(size/512, 1, 0)...), status: statusIOErr, written: 1},
		{name: "discard, all too long", typ: typeDiscard, out: seg(0, 1<<32-1, 0), status: statusIOErr, written: 1},
		{name: "discard, read-only", typ: typeDiscard, out: seg(8, 8, 0), ro: true, status: statusIOErr, written: 1},
		{name: "zeroes", typ: typeWriteZeroes, out: seg(8, 8, 0), written: 1},
		{name: "zeroes, unmap", typ: typeWriteZeroes, out: seg(8, 8, 1), written: 1},
		{name: "zeroes, unknown flag", typ: typeWriteZeroes, out: seg(8, 8, 4), status: statusUnsupp, written: 1},
		{name: "zeroes, read-only", typ: typeWriteZeroes, out: seg(8, 8, 0), ro: true, status: statusIOErr, written: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := newRAM(size)
			for i := range dev.bytes {
				dev.bytes[i] = byte(i>>9) | 1
			}
			if tt.logical != 0 {
				dev.logical = tt.logical
			}
			g := newGuest(t, 1<<20)
			d := newDriver(g, 16, true)
			before := dev.contents()
			served(t, d, Config{Export: dev, ReadOnly: tt.ro, ID: "0123456789abcdefghij"})
			n := max(tt.in, len(tt.out))
			var data []span
			if n > 0 {
				data = []span{{addr: g.alloc(n, 1), n: uint32(n)}}
				d.scatter(data, append(bytes.Clone(tt.out), bytes.Repeat([]byte{0xee}, n)...)[:n])
			}
			status, written := d.do(tt.typ, tt.sector, data, tt.out != nil)
			if status != tt.status || written != tt.written {
				t.Errorf("status %d with %d bytes written, want %d with %d", status, written, tt.status, tt.written)
			}
			if changed := !bytes.Equal(before, dev.contents()); tt.status != statusOK && changed {
				t.Error("a request that was refused has changed the volume")
			}
			switch got := d.gather(data); {
			case tt.typ == typeGetID:
				want := append([]byte("0123456789abcdefghij")[:min(20, n)], bytes.Repeat([]byte{0xee}, max(n-20, 0))...)
				if !bytes.Equal(got, want) {
					t.Errorf("the id is %q, want %q", got, want)
				}
			case tt.typ == typeIn && tt.status == statusOK:
				if !bytes.Equal(got, before[tt.sector*512:][:n]) {
					t.Error("read something else")
				}
			case tt.in > 0:
				if !bytes.Equal(got, bytes.Repeat([]byte{0xee}, n)) {
					t.Error("memory was written for a request that was refused")
				}
			}
		})
	}
}
