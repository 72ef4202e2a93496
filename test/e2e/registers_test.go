package e2e

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"vacate/internal/nbdclient"
	"vacate/internal/vhostclient"
	"vacate/test/daemon"
	"vacate/test/search"
)

// canaryBlocks are n bytes that have a canary in every second 16 of them, so that
// whatever register they went through can be told by it.
func canaryBlocks(n int) (b []byte, canaries *search.Needles) {
	canary := []byte("a canary's 16 B.")
	canaries = search.NewNeedles()
	canaries.Add("a canary", canary)
	return bytes.Repeat(append(canary, "and other bytes."...), n/32), canaries
}

// noneInRegisters fails the test if a thread of the engine's keeps a canary in a
// register. A thread that is just copying has some: it is looked at again.
func noneInRegisters(t *testing.T, d *daemon.Daemon, canaries *search.Needles, after string) {
	t.Helper()
	pid, err := d.Child("engine")
	must(t, err)
	var hits []search.Hit
	for try := range 20 {
		var threads int
		hits, threads, err = canaries.Registers(pid)
		must(t, err)
		if threads < 2 {
			t.Fatalf("%d threads were searched", threads)
		}
		if len(hits) == 0 {
			return
		}
		time.Sleep(time.Duration(try+1) * 50 * time.Millisecond)
	}
	t.Errorf("after %s: %v", after, hits)
}

// pieces is a guest whose requests lie in its memory in two pieces, the first of which
// is no whole sector.
type pieces struct {
	*vhostclient.Client
	buf []byte
}

func (g pieces) ReadAt(p []byte, off int64) (int, error) {
	err := g.do(vhostclient.TypeIn, len(p), off)
	return copy(p, g.buf), err
}

func (g pieces) WriteAt(p []byte, off int64) (int, error) {
	n := copy(g.buf, p)
	return n, g.do(vhostclient.TypeOut, n, off)
}

func (g pieces) do(typ uint32, n int, off int64) error {
	const first = 336 // as many of the canaries' steps
	return g.Do(&vhostclient.Request{Type: typ, Sector: uint64(off / 512), Data: [][]byte{g.buf[:first], g.buf[first:n]}})
}

// TestCopiesLeaveNothing: reads and writes of parts of blocks go through copies. The
// thread that made them waits for its client afterwards, without a byte of the
// tenant's in its registers.
func TestCopiesLeaveNothing(t *testing.T) {
	d := start(t, daemon.Options{})
	type client interface {
		ReadAt(p []byte, off int64) (int, error)
		WriteAt(p []byte, off int64) (int, error)
	}
	nbd, err := nbdclient.Dial(open(t, d, "--size", "8MiB", "--tenant", "t").URI(), nbdclient.Options{})
	must(t, err)
	defer nbd.Close() //nolint:errcheck // the daemon ends
	guest, err := vhostclient.Dial(openVhost(t, d), vhostclient.Options{Memory: 1 << 20})
	must(t, err)
	defer guest.Close() //nolint:errcheck // the daemon ends
	buf, err := guest.Memory.Alloc(64 << 10)
	must(t, err)
	for name, c := range map[string]client{"NBD": nbd, "vhost-user": guest, "vhost-user in pieces": pieces{guest, buf}} {
		b, canaries := canaryBlocks(64 << 10)
		_, err := c.WriteAt(b, 0)
		must(t, err)
		noneInRegisters(t, d, canaries, name+", a write")
		for _, n := range []int{512, 1024, 2048, 3584, 4096, 16384} {
			got := make([]byte, n)
			_, err := c.ReadAt(got, 1536)
			must(t, err)
			if !bytes.Equal(got, b[:n]) {
				t.Fatalf("%s: a read of %d bytes is wrong", name, n)
			}
			noneInRegisters(t, d, canaries, name+", a read")
			_, err = c.WriteAt(b[:n], 512)
			must(t, err)
			noneInRegisters(t, d, canaries, name+", a write of parts")
		}
	}
}

// TestHalfRequestLeavesNothing: what has come of a request is moved to where there
// is room for the rest.
func TestHalfRequestLeavesNothing(t *testing.T) {
	d := start(t, daemon.Options{})
	conn, err := net.Dial("unix", open(t, d, "--size", "8MiB", "--tenant", "t").Socket())
	must(t, err)
	c, err := nbdclient.New(conn, nbdclient.Options{SimpleReplies: true})
	must(t, err)
	defer c.Close() //nolint:errcheck // the daemon ends
	b, canaries := canaryBlocks(4096)
	write := func(cookie, off uint64) (request []byte) {
		request = binary.BigEndian.AppendUint32(request, 0x25609513)
		request = binary.BigEndian.AppendUint32(request, 1) // NBD_CMD_WRITE
		request = binary.BigEndian.AppendUint64(request, cookie)
		request = binary.BigEndian.AppendUint64(request, off)
		request = binary.BigEndian.AppendUint32(request, uint32(len(b)))
		return append(request, b...)
	}
	answered := func(cookie uint64) {
		t.Helper()
		reply := make([]byte, 16)
		_, err := io.ReadFull(conn, reply)
		must(t, err)
		if binary.BigEndian.Uint32(reply[4:]) != 0 || binary.BigEndian.Uint64(reply[8:]) != cookie {
			t.Fatalf("the reply is % x", reply)
		}
	}
	second := write(2, 4096)
	_, err = conn.Write(append(write(1, 0), second[:2000]...))
	must(t, err)
	answered(1)
	noneInRegisters(t, d, canaries, "half a request")
	_, err = conn.Write(second[2000:])
	must(t, err)
	answered(2)
	noneInRegisters(t, d, canaries, "the rest of it")
	got := make([]byte, len(b))
	_, err = c.ReadAt(got, 4096)
	must(t, err)
	if !bytes.Equal(got, b) {
		t.Error("the request that came in halves wrote other bytes")
	}
}
