package vhostclient

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startQSD starts QEMU's storage daemon, an independent server, on a new raw file of
// size bytes, and returns its socket.
func startQSD(t testing.TB, size int64, queues int) string {
	t.Helper()
	dir := t.TempDir()
	disk, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "s")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=f,discard=unmap,filename="+disk,
		"--export", fmt.Sprintf("type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=%d,addr.type=unix,addr.path=%s", queues, socket))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install qemu-utils (make test-packages)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // it was killed
	})
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("qemu-storage-daemon makes no socket")
	return ""
}

func dialTest(t testing.TB, socket string, o Options) *Client {
	t.Helper()
	c, err := Dial(socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}
