package blktest

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"testing"

	"vacate/internal/blk"
)

// Foreign is memory that can be taken away, as a guest's can: a file that is
// mapped, and may be cut. The calling goroutine has faults come out as panics from
// then on, until the test ends.
type Foreign struct {
	Bytes []byte
	file  *os.File
}

// NewForeign maps so many pages.
func NewForeign(t testing.TB, pages int) *Foreign {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "foreign"))
	if err != nil {
		t.Fatal(err)
	}
	f := &Foreign{file: file}
	f.Cut(t, pages)
	if f.Bytes, err = syscall.Mmap(int(file.Fd()), 0, pages*blk.BlockSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	before := debug.SetPanicOnFault(true)
	t.Cleanup(func() {
		debug.SetPanicOnFault(before)
		if err := syscall.Munmap(f.Bytes); err != nil {
			t.Error(err)
		}
		if err := file.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// Cut leaves so many pages of the file. Those that come back are zeros.
func (f *Foreign) Cut(t testing.TB, pages int) {
	t.Helper()
	if err := f.file.Truncate(int64(pages) * blk.BlockSize); err != nil {
		t.Fatal(err)
	}
}

// testForeign: wherever a foreign buffer is cut, reads and writes end with EFAULT,
// and the device goes on (B5, B7): what the request did not cover is as it was.
func testForeign(t *testing.T, dev blk.Device) {
	const pages, before, after = 6, 4, 4 // of the request, and of blocks beside it
	k := newTracker(t, dev, 4)
	f := NewForeign(t, pages)
	g := dev.Geometry()
	want, got := Buffer((before+pages+after)*blk.BlockSize), Buffer((before+pages+after)*blk.BlockSize)
	for i := range want {
		want[i] = byte(i*7 + i>>8)
	}
	at := g.Size/2&^(blk.BlockSize-1) - before*blk.BlockSize
	whole := func(kind blk.Op, want syscall.Errno) {
		t.Helper()
		o := k.op(kind, at+before*blk.BlockSize, f.Bytes)
		o.Flags = blk.Foreign
		k.submit(o)
		k.drain()
		if o.Errno != want {
			t.Errorf("%v of foreign memory: %v, want %v", kind, o.Errno, want)
		}
	}
	middle := want[before*blk.BlockSize:][:pages*blk.BlockSize]
	for left := range pages {
		k.must(blk.OpWrite, at, want)
		whole(blk.OpRead, 0)
		if !bytes.Equal(f.Bytes, middle) {
			t.Fatal("a read into foreign memory has wrong bytes")
		}
		f.Cut(t, left)
		whole(blk.OpRead, syscall.EFAULT)
		k.must(blk.OpRead, at, got)
		if i := mismatch(got, want); i < len(got) {
			t.Fatalf("a read that failed changed byte %d", i)
		}
		whole(blk.OpWrite, syscall.EFAULT)
		k.must(blk.OpRead, at, got)
		if i := mismatch(got[:before*blk.BlockSize], want[:before*blk.BlockSize]); i < before*blk.BlockSize {
			t.Fatalf("a write that failed changed byte %d before it", i)
		}
		end := (before + pages) * blk.BlockSize
		if i := mismatch(got[end:], want[end:]); i < after*blk.BlockSize {
			t.Fatalf("a write that failed changed byte %d after it", i)
		}
		f.Cut(t, pages)
		copy(f.Bytes, middle)
		whole(blk.OpWrite, 0)
		k.must(blk.OpRead, at, got)
		if i := mismatch(got, want); i < len(got) {
			t.Fatalf("after a write of foreign memory, byte %d is wrong", i)
		}
	}
}
