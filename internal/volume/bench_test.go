package volume_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/crypt"
	"vacate/internal/drive"
	"vacate/internal/mem"
	"vacate/internal/volume"
)

// BenchmarkLayers is what the layers cost above a device that does nothing, in
// batches as a busy client sends them, in nanoseconds a request.
func BenchmarkLayers(b *testing.B) {
	const size, depth = 64 << 20, 32
	written := func() blockmap.Bits {
		bits := blockmap.Bits{Words: make([]atomic.Uint64, size/4096/64), Summary: make([]atomic.Uint64, 1), Blocks: size / 4096}
		bits.Summary[0].Store(1)
		for i := range bits.Words {
			bits.Words[i].Store(^uint64(0))
		}
		return bits
	}
	span, err := drive.NewSpan([]drive.SpanPiece{{Drive: null{size}, Len: size}})
	if err != nil {
		b.Fatal(err)
	}
	lease := newLease(b, null{size}, 1)
	for _, layer := range []struct {
		name string
		dev  blk.Device
	}{
		{"null", null{size}},
		{"span", span},
		{"map", blockmap.New(null{size}, written())},
		{"volume", volume.New(null{size}, volume.Config{})},
		{"volume+map+span", volume.New(blockmap.New(span, written()), volume.Config{})},
		{"volume+map+crypt+span", volume.New(blockmap.New(crypt.New(span, lease.sched, mem.TryLock), written()), volume.Config{})},
	} {
		for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
			for _, batch := range []int{1, depth} {
				b.Run(fmt.Sprintf("%s/%v/%d", layer.name, op, batch), func(b *testing.B) {
					q, err := layer.dev.NewQueue(depth)
					if err != nil {
						b.Fatal(err)
					}
					defer q.Close()
					rs, all := make([]blk.Request, batch), make([]*blk.Request, batch)
					for i := range rs {
						rs[i] = blk.Request{Op: op, Len: 4096, Buf: make([]byte, 4096), Done: new(counter)}
						all[i] = &rs[i]
					}
					off := int64(0)
					for b.Loop() {
						for i := range rs {
							off = (off + 1<<18 + 1<<12) & (size - 1)
							rs[i].Off = off
						}
						q.Submit(all)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/request")
					for i := range rs {
						if rs[i].Errno != 0 {
							b.Fatal(rs[i].Err())
						}
					}
				})
			}
		}
	}
}
