package volume_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/drive"
	"vacate/internal/sim"
)

// openDrive enrolls and opens a new drive of 32 MiB in a folder.
func openDrive(t *testing.T, dir, engine string) *drive.Drive {
	t.Helper()
	path := filepath.Join(dir, "drive.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	node, uuid := drive.ID{1}, drive.ID{2}
	if _, err := drive.Enroll(path, drive.EnrollOptions{Node: node, UUID: uuid, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	d, err := drive.Open(context.Background(), path, drive.OpenOptions{Node: node, UUID: uuid, Epoch: 1, NewEpoch: 1, Engine: engine})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if s := d.Info().Engine; engine != "" && s != engine {
		t.Fatalf("the engine is %s (%s), want %s", s, d.Info().EngineWhy, engine)
	}
	return d
}

func inMemory(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "vacate-volume-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestForeignMemory: requests of any alignment in guest memory that is cut anywhere,
// through all layers, on every kind of drive. One that touches what is gone ends
// with EFAULT, and each byte that it covers is as before or as it was to be; one
// that does not is carried out. Nothing else changes.
func TestForeignMemory(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) blk.Device{
		"sim":  func(*testing.T) blk.Device { return sim.New(sim.Config{Size: 4 << 20, Seed: 1, Fill: 0xA7}) },
		"sync": func(*testing.T) blk.Device { return newRAM(4 << 20) },
		"mmap": func(t *testing.T) blk.Device { return openDrive(t, inMemory(t), drive.EngineMmap) },
		"file": func(t *testing.T) blk.Device { return openDrive(t, t.TempDir(), "") },
	} {
		t.Run(name, func(t *testing.T) {
			w := &foreignWorld{t: t, rng: rand.New(rand.NewPCG(9, 9)), m: make([]byte, 1<<20)}
			w.f = blktest.NewForeign(t, foreignPages)
			l := newLease(t, open(t), 3)
			var err error
			if w.q, err = l.NewQueue(4); err != nil {
				t.Fatal(err)
			}
			for range 600 {
				w.step()
			}
			if w.good < 100 || w.bad[blk.OpRead] < 50 || w.bad[blk.OpWrite] < 50 {
				t.Errorf("%d good, %v bad requests: this test finds little", w.good, w.bad)
			}
			if err := w.q.Close(); err != nil {
				t.Error(err)
			}
			l.Shut()
			<-l.Drained() // no gate was left with work inside
			l.c.Revoke()
		})
	}
}

const foreignPages = 12

type foreignWorld struct {
	t    *testing.T
	rng  *rand.Rand
	f    *blktest.Foreign
	q    blk.Queue
	m    []byte // what the start of the volume must read as
	good int
	bad  [2]int // by blk.Op
}

// step makes one request, and looks at what became of it.
func (w *foreignWorld) step() {
	unit := []int{1, 1, 512, 4096}[w.rng.IntN(4)]
	from := w.rng.IntN(foreignPages*4096-8192) / unit * unit
	n := max(unit, w.rng.IntN(min(6*4096, len(w.f.Bytes)-from))/unit*unit)
	off := w.rng.IntN(len(w.m)-n) / unit * unit
	left := w.rng.IntN(2 * foreignPages)
	gone := left*4096 < from+n

	w.f.Cut(w.t, foreignPages)
	for i := range w.f.Bytes {
		w.f.Bytes[i] = byte(w.rng.Uint32())
	}
	r := blk.Request{Op: blk.Op(w.rng.IntN(2)), Flags: blk.Foreign, Off: int64(off), Len: int64(n), Buf: w.f.Bytes[from : from+n]}
	given := append([]byte(nil), r.Buf...)
	if left < foreignPages {
		w.f.Cut(w.t, left)
	}
	errno := syscall.Errno(0)
	if _ = blk.Do(w.q, &r); gone { // what it came to is in r
		errno = syscall.EFAULT
		w.bad[r.Op]++
	} else {
		w.good++
	}
	if r.Errno != errno {
		w.t.Fatalf("%v of %d bytes at %d, in memory from %d on with %d pages left: %v, want %v", r.Op, n, off, from, left, r.Errno, errno)
	}
	if r.Op == blk.OpRead && !gone {
		w.equal("read", r.Buf, w.m[off:off+n])
	}
	if r.Op == blk.OpWrite && !gone {
		copy(w.m[off:], given)
	}
	w.look(r.Op == blk.OpWrite && gone, off, given)
}

// look reads some of the volume around a request, with a buffer of its own. What
// a write that failed was to write may be there.
func (w *foreignWorld) look(failed bool, off int, given []byte) {
	lo, hi := max(0, off-5000), min(len(w.m), off+len(given)+5000)
	got := blktest.Buffer(hi - lo)
	if err := blk.Do(w.q, &blk.Request{Op: blk.OpRead, Off: int64(lo), Len: int64(hi - lo), Buf: got}); err != nil {
		w.t.Fatal(err)
	}
	for i := range got {
		if at := lo + i - off; failed && at >= 0 && at < len(given) && got[i] == given[at] {
			w.m[lo+i] = got[i]
		}
	}
	w.equal("volume", got, w.m[lo:hi])
}

func (w *foreignWorld) equal(what string, got, want []byte) {
	w.t.Helper()
	for i := range want {
		if got[i] != want[i] {
			w.t.Fatalf("%s: byte %d of %d is %#x, want %#x", what, i, len(want), got[i], want[i])
		}
	}
}

// TestForeignAllocations: none a request, in foreign memory too, of any alignment.
func TestForeignAllocations(t *testing.T) {
	f := blktest.NewForeign(t, foreignPages)
	q, err := newLease(t, newRAM(4<<20), 3).NewQueue(2)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close() //nolint:errcheck // test's end
	var done counter
	batch := make([]*blk.Request, 1)
	for _, tt := range [][2]int64{{0, 4096}, {8192, 16384}, {512, 512}, {100, 9000}} {
		for _, op := range []blk.Op{blk.OpWrite, blk.OpRead} {
			r := blk.Request{Op: op, Flags: blk.Foreign, Off: tt[0], Len: tt[1], Buf: f.Bytes[7 : 7+tt[1]], Done: &done}
			if n := testing.AllocsPerRun(50, func() {
				batch[0], done = &r, 0
				q.Submit(batch)
				for done == 0 {
					q.Reap(true)
				}
			}); n != 0 || r.Errno != 0 {
				t.Errorf("%v of %d bytes at %d: %v allocations, %v", op, tt[1], tt[0], n, r.Errno)
			}
		}
	}
}
