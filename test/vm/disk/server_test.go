package disk

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

func serve(t *testing.T, d *Disk) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "vd")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- d.Serve(l) }()
	t.Cleanup(func() {
		l.Close()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serving: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not end")
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// TestServe drives the server with our own client: bytes, FUA and flushes arrive.
func TestServe(t *testing.T) {
	d := New(NewSupply(), 1<<20)
	socket := serve(t, d)
	for _, o := range []nbdclient.Options{{}, {OldStyle: true}} {
		o.SimpleReplies = true
		c, err := nbdclient.Dial(socket, o)
		if err != nil {
			t.Fatal(err)
		}
		if c.Size() != 1<<20 {
			t.Errorf("size %d", c.Size())
		}
		want := bytes.Repeat([]byte("vacate! "), 1024)
		if _, err := c.WriteAt(want, 4096); err != nil {
			t.Fatal(err)
		}
		if err := c.WriteFlags(want, 65536, 1); err != nil { // FUA
			t.Fatal(err)
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read back: %v, equal %v", err, bytes.Equal(got, want))
		}
		if err := c.WriteFlags(want, 1<<20-512, 0); err == nil {
			t.Error("a write behind the end was taken")
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if s := d.Stats(); s.Flushes != 2 || s.FUA != 2 || s.Writes != 4 || s.Reads != 2 {
		t.Errorf("the disk saw %+v", s)
	}
}

// TestServeQEMU lets QEMU, whose machines use the server, write and flush.
func TestServeQEMU(t *testing.T) {
	d := New(NewSupply(), 1<<20)
	socket := serve(t, d)
	out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 0x5a 8k 4k", "-c", "flush", "-c", "read -P 0x5a 8k 4k",
		"nbd+unix:///?socket="+socket).CombinedOutput()
	if err != nil || strings.Contains(string(out), "fail") {
		t.Fatalf("qemu-io (package qemu-utils): %v\n%s", err, out)
	}
	if got := at(t, d, 16); got != 0x5a {
		t.Errorf("sector 16 holds %#x", got)
	}
	if s := d.Stats(); s.Writes != 1 || s.Flushes < 1 {
		t.Errorf("the disk saw %+v", s)
	}
}

// TestServeCut: without power nothing is answered, and the client's end is the
// connection's.
func TestServeCut(t *testing.T) {
	s := NewSupply()
	d := New(s, 1<<20)
	c, err := nbdclient.Dial(serve(t, d), nbdclient.Options{SimpleReplies: true, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s.Cut()
	if _, err := c.ReadAt(make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "timeout") {
		t.Errorf("reading without power: %v", err)
	}
	c.Abort() //nolint:errcheck // it has ended
}

// FuzzSession feeds the server what a client might send: it ends, and never
// allocates without bound.
func FuzzSession(f *testing.F) {
	hello := []byte{0, 0, 0, 3}
	option := append([]byte("IHAVEOPT"), 0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0)
	request := append([]byte{0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1}, make([]byte, 16)...)
	f.Add(append(append(hello[:4:4], option...), append(request, append([]byte{0, 0, 2, 0}, make([]byte, 512)...)...)...))
	f.Add([]byte("\x00\x00\x00\x01IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := NewSupply()
		d := New(s, 1<<16)
		rw := struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(in), io.Discard}
		d.serveConn(rw) //nolint:errcheck // any end will do
	})
}
