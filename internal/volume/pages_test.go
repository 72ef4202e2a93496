package volume

import (
	"bytes"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sim"
)

// TestL3BouncePages: when no request is in flight, no bounce page holds
// anything, also after requests that failed (V4).
func TestL3BouncePages(t *testing.T) {
	d := sim.New(sim.Config{Size: 1 << 20, Logical: 512, Fill: 0x11})
	v := New(d, Config{Lock: mem.TryLock})
	raw, err := v.NewQueue(4)
	if err != nil {
		t.Fatal(err)
	}
	q := raw.(*queue)
	buf := bytes.Repeat([]byte("secret"), 2000)
	for _, faulty := range []bool{false, true} {
		for _, r := range []blk.Request{
			{Op: blk.OpWrite, Off: 100, Len: 100}, {Op: blk.OpWrite, Off: 100, Len: 9000},
			{Op: blk.OpRead, Off: 100, Len: 9000}, {Op: blk.OpWriteZeroes, Off: 50, Len: 100},
		} {
			if r.Op != blk.OpWriteZeroes {
				r.Buf = buf[:r.Len]
			}
			if faulty {
				d.At(d.Ops()+2, sim.Fault{Kind: sim.Lost})
			}
			// On a drive alone write-zeroes are not supported below; that fails,
			// which is as good here.
			if blk.Do(q, &r); r.Errno != 0 && !faulty && r.Op != blk.OpWriteZeroes {
				t.Error(r.Err())
			}
			d.Heal()
			checkPages(t, q)
		}
	}
	if err := q.Close(); err != nil {
		t.Error(err)
	}
}

func checkPages(t *testing.T, q *queue) {
	t.Helper()
	var pages [][]byte
	for p := q.pages.Get(); p != nil; p = q.pages.Get() {
		pages = append(pages, p)
		if !mem.IsZero(p) {
			t.Error("L3: a bounce page holds plaintext after its request")
		}
	}
	if len(pages) != 8 {
		t.Errorf("%d pages, want 8: one was not put back", len(pages))
	}
	for _, p := range pages {
		q.pages.Put(p)
	}
}
