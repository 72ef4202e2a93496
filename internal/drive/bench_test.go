package drive

import (
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/blockmap"
	"vacate/internal/crypt"
	"vacate/internal/export/nbd"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
	"vacate/internal/volume"
	"vacate/internal/xts"
)

// BenchmarkEngines compares the engines below all that a request passes: a
// client's connection, volume, block map, cipher. What it prints depends on the
// disk of the temporary folder.
func BenchmarkEngines(b *testing.B) {
	const size = 1 << 30
	d := open(b, enrolled(b, sparse(b, "drive.img", size)))
	if d.info.Engine != EngineRing {
		b.Fatalf("no ring: %s; set TMPDIR to a folder on a disk", d.info.EngineWhy)
	}
	q, err := d.NewQueue(1)
	if err != nil {
		b.Fatal(err)
	}
	whole := blktest.Buffer(blk.MaxTransfer) // so that the file has its space
	for off := int64(0); off < d.size; off += blk.MaxTransfer {
		if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: off, Len: blk.MaxTransfer, Buf: whole}); err != nil {
			b.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		b.Fatal(err)
	}
	for _, pattern := range []nbdclient.Pattern{nbdclient.RandomRead, nbdclient.RandomWrite} {
		for _, depth := range []int{1, 32} {
			for _, engine := range []string{EnginePread, EngineRing} {
				b.Run(fmt.Sprintf("%v/depth%d/%s", pattern, depth, engine), func(b *testing.B) {
					d.info.Engine = engine
					load := nbdclient.Load{Pattern: pattern, Depth: depth, Requests: int64(b.N), Duration: time.Minute}
					c := served(b, d)
					b.ResetTimer()
					r, err := load.Run(c)
					b.StopTimer()
					if err != nil || r.Errors > 0 {
						b.Fatalf("load: %v, %d errors, first %v", err, r.Errors, r.FirstError)
					}
					b.ReportMetric(r.PerSecond(), "IOPS")
					b.ReportMetric(float64(r.P99.Microseconds()), "p99-µs")
				})
			}
		}
	}
}

// served puts every layer on d, as the engine does, and returns a client.
func served(b *testing.B, d *Drive) *nbdclient.Client {
	b.Helper()
	space, err := NewSpan([]SpanPiece{{Drive: d, Len: d.size}})
	if err != nil {
		b.Fatal(err)
	}
	var key [xts.KeySize]byte
	if _, err := rand.Read(key[:]); err != nil {
		b.Fatal(err)
	}
	sched := new(xts.Schedule)
	if err := sched.Expand(&key); err != nil {
		b.Fatal(err)
	}
	blocks := uint64(d.size / blk.BlockSize)
	bits := blockmap.Bits{Words: make([]atomic.Uint64, blocks/64), Summary: make([]atomic.Uint64, blocks/64/512/64+1), Blocks: blocks}
	for i := range bits.Words {
		bits.Words[i].Store(^uint64(0))
	}
	for i := range bits.Summary {
		bits.Summary[i].Store(^uint64(0))
	}
	vol := volume.New(blockmap.New(crypt.New(space, sched, mem.TryLock), bits), volume.Config{Lock: mem.TryLock})
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		b.Fatal(err)
	}
	s, err := nbd.Serve(f, nbd.Config{Export: vol, Lock: mem.TryLock})
	if err != nil {
		b.Fatal(err)
	}
	c, err := nbdclient.Dial("nbd+unix:///?socket="+path, nbdclient.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		c.Abort()
		s.Close()
		s.Wait()
		_ = l.Close()
	})
	return c
}
