package mem

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"
)

// cut returns n pages of memory of which all but the first few were taken away.
func cut(t *testing.T, pages, left int) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if err := f.Truncate(int64(pages) * 4096); err != nil {
		t.Fatal(err)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, pages*4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	if err := f.Truncate(int64(left) * 4096); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestForeign(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	const pages = 3
	for left := range pages + 1 {
		b := cut(t, pages, left)
		own := bytes.Repeat([]byte{7}, pages*4096)
		for _, skew := range []int{0, 1, 4095} {
			for _, n := range []int{0, 1, 100, 4096, 2 * 4096} {
				part := b[skew : skew+n]
				want := skew+n <= left*4096 || n == 0
				if CopyForeign(part, own, b) != want || CopyForeign(own, part, part) != want || ClearForeign(part) != want {
					t.Errorf("%d bytes at %d, with %d pages left: want %v", n, skew, left, want)
				}
				if want && !IsZero(part) {
					t.Errorf("%d bytes at %d are not cleared", n, skew)
				}
			}
		}
	}
	b := cut(t, pages, 1)
	own := make([]byte, 2*4096)
	if n := testing.AllocsPerRun(100, func() { CopyForeign(own, b[:100], b); ClearForeign(b[:4096]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func load(p *int) int { return *p }

// TestForeignOnly: a fault elsewhere, or another panic, goes on.
func TestForeignOnly(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	gone, other := cut(t, 2, 0), make([]byte, 4096)
	for name, f := range map[string]func(){
		"another buffer": func() { CopyForeign(other, gone, other) },
		"its neighbour":  func() { CopyForeign(other, gone[4096:], gone[:4096]) },
		"no buffer":      func() { CopyForeign(other, gone, nil) },
		"a bug":          func() { defer caught(gone); panic("bug") },
		"a nil pointer":  func() { defer caught(gone); _ = load(nil) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
