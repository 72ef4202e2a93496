package nbdclient

import (
	"slices"
	"syscall"
	"testing"
)

// flying returns a run with two reads of 1024 bytes in flight, cookies 1 and 0,
// and where they begin.
func flying(t *testing.T) (r *run, at [2]uint64) {
	t.Helper()
	c, _ := scripted(t)
	r = newRun(Load{Depth: 2, BlockSize: 1024, Span: 1 << 20, Requests: 2}, c)
	r.compose()
	return r, [2]uint64{uint64(r.slots[0].off), uint64(r.slots[1].off)}
}

// TestLoadChunks: a reply in several chunks, holes among them, with one to another
// request in between, and cut anywhere, is whole when all of the read was told.
func TestLoadChunks(t *testing.T) {
	_, at := flying(t)
	replies := slices.Concat(
		chunk(0, chunkOffsetHole, 0, be64(at[0]), be32(512)),
		chunk(chunkDone, chunkOffsetData, 1, be64(at[1]), make([]byte, 1024)),
		chunk(0, chunkOffsetData, 0, be64(at[0]+512), make([]byte, 512)),
		chunk(chunkDone, chunkNone, 0))
	for cut := range replies {
		r, _ := flying(t)
		if err := r.parse(replies[:cut]); err != nil {
			t.Fatalf("the first %d bytes: %v", cut, err)
		}
		rest := append(slices.Clone(r.in[:r.inLen]), replies[cut:]...)
		if err := r.parse(rest); err != nil {
			t.Fatalf("cut after %d bytes: %v", cut, err)
		}
		if r.result.Requests != 2 || r.result.Bytes != 2048 || r.result.Errors != 0 || r.inFlight != 0 {
			t.Fatalf("cut after %d bytes: %+v, %d in flight", cut, r.result, r.inFlight)
		}
	}
}

// TestLoadBelievesNothing: a read that was not told in full is no read.
func TestLoadBelievesNothing(t *testing.T) {
	_, at := flying(t)
	for name, reply := range map[string][]byte{
		"no data":           chunk(chunkDone, chunkNone, 0),
		"half of it":        chunk(chunkDone, chunkOffsetData, 0, be64(at[0]), make([]byte, 512)),
		"half a hole":       chunk(chunkDone, chunkOffsetHole, 0, be64(at[0]), be32(512)),
		"told twice":        slices.Concat(chunk(0, chunkOffsetHole, 0, be64(at[0]), be32(1024)), chunk(chunkDone, chunkOffsetHole, 0, be64(at[0]), be32(1024))),
		"data before it":    chunk(chunkDone, chunkOffsetData, 0, be64(at[0]-1), make([]byte, 1024)),
		"data behind it":    chunk(chunkDone, chunkOffsetData, 0, be64(at[0]+1), make([]byte, 1024)),
		"a hole behind it":  chunk(chunkDone, chunkOffsetHole, 0, be64(at[0]), be32(1025)),
		"a short hole":      chunk(chunkDone, chunkOffsetHole, 0, be64(at[0])),
		"an unknown cookie": chunk(chunkDone, chunkNone, 2),
		"a second answer":   slices.Concat(be32(simpleMagic), be32(5), be64(0), be32(simpleMagic), be32(5), be64(0)),
		"no reply":          make([]byte, 20),
	} {
		r, _ := flying(t)
		if err := r.parse(reply); err == nil {
			t.Errorf("%s: believed: %+v", name, r.result)
		}
	}
}

// TestLoadErrors: errors are counted, whichever way they are told.
func TestLoadErrors(t *testing.T) {
	r, _ := flying(t)
	err := r.parse(slices.Concat(be32(simpleMagic), be32(uint32(syscall.ENOSPC)), be64(1),
		chunk(chunkDone, chunkErrors+1, 0, be32(uint32(syscall.EIO)), []byte{0, 0})))
	if err != nil || r.result.Errors != 2 || r.result.FirstError != syscall.ENOSPC || r.result.Bytes != 0 {
		t.Errorf("%v, %+v", err, r.result)
	}
}

// TestLoadFlushes: each write is followed by a flush once it was answered, and
// counts when that was.
func TestLoadFlushes(t *testing.T) {
	s := newVictim(t, 1<<20)
	var order []uint16
	s.fail = func(cmd uint16, _, _ int64) syscall.Errno {
		order = append(order, cmd)
		return 0
	}
	for _, depth := range []int{1, 4} {
		c, err := Dial(s.path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		order = nil
		r, err := Load{Pattern: RandomWrite, Depth: depth, Requests: 40, Flush: true}.Run(c)
		if err != nil || r.Requests != 40 || r.Errors != 0 || r.Bytes != 40*4096 || r.P999 < r.P99 || r.P99 < r.P50 {
			t.Errorf("%v, %+v", err, r)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		s.mu.Lock()
		writes, flushes := 0, 0
		for _, cmd := range order {
			switch cmd {
			case cmdWrite:
				writes++
			case cmdFlush:
				flushes++
			}
			if flushes > writes || writes-flushes > depth {
				t.Fatalf("depth %d: %v", depth, order)
			}
		}
		s.mu.Unlock()
		if writes != 40 || flushes != 40 {
			t.Errorf("depth %d: %d writes, %d flushes", depth, writes, flushes)
		}
	}
	c, err := Dial(s.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Load{Requests: 1, Flush: true}).Run(c); err == nil {
		t.Error("flushes after reads run")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
