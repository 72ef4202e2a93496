package nbd

import (
	"fmt"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

// BenchmarkLoad measures the export alone: a volume in memory below it, the lean
// client above.
func BenchmarkLoad(b *testing.B) {
	tests := []struct {
		pattern   nbdclient.Pattern
		blockSize int
		depth     int
		holes     bool // nothing is written
	}{
		{nbdclient.RandomRead, 4096, 1, false},
		{nbdclient.RandomRead, 4096, 32, false},
		{nbdclient.RandomWrite, 4096, 32, false},
		{nbdclient.RandomRead, 128 << 10, 8, false},
		{nbdclient.RandomWrite, 128 << 10, 8, false},
		{nbdclient.RandomRead, 4096, 32, true},
	}
	m := newMemory(256 << 20)
	for i := range m.data {
		m.data[i] = byte(i) // so that every page is there
	}
	for _, tt := range tests {
		b.Run(fmt.Sprintf("%v/%dK/depth%d/holes=%v", tt.pattern, tt.blockSize>>10, tt.depth, tt.holes), func(b *testing.B) {
			m.with(func() {
				for i := range m.written {
					m.written[i] = !tt.holes
				}
			})
			cfg := m.config()
			cfg.Poll = MaxPoll
			s := alone(b, cfg)
			c := client(b, s, nbdclient.Options{})
			load := nbdclient.Load{Pattern: tt.pattern, BlockSize: tt.blockSize, Depth: tt.depth, Requests: int64(b.N), Duration: time.Minute}
			b.SetBytes(int64(tt.blockSize))
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
