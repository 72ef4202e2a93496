package drive

import (
	"bytes"
	"errors"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sys"
)

// mapped opens a drive in memory, which the engine "mmap" must be chosen for, and
// a queue of it.
func mapped(t testing.TB, path string) (*Drive, *mapQueue) {
	t.Helper()
	d := open(t, enrolled(t, path))
	q, err := d.NewQueue(4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	m, ok := q.(*mapQueue)
	if !ok {
		t.Fatalf("the engine of %s is %s (%s), and its queue is a %T", path, d.info.Engine, d.info.EngineWhy, q)
	}
	return d, m
}

// touch reads a byte of every page of a window, as a cipher would, or writes it
// back; and reports whether that faulted.
func touch(p []byte, store bool) (faulted bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if e, ok := r.(interface{ Addr() uintptr }); !ok || e.Addr() == 0 {
				panic(r)
			}
			faulted = true
		}
	}()
	sum := byte(0)
	for i := 0; i < len(p); i += sys.PageSize {
		sum ^= p[i]
		if store {
			p[i] = sum
		}
	}
	return false
}

// TestMmapCut: the file is cut while a window is out. Touching it is a fault, and
// from then on what was cut off has no window and no requests; nor has it when it
// was brought back, as zeros.
func TestMmapCut(t *testing.T) {
	path := onTmpfs(t, 32<<20)
	d, q := mapped(t, path)
	const n = 4 * blk.BlockSize
	kept, lost := q.Window(blk.OpWrite, 1<<20, n), q.Window(blk.OpRead, 20<<20, n)
	if kept == nil || lost == nil || touch(kept, true) || touch(lost, false) {
		t.Fatal("the windows cannot be touched")
	}
	if err := os.Truncate(path, 8<<20); err != nil {
		t.Fatal(err)
	}
	if !touch(lost, false) || !touch(lost, true) {
		t.Fatal("what was cut off can be touched: this test can find nothing")
	}
	q.Faulted(blk.OpRead, 20<<20, n)
	s := d.Stats()
	if s.Errors != 1 || s.Reads != 0 || s.ReadBytes != 0 || s.Writes != 1 || s.WriteBytes != n || !strings.Contains(s.LastError, "read of 16384 bytes at 20971520: input/output error") {
		t.Errorf("after a fault: %+v", s)
	}
	check := func(when string) {
		t.Helper()
		for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
			if q.Window(op, 20<<20, n) != nil || q.Window(op, 7<<20-blk.BlockSize, n) != nil {
				t.Errorf("%s there is a window for a %v of what was cut off", when, op)
			}
			if err := blk.Do(q, &blk.Request{Op: op, Off: 20 << 20, Len: n, Buf: blktest.Buffer(n)}); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s a %v of what was cut off: %v", when, op, err)
			}
			if p := q.Window(op, 1<<20, n); p == nil || touch(p, op == blk.OpWrite) {
				t.Errorf("%s what is left has no window for a %v", when, op)
			}
		}
	}
	check("after the fault")
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	check("after it was brought back")
}

// TestMmapCutUnseen: what is cut off and brought back without a touch between is
// found within [checkEvery] windows, as long as it is cut.
func TestMmapCutUnseen(t *testing.T) {
	path := onTmpfs(t, 32<<20)
	_, q := mapped(t, path)
	window := func(off int64) bool { return q.Window(blk.OpRead, off, blk.BlockSize) != nil }
	if !window(20 << 20) {
		t.Fatal("no window")
	}
	if err := os.Truncate(path, 8<<20); err != nil {
		t.Fatal(err)
	}
	for range checkEvery {
		if !window(0) {
			t.Fatal("no window of what is left")
		}
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	if window(20 << 20) {
		t.Error("what was cut off has a window")
	}
}

// TestMmapFull: a store that finds no space is a fault, and the drive works on.
func TestMmapFull(t *testing.T) {
	dir := t.TempDir()
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("needs root to mount a small tmpfs")
	}
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := dir + "/drive.img"
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	d, q := mapped(t, path)
	full := int64(-1)
	for off := int64(0); off < 8<<20 && full < 0; off += 64 << 10 {
		if touch(q.Window(blk.OpWrite, off, 64<<10), true) {
			full = off
			q.Faulted(blk.OpWrite, off, 64<<10)
		}
	}
	if full < 0 {
		t.Fatal("a full file system took everything")
	}
	if s := d.Stats(); s.Errors != 1 || s.Writes != uint64(full/(64<<10)) {
		t.Errorf("full at %d: %+v", full, s)
	}
	if touch(q.Window(blk.OpRead, 0, 64<<10), true) {
		t.Error("what has its space faults")
	}
}

// TestMmapQueues: windows of several queues and requests at once are one medium.
func TestMmapQueues(t *testing.T) {
	d, _ := mapped(t, onTmpfs(t, 32<<20))
	var wg sync.WaitGroup
	for id := range 4 {
		wg.Go(func() {
			q, err := d.NewQueue(4)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = q.Close() }()
			want := bytes.Repeat([]byte{byte(id + 1)}, blk.BlockSize)
			got := blktest.Buffer(blk.BlockSize)
			for i := range int64(500) {
				off := (i*4 + int64(id)) * blk.BlockSize
				copy(q.(*mapQueue).Window(blk.OpWrite, off, blk.BlockSize), want)
				if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: off, Len: blk.BlockSize, Buf: got}); err != nil || !bytes.Equal(got, want) {
					t.Errorf("queue %d at %d: %v, % x", id, off, err, got[:4])
					return
				}
			}
		})
	}
	wg.Wait()
	if s := d.Stats(); s.Reads != 2000 || s.Writes != 2000 || s.Errors != 0 {
		t.Errorf("Stats = %+v", s)
	}
}

// TestMmapClose: the fence is given up with the mapping, which would hold it.
func TestMmapClose(t *testing.T) {
	path := enrolled(t, onTmpfs(t, 32<<20))
	for range 3 {
		d, err := Open(t.Context(), path, usual)
		if err != nil {
			t.Fatal(err)
		}
		if d.area == nil {
			t.Fatalf("not mapped: %s", d.info.EngineWhy)
		}
		if maps, err := os.ReadFile("/proc/self/maps"); err != nil || !strings.Contains(string(maps), path) {
			t.Fatalf("the mapping is not to be seen: %v", err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if maps, err := os.ReadFile("/proc/self/maps"); err != nil || strings.Contains(string(maps), path) {
		t.Errorf("a mapping is left: %v", err)
	}
}

// TestMmapFails: a drive that cannot be mapped is opened all the same.
func TestMmapFails(t *testing.T) {
	path := enrolled(t, onTmpfs(t, 32<<20))
	d := open(t, path)
	if err := sys.Unmap(d.area); err != nil {
		t.Fatal(err)
	}
	d.area = nil
	d.t.dax = true // tmpfs refuses MAP_SYNC
	d.mapArea()
	if i := d.Info(); d.area != nil || i.Engine != EnginePread || !strings.Contains(i.EngineWhy, "not mapped: mmap: operation not supported") {
		t.Errorf("%s, %q", i.Engine, i.EngineWhy)
	}
	if err := do(t, d, &blk.Request{Op: blk.OpRead, Len: 4096, Buf: blktest.Buffer(4096)}); err != nil {
		t.Error(err)
	}
}

// TestSpanWindows: windows lie where the pieces do, and not across two of them.
func TestSpanWindows(t *testing.T) {
	a, _ := mapped(t, onTmpfs(t, 16*mib))
	disk := open(t, enrolled(t, sparse(t, "b.img", 16*mib)))
	s := spanOf(t, []SpanPiece{{a, 2 * mib, mib}, {disk, 0, mib}, {a, 0, mib}, {a, mib, mib}})
	q, err := s.NewQueue(2)
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, q)
	w := q.(blk.Windower)
	for _, tt := range []struct{ off, n, at int64 }{
		{0, blk.BlockSize, 2 * mib}, {mib - blk.BlockSize, blk.BlockSize, 3*mib - blk.BlockSize},
		{mib - blk.BlockSize, 2 * blk.BlockSize, -1}, // on two drives
		{mib, blk.BlockSize, -1},                     // on disk
		{2*mib - blk.BlockSize, 2 * blk.BlockSize, -1},
		{2 * mib, blk.BlockSize, 0}, {3*mib - blk.BlockSize, 2 * blk.BlockSize, mib - blk.BlockSize},
		{4*mib - blk.BlockSize, blk.BlockSize, 2*mib - blk.BlockSize},
		{4 * mib, blk.BlockSize, -1}, {-blk.BlockSize, blk.BlockSize, -1},
	} {
		p := w.Window(blk.OpWrite, tt.off, tt.n)
		if (p == nil) != (tt.at < 0) || p != nil && &p[0] != &a.area[tt.at] {
			t.Errorf("the window of %d bytes at %d is not at %d of the drive (it is nil: %v)", tt.n, tt.off, tt.at, p == nil)
		}
	}
	before := a.Stats()
	w.Faulted(blk.OpWrite, 0, blk.BlockSize)
	if after := a.Stats(); after.Errors != before.Errors+1 || after.Writes != before.Writes-1 {
		t.Errorf("after a fault %+v, before %+v", after, before)
	}
}
