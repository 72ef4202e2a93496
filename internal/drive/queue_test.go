package drive

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sys"
)

// onTmpfs makes an empty file in memory.
func onTmpfs(t testing.TB, size int64) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vacate-drive-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "drive.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func fileSystemOf(t *testing.T, path string) string {
	t.Helper()
	fd, err := sys.OpenStorage(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sys.CloseFD(fd) }()
	name, err := sys.FileSystem(fd)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestConformanceTmpfs(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		d := open(t, enrolled(t, onTmpfs(t, 32<<20)))
		if i := d.Info(); i.Direct || i.Flush != FlushNone || i.Kind != "file" {
			t.Errorf("a file on tmpfs: %+v", i)
		}
		return d
	})
}

// TestConformanceFile runs on the file system of the temporary folder, with
// direct I/O where that has it.
func TestConformanceFile(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		path := enrolled(t, sparse(t, "drive.img", 32<<20))
		d := open(t, path)
		fs := fileSystemOf(t, path)
		if direct := d.Info().Direct; !direct && slices.Contains([]string{"ext4", "xfs"}, fs) {
			t.Errorf("no direct I/O on %s", fs)
		}
		if d.Info().Flush != FlushForward && fs != "tmpfs" {
			t.Errorf("flush class %s on %s", d.Info().Flush, fs)
		}
		return d
	})
}

// TestConformanceBuffered: where direct I/O is missing.
func TestConformanceBuffered(t *testing.T) {
	blktest.Run(t, func(t *testing.T) blk.Device {
		d := open(t, enrolled(t, sparse(t, "drive.img", 32<<20)))
		if err := sys.Buffered(d.t.fd); err != nil {
			t.Fatal(err)
		}
		return d
	})
}

// do carries out one request.
func do(t *testing.T, d blk.Device, r *blk.Request) error {
	t.Helper()
	q, err := d.NewQueue(1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	}()
	return blk.Do(q, r)
}

// TestExtentZero: the data area starts at 1 MiB and ends 1 MiB before the end.
func TestExtentZero(t *testing.T) {
	path := enrolled(t, sparse(t, "drive.img", 32<<20))
	d := open(t, path)
	buf := blktest.Buffer(blk.BlockSize)
	copy(buf, "first")
	if err := do(t, d, &blk.Request{Op: blk.OpWrite, Len: blk.BlockSize, Buf: buf}); err != nil {
		t.Fatal(err)
	}
	copy(buf, "last!")
	if err := do(t, d, &blk.Request{Op: blk.OpWrite, Off: d.Geometry().Size - blk.BlockSize, Len: blk.BlockSize, Buf: buf}); err != nil {
		t.Fatal(err)
	}
	img, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if at := bytes.Index(img, []byte("first")); at != 1<<20 {
		t.Errorf("the first block is at %d", at)
	}
	if at := bytes.Index(img, []byte("last!")); at != 31<<20-blk.BlockSize {
		t.Errorf("the last block is at %d", at)
	}
	checkWiped(t, path)
}

func TestStats(t *testing.T) {
	d := open(t, enrolled(t, onTmpfs(t, 32<<20)))
	buf := blktest.Buffer(2 * blk.BlockSize)
	for _, r := range []*blk.Request{
		{Op: blk.OpWrite, Len: 8192, Buf: buf},
		{Op: blk.OpRead, Len: 8192, Buf: buf},
		{Op: blk.OpRead, Len: 4096, Buf: buf[:4096]},
		{Op: blk.OpFlush},
		{Op: blk.OpDiscard, Len: 4096},
		{Op: blk.OpRead, Off: -4096, Len: 4096, Buf: buf[:4096]},
	} {
		err := do(t, d, r)
		if want := r.Op != blk.OpDiscard && r.Off >= 0; (err == nil) != want {
			t.Errorf("%v: %v", r.Op, err)
		}
	}
	got := d.Stats()
	want := Stats{Reads: 2, Writes: 1, ReadBytes: 12288, WriteBytes: 8192, Flushes: 1, Errors: 2, LastError: got.LastError}
	if got != want || !strings.Contains(got.LastError, "invalid argument") {
		t.Errorf("Stats = %+v, want %+v", got, want)
	}
}

// TestTruncated: what was cut off fails, reads and writes alike, even after it
// was brought back; the rest works on.
func TestTruncated(t *testing.T) {
	for name, make := range map[string]func() string{
		"tmpfs": func() string { return onTmpfs(t, 32<<20) },
		"file":  func() string { return sparse(t, "drive.img", 32<<20) },
	} {
		path := enrolled(t, make())
		d := open(t, path)
		buf := blktest.Buffer(4 * blk.BlockSize)
		at := func(op blk.Op, off int64) error {
			return do(t, d, &blk.Request{Op: op, Off: off, Len: int64(len(buf)), Buf: buf})
		}
		if err := os.Truncate(path, 11<<20+2*blk.BlockSize); err != nil {
			t.Fatal(err)
		}
		check := func() {
			t.Helper()
			for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
				for _, off := range []int64{10 << 20, 11 << 20, 29 << 20} { // the first lies half within
					if err := at(op, off); !errors.Is(err, syscall.EIO) {
						t.Errorf("%s: %v of what was cut off: %v, want EIO", name, op, err)
					}
				}
				if err := at(op, 10<<20-int64(len(buf))); err != nil {
					t.Errorf("%s: %v of what is left: %v", name, op, err)
				}
			}
		}
		check()
		if err := os.Truncate(path, 32<<20); err != nil {
			t.Fatal(err)
		}
		check()
		if s := d.Stats(); s.Errors != 12 || !strings.Contains(s.LastError, "input/output error") {
			t.Errorf("%s: Stats = %+v", name, s)
		}
	}
}

// TestShort: a read that the kernel cuts short is EIO with the count.
func TestShort(t *testing.T) {
	path := enrolled(t, onTmpfs(t, 32<<20))
	d := open(t, path)
	if err := os.Truncate(path, 2<<20+blk.BlockSize); err != nil {
		t.Fatal(err)
	}
	buf := blktest.Buffer(4 * blk.BlockSize)
	r := blk.Request{Op: blk.OpRead, Len: int64(len(buf)), Buf: buf}
	n, errno := transfer(d.t.fd, &r, 2<<20, false) // past checkSize, as in a race
	if n != blk.BlockSize || errno != syscall.EIO {
		t.Errorf("a read across the end: %d, %v, want %d and EIO", n, errno, blk.BlockSize)
	}
	n, errno = transfer(d.t.fd, &r, 4<<20, false)
	if n != 0 || errno != syscall.EIO {
		t.Errorf("a read past the end: %d, %v", n, errno)
	}
}

// TestVanished: with the descriptor gone every request fails with the errno, and
// nothing hangs.
func TestVanished(t *testing.T) {
	d := openAs(t, enrolled(t, onTmpfs(t, 32<<20)), EnginePread)
	q, err := d.NewQueue(1)
	if err != nil {
		t.Fatal(err)
	}
	good := q.(*queue).fd
	q.(*queue).fd = -1
	buf := blktest.Buffer(blk.BlockSize)
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		if err := blk.Do(q, &blk.Request{Op: op, Len: blk.BlockSize, Buf: buf}); !errors.Is(err, syscall.EBADF) {
			t.Errorf("%v: %v", op, err)
		}
	}
	q.(*queue).fd = good
	if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize, Buf: buf}); err != nil {
		t.Errorf("the queue is not usable any more: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

func TestForceForward(t *testing.T) {
	path := enrolled(t, onTmpfs(t, 32<<20))
	o := usual
	o.ForceForward = true
	d, err := Open(t.Context(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if i := d.Info(); i.Flush != FlushForward || !strings.Contains(i.FlushWhy, "danger_zone") {
		t.Errorf("Info = %+v", i)
	}
	buf := blktest.Buffer(blk.BlockSize)
	for _, r := range []*blk.Request{{Op: blk.OpWrite, Flags: blk.FUA, Len: blk.BlockSize, Buf: buf}, {Op: blk.OpFlush}} {
		if err := do(t, d, r); err != nil {
			t.Error(err)
		}
	}
	if _, err := d.NewQueue(0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a queue of depth 0: %v", err)
	}
}

// TestStatsRace reads the counters while queues work, open and close.
func TestStatsRace(t *testing.T) {
	d := open(t, enrolled(t, onTmpfs(t, 32<<20)))
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			buf := blktest.Buffer(blk.BlockSize)
			for range 100 {
				if err := do(t, d, &blk.Request{Op: blk.OpRead, Len: blk.BlockSize, Buf: buf}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for last := uint64(0); last < 200; {
		n := d.Stats().Reads
		if n < last {
			t.Fatalf("Reads went from %d to %d", last, n)
		}
		last = n
	}
	wg.Wait()
}
