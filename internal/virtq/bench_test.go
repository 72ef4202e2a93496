package virtq

import (
	"fmt"
	"testing"
)

// BenchmarkRing is what a ring costs, an operation a request of header, data and
// status, in batches of 32: all of the device's side, and the driver's one store
// that makes the batch available again.
func BenchmarkRing(b *testing.B) {
	for _, indirect := range []bool{false, true} {
		for _, table := range []bool{false, true} {
			b.Run(fmt.Sprintf("indirect=%v/inflight=%v", indirect, table), func(b *testing.B) { benchRing(b, indirect, table) })
		}
	}
}

func benchRing(b *testing.B, indirect, table bool) {
	const batch = 32
	faults(b)
	d := newDriver(newGuest(b), 128, 0, true)
	c := d.config()
	if table {
		mem, _ := mapped(b, int(InflightSize(1, 128)))
		var err error
		if c.Inflight, err = NewInflight(mem, 128); err != nil {
			b.Fatal(err)
		}
	}
	r := newRing(b, c)
	parts := []desc{{addr: ramC, len: 16}, {addr: ramC + 0x1000, len: 4096, flags: descWrite}, {addr: ramC + 16, len: 1, flags: descWrite}}
	direct := len(parts)
	if indirect {
		direct = 0
	}
	for i := range uint64(batch) {
		if _, ok := d.add(parts, direct, d.indirectAt+d.spacing*i); !ok {
			b.Fatal("no room")
		}
	}
	for i := batch; i < int(d.size); i++ { // the same again, all around
		d.put16(d.avail+4+2*uint64(i), d.get16(d.avail+4+2*uint64(i%batch)))
	}
	var chains [batch]Chain
	for b.Loop() {
		for i := range chains {
			if ok, err := r.Pop(&chains[i]); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
		for i := range chains {
			r.Done(&chains[i], 4097)
		}
		if _, err := r.Publish(); err != nil {
			b.Fatal(err)
		}
		d.availIdx += batch
		d.put16(d.avail+2, d.availIdx)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/request")
}
