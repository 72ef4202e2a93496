package nbd

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/nbdclient"
)

// TestCloseHungDrive: Close returns at once though a drive never answers, the
// client is cut off, and Wait returns when the drive does (S1, S2, N4).
func TestCloseHungDrive(t *testing.T) {
	for _, async := range []bool{false, true} {
		m := newMemory(1 << 20)
		m.async = async
		m.hang = make(chan struct{})
		s, path := serve(t, m.config())
		c, err := nbdclient.Dial(path, nbdclient.Options{})
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan error, 1)
		go func() { answered <- c.WriteFlags(make([]byte, 4096), 0, 0) }()
		eventually(t, "the write is in flight", func() bool { return m.entered.Load() > 0 })

		start := time.Now()
		s.Close()
		s.Close() // a second time does nothing
		if took := time.Since(start); took > time.Minute {
			t.Errorf("Close took %v with a hung drive", took)
		}
		var failed *nbdclient.Error
		if err := <-answered; err == nil || errors.As(err, &failed) {
			t.Errorf("write over Close: %v, want the connection's end", err)
		}
		ended := make(chan struct{})
		go func() { s.Wait(); close(ended) }()
		select {
		case <-ended:
			t.Error("Wait returned with a request in flight")
		case <-time.After(50 * time.Millisecond):
		}
		close(m.hang)
		<-ended
	}
}

// TestCloseBlocked: Close wakes clients in every state.
func TestCloseBlocked(t *testing.T) {
	s, path := serve(t, newMemory(1<<20).config())
	idle, err := nbdclient.Dial(path, nbdclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rawConnect(t, s) // in the handshake
	half := rawConnect(t, s)
	half.enter()
	half.write(command(0, cmdWrite, 1, 0, 4096))
	deaf := rawConnect(t, s)
	deaf.enter()
	for i := range uint64(100) {
		deaf.write(command(0, cmdRead, i, 0, 128<<10))
	}
	eventually(t, "all are there", func() bool { return s.Stats().Connections == 4 })
	stop(t, s)
	if err := idle.Flush(); err == nil {
		t.Error("flush after Close succeeded")
	}
	// The socket is still the caller's: nobody is served there.
	if _, err := nbdclient.Dial(path, nbdclient.Options{Timeout: 50 * time.Millisecond}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("dial after Close: %v, want no answer", err)
	}
	// A connection that was accepted too late is closed.
	late := connect(t, s)
	if n, err := late.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a connection after Close: %d bytes, %v", n, err)
	}
}

// TestShutVolume: a volume that was shut answers each request with ESHUTDOWN
// and a text, and the connection stays until Close.
func TestShutVolume(t *testing.T) {
	m := newMemory(1 << 20)
	m.fail = func(*blk.Request) syscall.Errno { return syscall.ESHUTDOWN }
	c := client(t, alone(t, m.config()), nbdclient.Options{})
	for range 3 {
		err := c.ReadFlags(make([]byte, 512), 0, 0)
		var failed *nbdclient.Error
		if !errors.As(err, &failed) || failed.Errno != syscall.ESHUTDOWN || failed.Text != "the lease of this volume is closed" {
			t.Errorf("read of a shut volume: %v", err)
		}
	}
}

// TestFlags: what a client asks for reaches the volume.
func TestFlags(t *testing.T) {
	m := newMemory(1 << 20)
	var seen []blk.Flags
	m.fail = func(r *blk.Request) syscall.Errno { seen = append(seen, r.Flags); return 0 }
	c := client(t, alone(t, m.config()), nbdclient.Options{})
	for _, err := range []error{
		c.WriteFlags(make([]byte, 512), 0, nbdclient.FUA),
		c.WriteFlags(make([]byte, 512<<10), 0, nbdclient.FUA),
		c.Zero(0, 4096, nbdclient.FUA|nbdclient.NoHole),
		c.Zero(0, 4096, nbdclient.FastZero),
		c.Trim(0, 4096, nbdclient.FUA),
		c.ReadFlags(make([]byte, 512), 0, nbdclient.FUA|nbdclient.DF),
		c.Flush(),
		c.Cache(0, 4096),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	want := []blk.Flags{blk.FUA, blk.FUA, blk.FUA, blk.FUA | blk.NoHole, 0, blk.FUA, 0, 0}
	m.with(func() {
		if !slices.Equal(seen, want) {
			t.Errorf("requests with flags %v reached the volume, want %v", seen, want)
		}
		if m.flushes != 1 {
			t.Errorf("%d flushes, want 1", m.flushes)
		}
	})
}
