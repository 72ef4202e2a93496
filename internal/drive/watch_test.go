package drive

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
)

// watchedMachine has an NVMe drive at 259:0 whose cache is volatile.
func watchedMachine(change map[string]string) map[string]string {
	m := maps.Clone(machine)
	maps.Copy(m, map[string]string{
		nvmeDir + "/nvme0n1/diskseq":           "7\n",
		nvmeDir + "/nvme0n1/queue/write_cache": "write back\n",
		nvmeDir + "/state":                     "live\n",
		nvmeDir + "/device@":                   "../..",
		pciDir + "/msi_irqs/9":                 "msix\n",
		pciDir + "/msi_irqs/10":                "msix\n",
	})
	maps.Copy(m, change)
	for name, text := range m {
		if text == "-" {
			delete(m, name)
		}
	}
	return m
}

// pciDir is the PCI device of the controller in nvmeDir.
var pciDir = filepath.Clean(nvmeDir + "/../..")

func TestWatchable(t *testing.T) {
	for _, tt := range []struct {
		name         string
		change       map[string]string
		major, minor uint32
		want         FlushClass
		why          string
	}{
		{"an NVMe drive", nil, 259, 0, FlushWatched, "watched for, and ends the leases"},
		{"without a cache", map[string]string{nvmeDir + "/nvme0n1/queue/write_cache": "write through\n"}, 259, 0, FlushNone, "no volatile cache"},
		{"in a reset", map[string]string{nvmeDir + "/state": "resetting\n"}, 259, 0, FlushForward, `nvme0 is "resetting"`},
		{"dead", map[string]string{nvmeDir + "/state": "-"}, 259, 0, FlushForward, `nvme0 is ""`},
		{"without interrupts", map[string]string{pciDir + "/msi_irqs/9": "-", pciDir + "/msi_irqs/10": "-"}, 259, 0, FlushForward, "nvme0 shows no interrupts"},
		{"several paths, all local", map[string]string{
			"sys/devices/nvme2/transport": "pcie\n", "sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1/queue/write_cache": "write back\n",
		}, 259, 1, FlushForward, "several paths"},
		{"removed while it was opened", map[string]string{nvmeDir + "/nvme0n1/dev": "-"}, 259, 0, FlushForward, "no such file"},
		{"SATA", nil, 8, 0, FlushForward, "does not tell when such a drive was reset"},
		{"a partition of SATA", nil, 8, 1, FlushForward, "does not tell when such a drive was reset"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := fakeHost(t, watchedMachine(tt.change))
			h.gone = func([]int) bool { return false }
			tg := &target{host: h, fd: -1, kind: "block device", direct: true, dir: h.blockDir(tt.major, tt.minor)}
			defer tg.close()
			class, why := tg.flush(false)
			if class != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("%s, %q; want %s and %q", class, why, tt.want, tt.why)
			}
			if (tg.watch != nil) != (class == FlushWatched) {
				t.Errorf("class %s, and the watch is %+v", class, tg.watch)
			}
		})
	}
	t.Run("gone while it was opened", func(t *testing.T) {
		h := fakeHost(t, watchedMachine(nil))
		h.gone = func([]int) bool { return true }
		if w, err := h.watch(h.blockDir(259, 0), "nvme-pcie"); err == nil {
			t.Errorf("it is watched: %+v", w)
		}
	})
}

// TestWatchedID: the same drive has the same name for the next engine; after a
// reset, and when it comes back, it has another.
func TestWatchedID(t *testing.T) {
	h := fakeHost(t, watchedMachine(nil))
	h.gone = func([]int) bool { return false }
	id := func() Watched {
		t.Helper()
		w, err := h.watch(h.blockDir(259, 0), "nvme-pcie")
		if err != nil {
			t.Fatal(err)
		}
		defer w.close()
		if w.id == (Watched{}) {
			t.Error("it has no name")
		}
		return w.id
	}
	renew := func(name, text string) {
		t.Helper()
		path := filepath.Join(h.root, name)
		tmp := path + ".new" // so that the new file has not the number of the old one
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, path); err != nil {
			t.Fatal(err)
		}
	}
	first := id()
	if again := id(); again != first {
		t.Errorf("%x and %x of the same drive", first, again)
	}
	renew(pciDir+"/msi_irqs/10", "msix\n") // not the one that is watched: 9 comes first
	if again := id(); again != first {
		t.Errorf("%x and %x although another file changed", first, again)
	}
	renew(pciDir+"/msi_irqs/9", "msix\n")
	reset := id()
	if reset == first {
		t.Error("a reset has left no trace")
	}
	renew(nvmeDir+"/nvme0n1/diskseq", "8\n")
	if back := id(); back == reset || back == first {
		t.Error("a drive that came back is the same")
	}
}

// watchedDrive is an open drive on a file, which takes itself for watched.
func watchedDrive(t *testing.T, engine string, gone func() bool) *Drive {
	t.Helper()
	d := onDisk(t, 32<<20)
	d.info.Engine = engine
	d.t.watch = &watch{what: "nvme0", gone: func([]int) bool { return gone() }, id: Watched{1}}
	d.info.Flush, d.flush = FlushWatched, false
	d.guard(Watched{})
	return d
}

// TestW1LostOnce: from the moment at which the drive is seen to be lost nothing
// succeeds, not even what the drive has carried out without an error.
func TestW1LostOnce(t *testing.T) {
	for _, engine := range []string{EnginePread, EngineRing} {
		t.Run(engine, func(t *testing.T) {
			gone := false
			d := watchedDrive(t, engine, func() bool { return gone })
			try := func(op blk.Op) error {
				r := &blk.Request{Op: op, Len: blk.BlockSize, Buf: aligned(blk.BlockSize)}
				if op == blk.OpFlush {
					r.Len, r.Buf = 0, nil
				}
				err := do(t, d, r)
				if err != nil && r.N != 0 {
					t.Errorf("%v failed, and %d bytes were done", op, r.N)
				}
				return err
			}
			if d.Watched() != (Watched{1}) || d.Loss() != "" {
				t.Fatalf("watched %x, loss %q", d.Watched(), d.Loss())
			}
			for _, op := range []blk.Op{blk.OpWrite, blk.OpRead, blk.OpFlush} {
				if err := try(op); err != nil {
					t.Errorf("%v of a drive that is well: %v", op, err)
				}
			}
			before := d.Stats()
			gone = true
			for _, op := range []blk.Op{blk.OpRead, blk.OpWrite, blk.OpFlush} { // the first is carried out, and then looked at
				if err := try(op); !errors.Is(err, syscall.EIO) {
					t.Errorf("%v of a drive that was reset: %v", op, err)
				}
			}
			gone = false
			if err := try(blk.OpRead); !errors.Is(err, syscall.EIO) { // W2
				t.Errorf("a drive came back by itself: %v", err)
			}
			if !strings.Contains(d.Loss(), "nvme0 was reset") {
				t.Errorf("it says %q", d.Loss())
			}
			before.Errors, before.LastError = before.Errors+4, d.Stats().LastError
			if after := d.Stats(); after != before {
				t.Errorf("counted %+v, want %+v", after, before)
			}
		})
	}
}

// TestW1Batch: what a ring has in flight when the drive is reset fails, all of it,
// and one look serves for what comes at once.
func TestW1Batch(t *testing.T) {
	looks, lost := 0, false
	d := watchedDrive(t, EngineRing, func() bool { looks++; return lost })
	const depth = 16
	q := ringOf(t, d, depth)
	defer mustClose(t, q)
	run := func() (failed int) {
		t.Helper()
		var done tally
		batch := make([]*blk.Request, depth)
		for i := range batch {
			batch[i] = &blk.Request{Op: blk.OpRead, Off: int64(i) * blk.BlockSize, Len: blk.BlockSize, Buf: aligned(blk.BlockSize), Done: &done}
		}
		q.Submit(batch)
		for len(done) < depth {
			if q.Reap(true) == 0 {
				t.Fatal("nothing was completed")
			}
		}
		for _, r := range done {
			if r.Errno == syscall.EIO {
				failed++
			}
		}
		return failed
	}
	if failed := run(); failed != 0 {
		t.Errorf("%d of %d failed", failed, depth)
	}
	if looks == 0 || looks > depth {
		t.Errorf("%d looks at the drive for %d requests", looks, depth)
	}
	lost = true
	if failed := run(); failed != depth {
		t.Errorf("%d of %d failed after a reset", failed, depth)
	}
}

// TestW1FromWithin: a flush that a completion submits is looked at by itself,
// although its batch was looked at before.
func TestW1FromWithin(t *testing.T) {
	lost := false
	d := watchedDrive(t, EngineRing, func() bool { return lost })
	q := ringOf(t, d, 8)
	defer mustClose(t, q)
	var flushed tally
	first := complete(func(*blk.Request) {
		lost = true
		q.Submit([]*blk.Request{{Op: blk.OpFlush, Done: &flushed}})
	})
	var others tally
	batch := []*blk.Request{
		{Op: blk.OpRead, Len: blk.BlockSize, Buf: aligned(blk.BlockSize), Done: first},
		{Op: blk.OpRead, Len: blk.BlockSize, Buf: aligned(blk.BlockSize), Done: &others},
		{Op: blk.OpRead, Len: blk.BlockSize, Buf: aligned(blk.BlockSize), Done: &others},
	}
	q.Submit(batch)
	for end := time.Now().Add(time.Minute); q.ring.Ready() < len(batch); {
		if errno := q.ring.Enter(false); errno != 0 || time.Now().After(end) {
			t.Fatalf("%d of %d completed: %v", q.ring.Ready(), len(batch), errno)
		}
		time.Sleep(time.Millisecond)
	}
	if n := q.deliver(); n != len(batch) {
		t.Fatalf("%d completed", n)
	}
	if len(flushed) != 1 || flushed[0].Errno != syscall.EIO {
		t.Errorf("a flush after the loss: %+v", flushed)
	}
	for _, r := range others { // carried out before it was seen, told after
		if r.Errno != syscall.EIO {
			t.Errorf("a read after the loss was seen: %v", r.Errno)
		}
	}
}

// TestW3Handover: what an engine watched is what the next one must find.
func TestW3Handover(t *testing.T) {
	mine := Watched{1}
	for _, tt := range []struct {
		name    string
		flush   FlushClass
		watch   bool
		before  Watched
		loss    string
		watched Watched
	}{
		{"nothing was watched, nothing is", FlushForward, false, Watched{}, "", Watched{}},
		{"the first engine", FlushWatched, true, Watched{}, "", mine},
		{"forced to forward from the start", FlushForward, true, Watched{}, "", Watched{}},
		{"the same", FlushWatched, true, mine, "", mine},
		{"the same, now forced to forward: the cache still holds what was not flushed", FlushForward, true, mine, "", mine},
		{"reset", FlushWatched, true, Watched{2}, "came back, while no engine had it open", Watched{2}},
		{"cannot be told", FlushForward, false, mine, "now it cannot be: because", mine},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &Drive{t: &target{}, lossSeen: make(chan struct{})}
			d.info.Flush, d.info.FlushWhy = tt.flush, "because"
			if tt.watch {
				d.t.watch = &watch{id: mine}
			}
			d.guard(tt.before)
			if (d.Loss() == "") != (tt.loss == "") || !strings.Contains(d.Loss(), tt.loss) || d.Watched() != tt.watched {
				t.Errorf("loss %q, watched %x; want %q, %x", d.Loss(), d.Watched(), tt.loss, tt.watched)
			}
			if want := tt.watched != (Watched{}); d.guarded != want {
				t.Errorf("guarded %v", d.guarded)
			}
		})
	}
}

func TestAwaitLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Bool
		open := func() *Drive {
			d := &Drive{t: &target{watch: &watch{what: "nvme0", gone: func([]int) bool { return gone.Load() }}}, lossSeen: make(chan struct{})}
			d.info.Flush = FlushWatched
			d.guard(Watched{})
			return d
		}
		await := func(ctx context.Context, d *Drive) <-chan string {
			c := make(chan string, 1)
			go func() { c <- d.AwaitLoss(ctx) }()
			synctest.Wait()
			return c
		}
		d := open()
		idle, closing, seen := await(t.Context(), d), open(), open()
		ctx, cancel := context.WithCancel(t.Context())
		ended, closed, told := await(ctx, open()), await(t.Context(), closing), await(t.Context(), seen)
		seen.lose("a request saw it") // at once, without a look
		if why := <-told; why != "a request saw it" {
			t.Errorf("told %q", why)
		}
		cancel()
		closing.mu.Lock()
		closing.closed = true
		closing.mu.Unlock()
		if a, b := <-ended, <-closed; a != "" || b != "" {
			t.Errorf("ended with %q, closed with %q", a, b)
		}
		select {
		case why := <-idle:
			t.Fatalf("a drive that is well: %q", why)
		default:
		}
		gone.Store(true)
		if why := <-idle; !strings.Contains(why, "nvme0") {
			t.Errorf("an idle drive: %q", why)
		}
		if why := (&Drive{}).AwaitLoss(t.Context()); why != "" {
			t.Errorf("a drive that is not watched: %q", why)
		}
	})
}

func TestConformanceWatched(t *testing.T) {
	for _, engine := range []string{EnginePread, EngineRing} {
		t.Run(engine, func(t *testing.T) {
			blktest.Run(t, func(t *testing.T) blk.Device {
				return watchedDrive(t, engine, func() bool { return false })
			})
		})
	}
}

// TestJudge: what a removed disk answers means that it is lost; an error of the
// medium does not.
func TestJudge(t *testing.T) {
	file, err := os.Open(sparse(t, "disk", 4096))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, tt := range []struct {
		n         int64
		errno     syscall.Errno
		gone      bool
		full      bool // the disk is as long as it was
		wantN     int64
		wantErrno syscall.Errno
		lost      bool
	}{
		{n: 4096, wantN: 4096},
		{n: 4096, gone: true, wantErrno: syscall.EIO, lost: true},
		{n: 0, wantErrno: syscall.EIO, lost: true},
		{n: 512, wantErrno: syscall.EIO, lost: true},
		{errno: syscall.ENOSPC, wantErrno: syscall.EIO, lost: true},
		{errno: syscall.ENOSPC, full: true, wantErrno: syscall.ENOSPC},
		{n: 512, full: true, wantN: 512}, // finish makes an EIO of it
		{errno: syscall.ENXIO, wantErrno: syscall.EIO, lost: true},
		{errno: syscall.ENODEV, wantErrno: syscall.EIO, lost: true},
		{n: 512, errno: syscall.EIO, wantN: 512, wantErrno: syscall.EIO},
		{errno: syscall.ENODATA, wantErrno: syscall.ENODATA}, // a sector that cannot be read
		{errno: syscall.EINVAL, wantErrno: syscall.EINVAL},
	} {
		disk := &target{fd: int(file.Fd()), size: 8192, watch: &watch{gone: func([]int) bool { return tt.gone }}}
		if tt.full {
			disk.size = 4096
		}
		d := &Drive{t: disk, lossSeen: make(chan struct{}), guarded: true}
		n, errno := (&lane{d: d}).judge(&blk.Request{Op: blk.OpRead, Len: 4096}, tt.n, tt.errno)
		if n != tt.wantN || errno != tt.wantErrno || (d.Loss() != "") != tt.lost {
			t.Errorf("%+v: %d, %v, %q", tt, n, errno, d.Loss())
		}
	}
}
