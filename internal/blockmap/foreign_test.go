package blockmap

import (
	"bytes"
	"errors"
	"runtime"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
)

// TestForeignUnwritten: unwritten blocks that are read into memory which is cut
// anywhere end the read with EFAULT: where all of it is unwritten, and where written
// blocks lie between.
func TestForeignUnwritten(t *testing.T) {
	const blocks = 8
	m, _ := newMap(t, 2<<20)
	q := newQueue(t, m, 2)
	f := blktest.NewForeign(t, blocks)
	page := bytes.Repeat([]byte{1}, blk.BlockSize)
	for _, written := range [][]int64{nil, {0}, {1, 4}, {0, 2, 4, 6}, {1, 3, 5, 7}} {
		want := make([]byte, blocks*blk.BlockSize)
		for _, b := range written {
			copy(want[b*blk.BlockSize:], page)
			if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: b * blk.BlockSize, Len: blk.BlockSize, Buf: page}); err != nil {
				t.Fatal(err)
			}
		}
		for left := range blocks + 1 {
			f.Cut(t, left)
			err := blk.Do(q, &blk.Request{Op: blk.OpRead, Flags: blk.Foreign, Len: int64(len(want)), Buf: f.Bytes})
			if left < blocks && !errors.Is(err, syscall.EFAULT) {
				t.Errorf("with %v written and %d blocks left: %v, want EFAULT", written, left, err)
			}
			if left == blocks && (err != nil || !bytes.Equal(f.Bytes, want)) {
				t.Errorf("with %v written and all there: %v, or wrong bytes", written, err)
			}
			f.Cut(t, blocks)
		}
		if err := blk.Do(q, &blk.Request{Op: blk.OpDiscard, Len: int64(len(want))}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.KeepAlive(page)
}
