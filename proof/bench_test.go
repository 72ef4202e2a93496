package proof

import (
	"math"
	"runtime"
	"testing"
	"time"
)

// Bars of offline verification.
const (
	maxVerifyBytes = 2 << 20 // allocated in all
	maxVerifyTime  = 5 * time.Millisecond
)

// TestVerifyCost: a certificate can be checked where there is little memory, and
// a folder of them while somebody waits. The best of many runs is judged, so that
// a busy machine does not fail it.
func TestVerifyCost(t *testing.T) {
	w, b := goodBundle(t)
	bundle, policy := marshalled(t, b), w.policy()
	least, best := uint64(math.MaxUint64), time.Duration(math.MaxInt64)
	for range 20 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := time.Now()
		if _, err := Verify(bundle, policy, Options{Opened: testReceipt(w)}); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	if least > maxVerifyBytes {
		t.Errorf("one verification allocates %d bytes, at most %d are allowed", least, maxVerifyBytes)
	}
	if best > maxVerifyTime && runtime.GOARCH != "wasm" && !raceDetector {
		t.Errorf("one verification takes %v, at most %v is allowed", best, maxVerifyTime)
	}
	t.Logf("a bundle of %d bytes: %v and %d bytes allocated", len(bundle), best, least)
}

func BenchmarkVerify(b *testing.B) {
	w, bundle := goodBundle(b)
	raw, policy := marshalled(b, bundle), w.policy()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Verify(raw, policy, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
