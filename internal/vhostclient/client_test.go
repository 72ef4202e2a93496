package vhostclient

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// TestClient does what there is to do, in every shape of ring but the one without a
// call descriptor: QEMU 7.2 ends when it is given none.
func TestClient(t *testing.T) {
	const size = 64 << 20
	socket := startQSD(t, size, 2)
	for _, o := range []Options{
		{}, {Direct: true}, {NoEvent: true}, {Direct: true, NoEvent: true}, {QueueSize: 8, Direct: true},
		{Queues: 2, Regions: 8}, {MemSlots: true, Regions: 20},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			c := dialTest(t, socket, o)
			if c.Size() != size || c.BlockSize() != 512 {
				t.Fatalf("size %d, block size %d", c.Size(), c.BlockSize())
			}
			work(t, c)
			if err := c.Restart(); err != nil {
				t.Fatal(err)
			}
			work(t, c)
		})
	}
}

// work writes, reads, zeroes, trims and flushes.
func work(t *testing.T, c *Client) {
	t.Helper()
	p := make([]byte, 3<<20+512)
	rng := rand.New(rand.NewPCG(1, uint64(len(p))))
	for i := 0; i+8 <= len(p); i += 8 {
		putRandom(p[i:], rng)
	}
	check := func(_ int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const off = 4096 + 512
	check(c.WriteAt(p, off))
	got := make([]byte, len(p))
	check(c.ReadAt(got, off))
	if !bytes.Equal(got, p) {
		t.Fatal("what was written is not what is read")
	}
	check(0, c.Flush())
	check(0, c.Zero(off, 1<<20, Unmap))
	check(0, c.Trim(off+1<<20, 1<<20))
	check(c.ReadAt(got, off))
	if !bytes.Equal(got[:1<<20], make([]byte, 1<<20)) || !bytes.Equal(got[2<<20:], p[2<<20:]) {
		t.Fatal("zeroes are not zeros, or too many")
	}
	if id, err := c.ID(); err != nil || id == "" {
		t.Fatalf("id %q, %v", id, err)
	}
	var failed *Error
	if _, err := c.ReadAt(got[:512], c.Size()); !errors.As(err, &failed) || failed.Errno != syscall.EIO {
		t.Fatalf("a read behind the end: %v, want EIO", err)
	}
}

func TestLoad(t *testing.T) {
	socket := startQSD(t, 64<<20, 1)
	for _, l := range []Load{
		{Poll: true}, {}, {Pattern: RandomWrite, Poll: true}, {Pattern: SequentialRead, BlockSize: 128 << 10, Depth: 8},
		{Pattern: SequentialWrite, Flush: true, Depth: 1},
	} {
		t.Run(fmt.Sprintf("%v %d poll=%v", l.Pattern, l.Depth, l.Poll), func(t *testing.T) {
			c := dialTest(t, socket, Options{})
			l.Requests, l.Seed = 2000, 7
			r, err := l.Run(c)
			if err != nil {
				t.Fatal(err)
			}
			want := int64(l.BlockSize)
			if want == 0 {
				want = 4096
			}
			if r.Requests != 2000 || r.Errors != 0 || r.Bytes != 2000*want || r.P50 <= 0 || r.P50 > r.P999 || r.Elapsed <= 0 {
				t.Errorf("%+v", r)
			}
			t.Log(r)
		})
	}
}

// TestLoadErrors counts requests that fail, and does not take them for work.
func TestLoadErrors(t *testing.T) {
	c := dialTest(t, startQSD(t, 1<<20, 1), Options{})
	c.configMu.Lock()
	c.config[1] = 0xff // a capacity that the device does not have
	c.configMu.Unlock()
	r, err := Load{Requests: 100, Off: 2 << 20}.Run(c)
	if err != nil || r.Errors != 100 || r.Bytes != 0 || r.FirstError != syscall.EIO {
		t.Errorf("%+v, %v; want 100 errors of EIO", r, err)
	}
}

// TestLoadDeaf: a device that answers no more ends a load, poll or not.
func TestLoadDeaf(t *testing.T) {
	for _, poll := range []bool{true, false} {
		c := dialTest(t, startQSD(t, 1<<20, 1), Options{})
		if err := c.Stop(); err != nil {
			t.Fatal(err)
		}
		c.Conn.timeout = 200 * time.Millisecond
		if r, err := (Load{Requests: 10, Poll: poll}).Run(c); err == nil {
			t.Errorf("poll %v: a stopped device answered: %+v", poll, r)
		}
	}
}
