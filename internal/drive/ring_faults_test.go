package drive

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
)

// TestRingSettle: what the kernel may answer, and what becomes of the request.
func TestRingSettle(t *testing.T) {
	type answer struct {
		n     int64
		errno syscall.Errno
	}
	for name, tt := range map[string]struct {
		answers []answer // all but the last send it to the kernel again
		n       int64
		errno   syscall.Errno
	}{
		"whole":              {[]answer{{16384, 0}}, 16384, 0},
		"in three parts":     {[]answer{{4096, 0}, {8192, 0}, {4096, 0}}, 16384, 0},
		"interrupted":        {[]answer{{0, syscall.EINTR}, {4096, 0}, {0, syscall.EINTR}, {12288, 0}}, 16384, 0},
		"the end":            {[]answer{{4096, 0}, {0, 0}}, 4096, syscall.EIO},
		"nothing":            {[]answer{{0, 0}}, 0, syscall.EIO},
		"not aligned":        {[]answer{{0, syscall.EINVAL}}, 0, syscall.EINVAL},
		"no longer aligned":  {[]answer{{1000, 0}, {0, syscall.EINVAL}}, 1000, syscall.EIO},
		"full after a part":  {[]answer{{4096, 0}, {0, syscall.ENOSPC}}, 4096, syscall.ENOSPC},
		"would have to wait": {[]answer{{0, syscall.EAGAIN}}, 16384, 0},
		"wait for the rest":  {[]answer{{4096, 0}, {0, syscall.EAGAIN}}, 16384, 0},
		"no thread":          {[]answer{{0, syscall.ECANCELED}}, 16384, 0},
	} {
		t.Run(name, func(t *testing.T) {
			q := ringOf(t, onDisk(t, 32<<20), 1)
			defer mustClose(t, q)
			var done tally
			r := &blk.Request{Op: blk.OpWrite, Len: 16384, Buf: blktest.Buffer(16384), Done: &done}
			q.Submit([]*blk.Request{r})
			for i, a := range tt.answers {
				id := uint32(q.ring.TakeBack())
				if ended := q.settle(id, a.n, a.errno); ended != (i == len(tt.answers)-1) {
					t.Fatalf("answer %d, %+v, ended the request: %v", i, a, ended)
				}
			}
			if len(done) != 1 || r.N != tt.n || r.Errno != tt.errno {
				t.Errorf("%d completions, N = %d, %v, want %d, %v", len(done), r.N, r.Errno, tt.n, tt.errno)
			}
			if q.ring.Unsubmitted() != 0 || q.busy() != 0 {
				t.Errorf("%d unsubmitted, %d slots in use", q.ring.Unsubmitted(), q.busy())
			}
		})
	}
}

// TestRingRetreat: what the kernel has no memory for is carried out on the spot.
func TestRingRetreat(t *testing.T) {
	d := onDisk(t, 32<<20)
	q := ringOf(t, d, 4)
	defer mustClose(t, q)
	var done tally
	buf, back := blktest.Buffer(4096), blktest.Buffer(4096)
	copy(buf, "written")
	q.Submit([]*blk.Request{
		{Op: blk.OpWrite, Len: 4096, Buf: buf, Done: &done},
		{Op: blk.OpFlush, Done: &done},
		{Op: blk.OpWrite, Off: 4096, Len: 4096, Buf: buf, Flags: blk.FUA, Done: &done},
	})
	if n := q.retreat(syscall.EAGAIN); n != 3 || len(done) != 3 {
		t.Fatalf("%d carried out, %d completed", n, len(done))
	}
	for _, r := range done {
		if r.Errno != 0 {
			t.Errorf("%v at %d: %v", r.Op, r.Off, r.Errno)
		}
	}
	if err := blk.Do(q, &blk.Request{Op: blk.OpRead, Off: 4096, Len: 4096, Buf: back}); err != nil || !bytes.Equal(back, buf) {
		t.Errorf("what was carried out on the spot was not written: %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a wait that fails did not panic")
		}
	}()
	q.retreat(syscall.EBADF)
}

// TestRingTruncated: the file becomes shorter between the check of its size and
// the kernel's look at it.
func TestRingTruncated(t *testing.T) {
	path := sparse(t, "drive.img", 32<<20)
	d := open(t, enrolled(t, path))
	if d.Info().Engine != EngineRing {
		t.Fatal("no direct I/O in the temporary folder: set TMPDIR to one on a disk")
	}
	q := ringOf(t, d, 4)
	defer mustClose(t, q)
	var done tally
	buf := blktest.Buffer(16384)
	r := &blk.Request{Op: blk.OpRead, Off: 1 << 20, Len: 16384, Buf: buf, Done: &done}
	past := &blk.Request{Op: blk.OpRead, Off: 20 << 20, Len: 16384, Buf: blktest.Buffer(16384), Done: &done}
	q.Submit([]*blk.Request{r, past})
	if err := os.Truncate(path, 2<<20+8192); err != nil {
		t.Fatal(err)
	}
	for len(done) < 2 {
		q.Reap(true)
	}
	if r.N != 8192 || r.Errno != syscall.EIO || past.N != 0 || past.Errno != syscall.EIO {
		t.Errorf("across the end: %d, %v; past the end: %d, %v", r.N, r.Errno, past.N, past.Errno)
	}
	if err := blk.Do(q, &blk.Request{Op: blk.OpWrite, Off: 20 << 20, Len: 16384, Buf: buf}); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write past the end: %v", err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 2<<20+8192 {
		t.Errorf("the file was made longer again: %v, %v", st.Size(), err)
	}
}

// TestRingVanished: a descriptor that is gone fails requests, not the queue.
func TestRingVanished(t *testing.T) {
	q := ringOf(t, onDisk(t, 32<<20), 4)
	defer mustClose(t, q)
	good := q.fd
	buf := blktest.Buffer(4096)
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		q.fd = -1
		if err := blk.Do(q, &blk.Request{Op: op, Len: 4096, Buf: buf}); !errors.Is(err, syscall.EBADF) {
			t.Errorf("%v: %v", op, err)
		}
		q.fd = good
		if err := blk.Do(q, &blk.Request{Op: op, Len: 4096, Buf: buf}); err != nil {
			t.Errorf("the queue is not usable any more: %v", err)
		}
	}
}

func TestRingCloseInFlight(t *testing.T) {
	d := onDisk(t, 32<<20)
	q := ringOf(t, d, 4)
	var done tally
	q.Submit([]*blk.Request{{Op: blk.OpRead, Len: 4096, Buf: blktest.Buffer(4096), Done: &done}})
	if err := d.Close(); !errors.Is(err, ErrQueues) {
		t.Errorf("Close of the drive: %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("Close with a request in flight did not panic")
			}
		}()
		_ = q.Close()
	}()
	for len(done) == 0 {
		q.Reap(true)
	}
	mustClose(t, q)
	if err := q.Close(); err == nil {
		t.Error("a queue was closed twice")
	}
}
