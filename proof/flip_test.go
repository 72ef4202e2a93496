package proof_test

import (
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
)

// TestFlips turns every single bit of a certificate, and with VACATE_FLIPS set every
// bit of one that has everything; without it, and of each other kind, some. Nothing
// that is turned passes. With the race detector or -short it is a sample of all: it
// says of each how many bits it turned.
func TestFlips(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // it makes much, and keeps nothing
	everything := prooftest.Story{Mode: proof.ModeSplit, Measured: true, Resized: true, Rotated: true, Complete: true}
	all, some := 1, 127
	if testing.Short() || proof.RaceDetector {
		all, some = 97, 997
	}
	t.Run("ok", func(t *testing.T) { flipAll(t, prooftest.Tell(prooftest.Story{}), all) })
	if os.Getenv("VACATE_FLIPS") == "" {
		all = some
	}
	t.Run("everything", func(t *testing.T) { flipAll(t, prooftest.Tell(everything), all) })
	for name, story := range prooftest.Kinds() {
		if name != "ok" {
			t.Run(name, func(t *testing.T) { flipAll(t, prooftest.Tell(story), some) })
		}
	}
}

// flipAll turns every step-th bit of a certificate, one at a time.
func flipAll(t *testing.T, c *prooftest.Certificate, step int) {
	good := c.Bytes()
	if _, err := proof.Verify(good, c.Policy, proof.Options{Opened: c.Receipt}); err != nil {
		t.Fatal(err)
	}
	workers := runtime.GOMAXPROCS(0)
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			bad := bytes.Clone(good)
			for bit := worker * step; bit < 8*len(bad); bit += workers * step {
				bad[bit/8] ^= 1 << (bit % 8)
				if _, err := proof.Verify(bad, c.Policy, proof.Options{}); err == nil {
					t.Errorf("bit %d of byte %d was turned, and the certificate passes: …%q…", bit%8, bit/8, bad[max(0, bit/8-20):min(len(bad), bit/8+20)])
				}
				bad[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
	wg.Wait()
	t.Logf("%d bytes, of whose %d bits %d were turned", len(good), 8*len(good), (8*len(good)+step-1)/step)
}
