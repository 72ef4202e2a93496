package nbd

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
	"vacate/internal/plant"
)

// TestL3BuffersHoldNoPlaintext: once a request was answered, and the next one
// was, the connection's buffers hold nothing of it (N2, N3), whichever way it
// went. The bug plant.BufferNotCleared makes it fail.
func TestL3BuffersHoldNoPlaintext(t *testing.T) {
	if plant.Is(plant.BufferNotCleared) {
		t.Log("the bug is planted: this test must fail")
	}
	canary := bytes.Repeat([]byte("CANARY"), 1<<20)
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			m := newMemory(8 << 20)
			m.async = mode.async
			fail := false
			m.fail = func(r *blk.Request) syscall.Errno {
				if fail && r.Off >= 512<<10 {
					copy(r.Buf, canary) // a read that failed after it brought data
					return syscall.EIO
				}
				return 0
			}
			cfg := m.config()
			cfg.QueueDepth = mode.depth
			s := alone(t, cfg)
			c := client(t, s, mode.options)
			flushed := func(what string) {
				t.Helper()
				if err := c.Flush(); err != nil {
					t.Fatal(err)
				}
				for name, b := range buffers(t, s) {
					if bytes.Contains(b, canary[:64]) {
						t.Errorf("after %s the %s buffer holds plaintext", what, name)
					}
				}
			}
			for _, n := range []int{512, 4096, 128 << 10, 256 << 10, 3 << 20} {
				if err := c.WriteFlags(canary[:n], 0, 0); err != nil {
					t.Fatal(err)
				}
				flushed("a write")
				if err := c.ReadFlags(make([]byte, n), 0, 0); err != nil {
					t.Fatal(err)
				}
				flushed("a read")
			}
			if _, err := (nbdclient.Load{Pattern: nbdclient.RandomRead, Span: 2 << 20, BlockSize: 128 << 10, Requests: 100}).Run(c); err != nil {
				t.Fatal(err)
			}
			flushed("many reads")

			end := c.Size()
			for _, n := range []int{4096, 2 << 20, 5 << 20} {
				if err := c.WriteFlags(canary[:n], end, 0); !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("write behind the end: %v", err)
				}
				flushed("a write that was refused")
			}
			m.with(func() { fail = true })
			for _, n := range []int{4096, 512 << 10} {
				if err := c.WriteFlags(canary[:n], 512<<10, 0); !errors.Is(err, syscall.EIO) {
					t.Fatalf("write that fails: %v", err)
				}
				flushed("a write that failed")
				if err := c.ReadFlags(make([]byte, n), 512<<10, 0); !errors.Is(err, syscall.EIO) {
					t.Fatalf("read that fails: %v", err)
				}
				flushed("a read that failed")
			}
		})
	}
}

// TestL3SearchFindsPlaintext is the control of the test above: while a request
// is under way, the same search finds it.
func TestL3SearchFindsPlaintext(t *testing.T) {
	canary := bytes.Repeat([]byte("CANARY"), 1000)
	m := newMemory(1 << 20)
	m.hang = make(chan struct{})
	s := alone(t, m.config())
	c := client(t, s, nbdclient.Options{})
	answered := make(chan error, 1)
	go func() { answered <- c.WriteFlags(canary[:4096], 0, 0) }()
	eventually(t, "the receive buffer holds the payload", func() bool {
		rx := buffers(t, s)["receive"]
		return rx != nil && bytes.Contains(rx, canary[:64])
	})
	close(m.hang)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

// buffers returns the two buffers of s's only connection.
func buffers(t *testing.T, s *Server) map[string][]byte {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) != 1 {
		t.Fatalf("%d connections, want 1", len(s.conns))
	}
	for c := range s.conns {
		c.mu.Lock()
		defer c.mu.Unlock()
		return map[string][]byte{"receive": c.rx, "send": c.tx}
	}
	return nil
}

// TestMoveTo: what is moved leaves nothing behind.
func TestMoveTo(t *testing.T) {
	for _, tt := range []struct{ head, tail int }{{0, 0}, {10, 10}, {10, 12}, {3, 100}, {60, 100}} {
		r, err := mem.Map(128, mem.TryLock)
		if err != nil {
			t.Fatal(err)
		}
		c := &conn{rx: r.Bytes(), head: tt.head, tail: tt.tail}
		c.rxUse.init(128)
		for i := tt.head; i < tt.tail; i++ {
			c.rx[i] = byte(i)
		}
		c.moveTo(&c.rxUse.rim)
		n := tt.tail - tt.head
		if c.head != 0 || c.tail != n {
			t.Errorf("[%d:%d] moved to [%d:%d]", tt.head, tt.tail, c.head, c.tail)
		}
		for i, v := range c.rx {
			if want := byte(tt.head + i); i < n && v != want || i >= n && v != 0 {
				t.Errorf("[%d:%d]: byte %d is %d", tt.head, tt.tail, i, v)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
