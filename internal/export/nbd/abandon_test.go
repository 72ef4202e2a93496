package nbd

import (
	"bytes"
	"sync"
	"testing"

	"vacate/internal/blk"
)

// TestL3Abandoned: replies that nobody takes any more are cleared when the connection
// is cut off, and not only when the drive has answered all that is in flight, which
// it may never do (N3).
func TestL3Abandoned(t *testing.T) {
	canary := bytes.Repeat([]byte("CANARY"), 1<<20)
	v := newLater(4 << 20)
	v.hold = func(r *blk.Request) bool { return r.Op == blk.OpFlush || r.Op == blk.OpRead && r.Off == 1<<20 }
	v.mark(0, 4<<20, true)
	copy(v.data, canary)
	release := sync.OnceFunc(func() { close(v.release) })
	s := alone(t, v.config())
	t.Cleanup(release) // before the server's own, which waits
	c := rawConnect(t, s)
	c.enter()
	c.write(command(0, cmdFlush, 1, 0, 0))
	c.write(command(0, cmdRead, 2, 1<<20, 64<<10))
	for i := range uint64(100) {
		c.write(command(0, cmdRead, 3+i, 0, 64<<10))
	}
	holds := func() bool { return bytes.Contains(buffers(t, s)["send"], canary[:64]) }
	eventually(t, "replies wait for the client", holds)
	s.Close()
	eventually(t, "they are cleared", func() bool { return !holds() })
	if n := s.Stats().Connections; n != 1 {
		t.Errorf("%d connections, want 1: what it has in flight is held", n)
	}
	release()
	s.Wait()
}

// TestL3HalfWrite: so is what came of a write whose rest never will (N2).
func TestL3HalfWrite(t *testing.T) {
	canary := bytes.Repeat([]byte("CANARY"), 1000)
	v := newLater(1 << 20)
	v.hold = func(r *blk.Request) bool { return r.Op == blk.OpFlush }
	s := alone(t, v.config())
	c := rawConnect(t, s)
	c.enter()
	c.write(command(0, cmdFlush, 1, 0, 0))
	c.write(append(command(0, cmdWrite, 2, 0, 64<<10), canary...))
	holds := func() bool { return bytes.Contains(buffers(t, s)["receive"], canary[:64]) }
	eventually(t, "half a write is there", holds)
	c.Close()
	eventually(t, "it is cleared", func() bool { return !holds() })
	close(v.release)
	eventually(t, "the connection has ended", func() bool { return s.Stats().Connections == 0 })
}
