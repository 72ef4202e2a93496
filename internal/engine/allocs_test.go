package engine

import (
	"os"
	"testing"

	"vacate/internal/blk"
)

// TestAllocs: a request through all layers, from the volume to a drive's file,
// allocates nothing.
func TestAllocs(t *testing.T) {
	for _, in := range []string{"/dev/shm", os.TempDir()} {
		h := newHost(t)
		_, uuid := h.drive(folder(t, in))
		req := request(0, uuid, 0)
		h.open(req)
		q, buf := h.queue(req.Lease, 4), buffer(t, blk.MaxTransfer)
		before := h.driveStats(uuid)
		for _, tt := range []struct {
			name   string
			op     blk.Op
			off    int64
			length int64
		}{
			{"4K write", blk.OpWrite, 0, 4096},
			{"4K read", blk.OpRead, 0, 4096},
			{"sub-block write", blk.OpWrite, 512, 512},
			{"sub-block read", blk.OpRead, 100, 5000},
			{"longest write", blk.OpWrite, 0, blk.MaxTransfer},
			{"longest read", blk.OpRead, 0, blk.MaxTransfer},
			{"unwritten read", blk.OpRead, 4 << 20, 4096},
			{"sub-block write zeroes", blk.OpWriteZeroes, 100, 5000},
			{"discard", blk.OpDiscard, 0, 1 << 20},
			{"flush", blk.OpFlush, 0, 0},
		} {
			done := 0
			r := &blk.Request{Op: tt.op, Off: tt.off, Len: tt.length, Done: completer(func(*blk.Request) { done++ })}
			if tt.op == blk.OpRead || tt.op == blk.OpWrite {
				r.Buf = buf[:tt.length]
			}
			batch := []*blk.Request{r}
			runs := 100
			if tt.op == blk.OpFlush {
				runs = 3 // it may go to a medium
			}
			n := testing.AllocsPerRun(runs, func() {
				q.Submit(batch)
				q.Reap(true)
			})
			if n != 0 {
				t.Errorf("%s in %s: %v allocations", tt.name, in, n)
			}
			if done != runs+1 || r.Errno != 0 {
				t.Errorf("%s in %s: %d of %d done, %v", tt.name, in, done, runs+1, r.Errno)
			}
		}
		after := h.driveStats(uuid)
		if after.Reads-before.Reads < 200 || after.Writes-before.Writes < 200 {
			t.Errorf("the drive in %s was not used: %+v, then %+v", in, before, after)
		}
		check(t, q.Close())
	}
}
