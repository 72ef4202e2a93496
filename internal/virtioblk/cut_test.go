package virtioblk

import (
	"fmt"
	"slices"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
)

// TestCut: how requests are cut; and the law, C1 to C3.
func TestCut(t *testing.T) {
	const k = 1 << 10
	for _, tt := range []struct {
		off    int64
		slices []int
		want   string // parts: length, b if bounced
	}{
		{0, []int{4 * k}, "4096"},
		{512, []int{512}, "512"},
		{512, []int{8 * k}, "8192"},
		{0, []int{4 * k, 4 * k, 4 * k}, "4096 4096 4096"},
		{0, []int{1000, 3096}, "4096b"},
		{0, []int{512, 512, 3072, 64 * k}, "4096b 65536"},
		{512, []int{3584, 4 * k}, "3584 4096"},
		{0, []int{3584, 4 * k, 4 * k, 512}, "12288b"},
		{0, []int{12 * k, 100, 3996}, "12288 4096b"},
		{0, []int{5000, 3192}, "4096 4096b"},
		{0, []int{300 * k}, "262144 45056"},
		{1024, []int{300 * k}, "261120 46080"},
		{0, []int{100, 128*k - 100}, "4096b 126976"},
		{0, []int{100, 0, 0, 412}, "512b"},
	} {
		t.Run(fmt.Sprint(tt.off, tt.slices), func(t *testing.T) {
			w := cutter(t, 64)
			j := &w.jobs[0]
			j.kind, j.op, j.off = kindRead, blk.OpRead, tt.off
			var list [][]byte
			for _, n := range tt.slices {
				list = append(list, make([]byte, n))
				j.left += int64(n)
			}
			j.data = cursor{list: list}
			total := j.left
			if !w.stage(j) {
				t.Fatal("not all is staged")
			}
			got, next := "", tt.off
			for i, r := range w.submit {
				if i > 0 {
					got += " "
				}
				got += fmt.Sprint(r.Len)
				if r.Flags&blk.Foreign == 0 {
					got += "b"
				}
				if r.Off != next || r.Len == 0 || r.Len > blk.MaxTransfer || int64(len(r.Buf)) != r.Len {
					t.Errorf("C1: part %d has %d bytes at %d, and a buffer of %d; want it at %d", i, r.Len, r.Off, len(r.Buf), next)
				}
				if next += r.Len; i < len(w.submit)-1 && next%blk.BlockSize != 0 {
					t.Errorf("C2: part %d ends at %d", i, next)
				}
			}
			if next != tt.off+total {
				t.Errorf("C1: the parts end at %d, want %d", next, tt.off+total)
			}
			if got != tt.want {
				t.Errorf("parts %q, want %q", got, tt.want)
			}
			for _, r := range w.submit {
				w.reclaim(r.Done.(*part))
			}
		})
	}
}

// TestCutBounded: a request that is longer than its share of parts or bounce buffers
// goes on when some are free again.
func TestCutBounded(t *testing.T) {
	w := cutter(t, 4)
	j := &w.jobs[0]
	j.kind, j.op, j.left = kindRead, blk.OpRead, 4<<20
	for range 8 {
		j.data.list = append(j.data.list, make([]byte, 512<<10))
	}
	rounds, next := 0, int64(0)
	for whole := false; !whole; rounds++ {
		whole = w.stage(j)
		for _, r := range w.submit {
			if r.Off != next {
				t.Fatalf("a part at %d, want %d", r.Off, next)
			}
			next += r.Len
			w.reclaim(r.Done.(*part))
		}
		w.submit = w.submit[:0]
	}
	if rounds != 6 || next != 4<<20 {
		t.Errorf("%d bytes in %d rounds, want %d in 6", next, rounds, 4<<20)
	}
	j = &w.jobs[1]
	j.kind, j.op, j.left = kindRead, blk.OpRead, 1<<20
	for range 1 << 20 / 1024 {
		j.data.list = append(j.data.list, make([]byte, 1000), make([]byte, 24))
	}
	if w.stage(j) || len(w.submit) != 3 || w.bounces.Free() != bounceCount-3 {
		t.Errorf("%d parts are staged, %d bounce buffers free", len(w.submit), w.bounces.Free())
	}
	for _, r := range w.submit {
		w.reclaim(r.Done.(*part))
	}
}

// cutter is a worker that only cuts.
func cutter(t *testing.T, depth int) *Worker {
	w := &Worker{cfg: Config{Depth: depth}}
	w.furnish()
	var err error
	if w.bounces, err = mem.NewPool(bounceSize, bounceCount, mem.TryLock); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.bounces.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// TestCounted: a request counts as one for each MaxTransfer of it, in however many
// pieces the driver's memory lies; one of several ranges counts as one.
func TestCounted(t *testing.T) {
	for _, tt := range []struct {
		kind   uint8
		slices []int // bytes
		ranges int
		want   int
	}{
		{kind: kindRead, slices: []int{4096}, want: 1},
		{kind: kindRead, slices: slices.Repeat([]int{4096}, 32), want: 1},
		{kind: kindRead, slices: slices.Repeat([]int{1000, 24}, 64), want: 1},
		{kind: kindWrite, slices: slices.Repeat([]int{4096}, 65), want: 2},
		{kind: kindRead, slices: []int{1 << 20}, want: 4},
		{kind: kindRead, slices: slices.Repeat([]int{200 << 10}, 4), want: 3},
		{kind: kindDiscard, ranges: 16, want: 1},
	} {
		w := cutter(t, 256)
		j := &w.jobs[0]
		j.kind, j.op = tt.kind, blk.OpRead
		if tt.kind == kindWrite {
			j.op = blk.OpWrite
		}
		total := 0
		for _, n := range tt.slices {
			j.data.list = append(j.data.list, make([]byte, n))
			total += n
		}
		j.left, j.bytes, j.listed = int64(total), int64(total), tt.ranges
		got := 0
		for whole := false; !whole; {
			whole = w.stage(j)
			for _, r := range w.submit {
				if r.Flags&blk.Continued == 0 {
					got++
				}
				w.reclaim(r.Done.(*part))
			}
			w.submit = w.submit[:0]
		}
		if got != tt.want {
			t.Errorf("%d slices, %d bytes, %d ranges: counts as %d, want %d", len(tt.slices), total, tt.ranges, got, tt.want)
		}
	}
}
