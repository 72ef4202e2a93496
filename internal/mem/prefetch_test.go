package mem

import (
	"syscall"
	"testing"
)

// TestPrefetchNeverFaults: of nothing, of what begins and ends anywhere, and of
// memory that may not be touched.
func TestPrefetchNeverFaults(t *testing.T) {
	Prefetch(nil)
	p, err := syscall.Mmap(-1, 0, 1<<16, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mprotect(p, syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for from := range 70 {
		for to := from; to < 200; to++ {
			Prefetch(p[from:to])
		}
	}
	Prefetch(p)
	if err := syscall.Munmap(p); err != nil {
		t.Fatal(err)
	}
	Prefetch(p) // not even mapped
}
