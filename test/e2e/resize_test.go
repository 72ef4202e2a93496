package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vacate/internal/nbdclient"
	"vacate/internal/vhostclient"
	"vacate/test/daemon"
)

// TestResize: a volume gets larger under its client, which goes on; the next one
// sees its size; and whichever process dies, it has the size that it was given.
func TestResize(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "16MiB")
	c := dial(t, l)
	size := int64(16 << 20)
	want := bytes.Repeat([]byte{0x5a}, 1<<20)
	write(t, c, size-1<<20, want)
	for _, child := range []string{"", "engine", "control"} {
		was := size
		size += 40 << 20
		if _, err := d.Run("lease", "resize", l.ID, "--size", fmt.Sprint(size)); err != nil {
			t.Fatal(err)
		}
		if child == "" { // the connection is the same
			write(t, c, 0, []byte("still there"))
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		} else {
			kill(t, d, child)
		}
		next := dialAgain(t, l)
		if next.Size() != size {
			t.Fatalf("after the end of %q: %d bytes, want %d", child, next.Size(), size)
		}
		got := make([]byte, size-15<<20)
		if _, err := next.ReadAt(got, 15<<20); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:1<<20], want) {
			t.Error("what was written is other bytes")
		}
		fresh := got[was-15<<20:]
		if len(bytes.Trim(fresh, "\x00")) != 0 {
			t.Error("L4: what is new does not read as zeros")
		}
		write(t, next, size-4096, []byte("at the new end"))
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		next = dialAgain(t, l)
		end := make([]byte, 14)
		if _, err := next.ReadAt(end, size-4096); err != nil || string(end) != "at the new end" {
			t.Errorf("at the new end: %q, %v", end, err)
		}
		if err := next.Close(); err != nil {
			t.Error(err)
		}
		eventually(t, "control to return", func() error {
			var s struct {
				SizeBytes int64 `json:"sizeBytes"`
			}
			if err := d.JSON(&s, "lease", "show", l.ID); err != nil {
				return err
			}
			if s.SizeBytes != size {
				t.Fatalf("after the end of %q: %d bytes are shown, want %d", child, s.SizeBytes, size)
			}
			return nil
		})
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
	if s := show(t, d, l.ID); s.State != "closed" || s.Result != "ok" {
		t.Errorf("%+v", s)
	}
}

// TestResizeSeenByClients: other programs see the new size, and verify what lies in
// it, with load on the volume while it grows.
func TestResizeSeenByClients(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "64MiB")
	v := nbdclient.Verify{Target: l.URI(), Lease: l.ID, Seed: 7, Connections: 2, Depth: 8}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() {
		report, err := v.Run(ctx)
		if err = errors.Join(err, report.Err()); err == nil && report.Reconnects != 0 {
			err = fmt.Errorf("%d connections broke: %w", report.Reconnects, report.LastBreak)
		}
		done <- err
	}()
	for size := 128; size <= 512; size += 128 {
		if _, err := d.Run("lease", "resize", l.ID, "--size", fmt.Sprintf("%dMiB", size)); err != nil {
			t.Fatal(err)
		}
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		err := json.Unmarshal([]byte(command(t, "qemu-img", "info", "--output=json", "-f", "raw", l.URI())), &info)
		if err != nil || info.Size != int64(size)<<20 {
			t.Errorf("qemu-img sees %d bytes, %v; want %d MiB", info.Size, err, size)
		}
		if out := strings.TrimSpace(command(t, "nbdinfo", "--size", l.URI())); out != fmt.Sprint(size<<20) {
			t.Errorf("nbdinfo sees %s bytes, want %d MiB", out, size)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestResizeTellsFrontends: a session over vhost-user, whose frontend never connects
// again, is told of each new size, reads zeros where the volume is new, and goes on,
// also with the next engine.
func TestResizeTellsFrontends(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "16MiB", "--export", "nbd,vhost-user")
	c, err := vhostclient.Dial(l.Exports[1].Socket, vhostclient.Options{Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // done
	size := int64(16 << 20)
	want := make([]byte, size)
	put := func(off int64, b []byte) {
		t.Helper()
		if _, err := c.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], b)
	}
	put(0, bytes.Repeat([]byte{1}, 1<<20))
	for round := range 4 {
		put(size-64<<10, bytes.Repeat([]byte{byte(2 + round)}, 64<<10))
		size += 24 << 20
		if _, err := d.Run("lease", "resize", l.ID, "--size", fmt.Sprint(size)); err != nil {
			t.Fatal(err)
		}
		want = slices.Concat(want, make([]byte, size-int64(len(want))))
		timeout := time.After(20 * time.Second)
		for c.Size() != size {
			select {
			case <-c.Changes():
				if err := c.Refresh(); err != nil {
					t.Fatal(err)
				}
			case <-timeout:
				t.Fatalf("the frontend was not told: it knows %d bytes, the volume has %d", c.Size(), size)
			}
		}
		if round == 2 {
			kill(t, d, "engine")
		}
		got := make([]byte, size)
		if _, err := c.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("L4: resize %d: the frontend reads other bytes", round)
		}
	}
	nc := dialAgain(t, l)
	got := make([]byte, nc.Size())
	if _, err := nc.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("over NBD it reads %d bytes, other ones: %v", len(got), err)
	}
	if err := nc.Close(); err != nil {
		t.Error(err)
	}
}
