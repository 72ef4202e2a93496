package vhostuser

import (
	"os"
	"sync/atomic"
	"testing"

	"vacate/internal/sys"
)

// TestMemoryIsBounded offers files of next to nothing that are mapped whole: there is an
// end to them, so that other sessions find addresses, and so does the heap.
func TestMemoryIsBounded(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	hole, err := sys.Memfd("hole", 32<<40)
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	fd, err := sys.Descriptor(hole)
	if err != nil {
		t.Fatal(err)
	}
	before := allMapped.Load()
	add := func(tebi, size uint64) uint64 {
		return f.ack(reqAddMemReg, append(u64(0), u64s(tebi<<40, size, guestAt+tebi<<40, 0)...), fd)
	}
	for _, tt := range []struct {
		what string
		got  uint64
	}{
		{"9 TiB", add(32, 9<<40)},
		{"8 TiB and 1 MiB", add(32, 8<<40)},
		{"an inflight region of 1 TiB", f.ack(reqSetInflightFD, append(u64s(1<<40, 0), 2, 0, 128, 0), fd)},
	} {
		if tt.got == 0 {
			t.Errorf("%s: accepted", tt.what)
		}
	}
	if got := allMapped.Load(); got != before {
		t.Errorf("%d bytes are mapped, were %d", got, before)
	}
	others := uint64(mostMapped - 1<<30) // what other sessions have
	allMapped.Add(others)
	if add(32, 1<<30) == 0 {
		t.Error("there is no end to what all sessions map")
	}
	if add(32, 1<<29) != 0 {
		t.Error("there is room, and it is refused")
	}
	allMapped.Add(-others)
	if !w.worker.running(0) {
		t.Error("the ring does not run any more")
	}
	w.server.Close()
	w.server.Wait()
	if got := allMapped.Load(); got != before-1<<20 {
		t.Errorf("%d bytes are mapped after the end, were %d without the guest's", got, before-1<<20)
	}
}

// TestK3KeeperIsNotLast: whatever becomes of a guest's memory, the keeper is never the
// one that frees it.
func TestK3KeeperIsNotLast(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	base := allMapped.Load()
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	var given atomic.Int32
	w.keeper.mu.Lock()
	w.keeper.before = func(file *os.File) {
		if file == nil {
			given.Add(1)
			if allMapped.Load() == base {
				t.Error("the keeper gives up a place when nothing is mapped here any more")
			}
		}
	}
	w.keeper.mu.Unlock()
	f.must(reqSetMemTable, g.table(), g.fd) // the old regions go
	eventually(t, "an old region given up", func() bool { return given.Load() == 1 })
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end", func() bool { return w.keeper.count() == 1 && allMapped.Load() == base })
	if given.Load() < 5 {
		t.Errorf("%d places were given up", given.Load())
	}
}
