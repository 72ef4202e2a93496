package drive

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// BenchmarkQueue is what a request costs in a drive's queue and below, nothing
// above it: each completion is answered with the next random request. On disk it
// is the disk's time at depth 1; -cpuprofile shows what is ours.
func BenchmarkQueue(b *testing.B) {
	const size = 1 << 30
	for _, where := range []string{"memory", "disk"} {
		var path string
		if where == "disk" {
			path = enrolled(b, sparse(b, "drive.img", size))
		} else {
			path = enrolled(b, onTmpfs(b, size))
		}
		for _, engine := range []string{EnginePread, EngineRing, EngineMmap} {
			o := usual
			o.Engine = engine
			d, err := Open(b.Context(), path, o)
			if err != nil {
				b.Fatal(err)
			}
			if d.info.Engine == engine {
				for _, depth := range []int{1, 32} {
					for _, n := range []int64{4 << 10, 128 << 10} {
						for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
							b.Run(fmt.Sprintf("%s/%s/depth%d/%dK/%v", where, engine, depth, n>>10, op), func(b *testing.B) {
								benchmarkQueue(b, d, depth, op, n)
							})
						}
					}
				}
			}
			if err := d.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// A closedLoop answers each completion with the next request.
type closedLoop struct {
	b      *testing.B
	rng    *rand.Rand
	blocks int64
	left   int // requests to begin
	done   int
	batch  []*blk.Request
}

func (c *closedLoop) next(r *blk.Request) {
	if c.left > 0 {
		c.left--
		r.Off = c.rng.Int64N(c.blocks) * r.Len
		c.batch = append(c.batch, r)
	}
}

func (c *closedLoop) Complete(r *blk.Request) {
	if c.done++; r.Errno != 0 {
		c.b.Error(r.Err())
	}
	c.next(r)
}

func benchmarkQueue(b *testing.B, d *Drive, depth int, op blk.Op, n int64) {
	q, err := d.NewQueue(depth)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = q.Close() }()
	memory, err := sys.MapAnonymous(depth * int(n))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = sys.Unmap(memory) }()
	if r, ok := q.(blk.Registrar); ok {
		r.Register(memory)
	}
	c := &closedLoop{b: b, rng: rand.New(rand.NewPCG(1, 2)), blocks: d.size / n, left: b.N}
	b.SetBytes(n)
	b.ReportAllocs()
	if w, ok := q.(blk.Windower); ok {
		buf := memory[:n]
		for off := int64(0); off < d.size; off += blk.BlockSize {
			buf[0] ^= d.area[off] // the faults of the first touch are not what is measured
		}
		b.ResetTimer()
		for range b.N {
			p := w.Window(op, c.rng.Int64N(c.blocks)*n, n)
			if op == blk.OpRead {
				copy(buf, p)
			} else {
				copy(p, buf)
			}
		}
		return
	}
	requests := make([]blk.Request, depth)
	for i := range requests {
		requests[i] = blk.Request{Op: op, Len: n, Buf: memory[int64(i)*n : int64(i+1)*n], Done: c}
		c.next(&requests[i])
	}
	spare := make([]*blk.Request, 0, depth)
	b.ResetTimer()
	for c.done < b.N {
		batch := c.batch
		c.batch = spare[:0]
		q.Submit(batch)
		if spare = batch; len(c.batch) == 0 && c.done < b.N {
			q.Reap(true)
		}
	}
}

// A nothing completes every request at once.
type nothing struct{ size int64 }

func (n nothing) Geometry() blk.Geometry {
	return blk.Geometry{Size: n.size, Logical: 4096, Physical: 4096}
}
func (n nothing) NewQueue(int) (blk.Queue, error) { return n, nil }
func (n nothing) Reap(bool) int                   { return 0 }
func (n nothing) Close() error                    { return nil }
func (n nothing) Submit(batch []*blk.Request) {
	for _, r := range batch {
		r.Finish(r.Len, 0)
	}
}

// BenchmarkSpan is what a span adds to each request.
func BenchmarkSpan(b *testing.B) {
	for name, pieces := range map[string][]SpanPiece{
		"one piece": {{nothing{1 << 30}, 0, 1 << 30}},
		"64 pieces": scattered(64),
	} {
		b.Run(name, func(b *testing.B) {
			s, err := NewSpan(pieces)
			if err != nil {
				b.Fatal(err)
			}
			q, err := s.NewQueue(32)
			if err != nil {
				b.Fatal(err)
			}
			c := &closedLoop{b: b, rng: rand.New(rand.NewPCG(1, 2)), blocks: s.Geometry().Size / 4096}
			requests, batch := make([]blk.Request, 32), make([]*blk.Request, 32)
			for i := range requests {
				batch[i] = &requests[i]
				requests[i] = blk.Request{Op: blk.OpRead, Off: c.rng.Int64N(c.blocks) * 4096, Len: 4096, Buf: make([]byte, 4096), Done: c}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for c.done < b.N {
				q.Submit(batch)
			}
		})
	}
}

// scattered are pieces that do not continue one another.
func scattered(n int) (ps []SpanPiece) {
	d := nothing{1 << 40}
	for i := range int64(n) {
		ps = append(ps, SpanPiece{d, i * 2 << 26, 1 << 26})
	}
	return ps
}
