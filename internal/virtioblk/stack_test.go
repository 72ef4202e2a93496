package virtioblk

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/crypt"
	"vacate/internal/mem"
	"vacate/internal/poll"
	"vacate/internal/sim"
	"vacate/internal/volume"
	"vacate/internal/xts"
)

// stack is a volume as the engine builds it, over a mapping, all written.
func stack(tb testing.TB, size int64) blk.Device {
	tb.Helper()
	v := layers(tb, newWindow(tb, int(size)))
	q, err := v.NewQueue(1)
	if err != nil {
		tb.Fatal(err)
	}
	defer q.Close()
	buf := make([]byte, blk.MaxTransfer)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: off, Len: int64(len(buf)), Buf: buf}); err != nil {
			tb.Fatal(err)
		}
	}
	return v
}

// layers is a volume of all of a drive, of which nothing is written.
func layers(tb testing.TB, below blk.Device) *volume.Volume {
	tb.Helper()
	blocks := uint64(below.Geometry().Size / blk.BlockSize)
	bits := blockmap.Bits{
		Words:   make([]atomic.Uint64, (blocks+63)/64),
		Summary: make([]atomic.Uint64, (blocks+64*64*512-1)/(64*64*512)),
		Blocks:  blocks,
	}
	sched := new(xts.Schedule)
	key := new([xts.KeySize]byte)
	for i := range key {
		key[i] = byte(i * 7)
	}
	if err := sched.Expand(key); err != nil {
		tb.Fatal(err)
	}
	m := blockmap.New(crypt.New(below, sched, mem.TryLock), bits)
	return volume.New(m, volume.Config{Logical: blk.SectorSize, Lock: mem.TryLock})
}

// A window is a drive in memory, as a file on tmpfs is.
type window struct{ bytes []byte }

func newWindow(tb testing.TB, size int) *window {
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = syscall.Munmap(b) })
	return &window{b}
}

func (d *window) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(len(d.bytes)), Logical: 1, Physical: 1}
}
func (d *window) NewQueue(int) (blk.Queue, error) { return &windowQueue{d}, nil }

type windowQueue struct{ d *window }

func (q *windowQueue) Window(_ blk.Op, off, n int64) []byte { return q.d.bytes[off : off+n : off+n] }
func (q *windowQueue) Faulted(blk.Op, int64, int64)         {}
func (q *windowQueue) Reap(bool) int                        { return 0 }
func (q *windowQueue) Close() error                         { return nil }
func (q *windowQueue) Submit(batch []*blk.Request) {
	for _, r := range batch {
		switch r.Op {
		case blk.OpRead:
			copy(r.Buf, q.d.bytes[r.Off:])
		case blk.OpWrite:
			copy(q.d.bytes[r.Off:], r.Buf)
		}
		r.Finish(r.Len, 0)
	}
}

// TestStackModel: TestModel through all layers, over a drive that completes within
// Reap and in any order, and over one in memory.
func TestStackModel(t *testing.T) {
	const size = 4 << 20
	for name, below := range map[string]blk.Device{
		"sim":    sim.New(sim.Config{Size: size, Seed: 3, Fill: 0xa7}),
		"window": newWindow(t, size),
	} {
		t.Run(name, func(t *testing.T) {
			v := layers(t, below)
			contents := func() []byte {
				q, err := v.NewQueue(1)
				if err != nil {
					t.Fatal(err)
				}
				defer q.Close()
				p := make([]byte, size)
				for off := 0; off < size; off += blk.MaxTransfer {
					if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: int64(off), Len: blk.MaxTransfer, Buf: p[off : off+blk.MaxTransfer]}); err != nil {
						t.Fatal(err)
					}
				}
				return p
			}
			model(t, contents, Config{Export: v, Depth: 8, Poll: poll.Max}, true)
		})
	}
}

// TestStackFaults: a driver's memory goes away under a request, at every place of
// it, and through all layers: that request fails, and others do not (V2, B7).
func TestStackFaults(t *testing.T) {
	const size, page = 4 << 20, 4096
	for name, below := range map[string]blk.Device{
		"sim":    sim.New(sim.Config{Size: size, Seed: 3}),
		"window": newWindow(t, size),
	} {
		for _, typ := range []uint32{typeIn, typeOut} {
			t.Run(fmt.Sprintf("%s/type=%d", name, typ), func(t *testing.T) {
				v := layers(t, below)
				g := newGuest(t, 1<<20)
				d := newDriver(g, 16, true)
				served(t, d, Config{Export: v})
				start := g.next
				there := span{addr: g.alloc(8*page, page), n: 8 * page}
				for sector := range uint64(2) { // whole blocks, and sectors
					if s, _ := d.do(typeOut, 64+sector, []span{there}, true); s != statusOK {
						t.Fatalf("status %d", s)
					}
				}
				rim := uint64(guestBase + g.half + g.half/2)
				if err := g.file.Truncate(int64(g.half + g.half/2)); err != nil {
					t.Fatal(err)
				}
				for _, sector := range []uint64{64, 65, 70, 512} { // written, in part, and not
					for _, n := range []uint64{512, page, 8 * page} {
						for _, before := range []uint64{0, 512, page, 3*page + 512} {
							if before >= n {
								continue
							}
							g.next = start + 8*page
							bad := []span{{addr: rim - before, n: uint32(n)}}
							if s, _ := d.do(typ, sector, bad, typ == typeOut); s != statusIOErr {
								t.Errorf("%d bytes at sector %d, %d of them in memory that is there: status %d, want IOERR", n, sector, before, s)
							}
							if s, _ := d.do(typ, sector, []span{there}, typ == typeOut); s != statusOK {
								t.Fatalf("the next one has status %d", s)
							}
						}
					}
				}
			})
		}
	}
}
