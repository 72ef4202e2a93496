package nbdclient

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestSocket: the socket is in transmission, and its replies are simple ones.
func TestSocket(t *testing.T) {
	v := newVictim(t, 1<<20)
	v.data[4096] = 7
	f, e, err := Socket(t.Context(), v.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if e.Size != 1<<20 || e.Flags&HasFlags == 0 || e.BlockSizes[0] != 512 {
		t.Errorf("the export is %+v", e)
	}
	b := make([]byte, 28)
	putRequest(b, 0, cmdRead, 99, 4096, 512)
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 16+512)
	if _, err := io.ReadFull(f, answer); err != nil {
		t.Fatal(err)
	}
	if binary.BigEndian.Uint32(answer) != simpleMagic || binary.BigEndian.Uint64(answer[8:]) != 99 || answer[16] != 7 {
		t.Errorf("a read is answered with %x", answer[:17])
	}
}

// TestSocketWaits: for a server that says nothing, until its context ends.
func TestSocketWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if f, _, err := Socket(ctx, path); f != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that says nothing: %v, %v", f, err)
	}
	if _, _, err := Socket(t.Context(), path+"x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, _, err := Socket(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
}
