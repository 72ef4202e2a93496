package notary

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"vacate/proof"
)

// TestBeaconIsKept: a certificate has the cosignatures that the record names, though
// the witness has cosigned the same tree again since, and the process was started
// anew.
func TestBeaconIsKept(t *testing.T) {
	w := newWorld(t, true)
	w.enrol()
	w.mustPass()
	first := w.n.Beacon()
	since := w.now
	w.now = w.now.Add(10 * time.Minute)
	w.mustPass() // cosigned again
	w.start()
	w.mustPass()
	if again := w.n.Beacon(); first == nil || again == nil || *first != *again {
		t.Fatalf("beacon %+v, then %+v", first, again)
	}
	w.open(0, time.Time{})
	w.mustPass()
	w.now = w.now.Add(time.Minute)
	w.close(0)
	w.mustPass()
	b, err := w.n.Certificate(t.Context(), leaseID(0), true)
	if err != nil {
		t.Fatal(err)
	}
	res, err := proof.Verify(b, w.n.Policy(), proof.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Times[0].NotBefore; got != proof.FormatTime(since) {
		t.Errorf("the OPEN was made not before %q, want %s", got, proof.FormatTime(since))
	}
}

// TestBeaconGone: where somebody removed a beacon, the certificate comes without, and
// proves no earliest time.
func TestBeaconGone(t *testing.T) {
	w := newWorld(t, true)
	w.enrol()
	w.mustPass()
	w.open(0, time.Time{})
	w.mustPass()
	w.close(0)
	for _, pattern := range []string{"lease-*", "beacon-*"} {
		names, err := filepath.Glob(filepath.Join(w.dir, "certificates", "work", pattern))
		if err != nil || len(names) == 0 {
			t.Fatalf("%s: %v, %v", pattern, names, err)
		}
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.mustPass()
	b, err := w.n.Certificate(t.Context(), leaseID(0), true)
	if err != nil {
		t.Fatal(err)
	}
	res, err := proof.Verify(b, w.n.Policy(), proof.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if m := res.Times[0]; m.NotBefore != "" || m.NotAfter == "" {
		t.Errorf("times of the OPEN: %+v", m)
	}
}
