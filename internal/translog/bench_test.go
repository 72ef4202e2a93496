package translog

import (
	"encoding/hex"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"vacate/proof"
)

// BenchmarkAdd measures how many records a second a log takes, sustained: 16
// nodes send as many OPEN records at a time as a spool holds after a second,
// each call durable before the next. `make bench-log` runs it on the disk that
// VACATE_BENCH_DIR names.
func BenchmarkAdd(b *testing.B) {
	b.Run("embedded", func(b *testing.B) {
		l := openLog(b, testConfig(b, benchDir(b)))
		benchAdd(b, func(int) Adder { return l })
		opened(b, l, uint64(b.N))
	})
	b.Run("served", func(b *testing.B) {
		var lines string
		for n := range byte(benchNodes) {
			lines += nodeLine(b, n+1, "- -")
		}
		f := serve(b, benchDir(b), lines)
		benchAdd(b, func(n int) Adder { return f.client(b, nodeID(byte(n+1))) })
		opened(b, f.client(b, ""), uint64(b.N))
	})
}

const (
	benchNodes = 16
	benchBatch = 100
)

func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("VACATE_BENCH_DIR"), "bench-log-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func benchAdd(b *testing.B, to func(node int) Adder) {
	var leaves [benchNodes][]Leaf
	var signing sync.WaitGroup
	for n := range leaves {
		signing.Go(func() {
			for i := n; i < b.N; i += benchNodes {
				leaves[n] = append(leaves[n], openLeaf(b, byte(n+1), uint64(i/benchNodes)+1))
			}
		})
	}
	signing.Wait()
	var adders [benchNodes]Adder
	for n := range adders {
		adders[n] = to(n)
	}
	b.ResetTimer()
	begin := time.Now()
	var mu sync.Mutex
	var took []time.Duration
	var all sync.WaitGroup
	for n := range leaves {
		all.Go(func() {
			for part := range slices.Chunk(leaves[n], benchBatch) {
				at := time.Now()
				if _, err := adders[n].Add(b.Context(), part); err != nil {
					b.Error(err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(at))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(len(leaves[0][0].Envelope)), "B/record")
	b.ReportMetric(float64(b.N)/time.Since(begin).Seconds(), "records/s")
	b.ReportMetric(float64(took[len(took)*99/100].Milliseconds()), "p99-ms/call")
}

// openLeaf makes an OPEN record as large as they are.
func openLeaf(t testing.TB, n byte, seq uint64) Leaf {
	t.Helper()
	hash := proof.PayloadHash([]byte{n, byte(seq), byte(seq >> 8)})
	r := proof.Record{Type: proof.OPEN, NodeID: nodeID(n), NodeSeq: seq, PrevHash: hash, LeaseID: "abcdefghijklmnop",
		Bytes: 64 << 30, Space: []proof.Space{{Drive: nodeID(n), Commit: hash, Extents: []proof.Range{{First: 0, Count: 512}, {First: 700, Count: 512}}}},
		Cipher: proof.CipherXTS, KeyBits: proof.XTSBits, KeyMode: proof.ModeNode, KeyCommit: hash, TenantCommit: hash,
		Events: []proof.Event{{Type: proof.EventKeyGenerated, MonotonicNs: 1 << 40, BootID: hex.EncodeToString([]byte(nodeID(n)))[:32]}}}
	if seq == 1 {
		r.PrevHash = proof.ZeroHash
	}
	payload, err := proof.EncodePayload(r)
	if err != nil {
		t.Fatal(err)
	}
	env, err := proof.Sign(payload, testKey(n))
	if err != nil {
		t.Fatal(err)
	}
	return Leaf{r.NodeID, seq, env}
}
