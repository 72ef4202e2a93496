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
	ready := filepath.Join(dir, "pid") // written when it listens
	cmd := exec.Command("qemu-storage-daemon", "--pidfile", ready,
		"--blockdev", "driver=file,node-name=f,discard=unmap,filename="+disk,
		"--export", fmt.Sprintf("type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=%d,addr.type=unix,addr.path=%s", queues, socket))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: install qemu-system-common (make test-packages)", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it says why itself, or is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
	})
	for range 3000 {
		if _, err := os.Stat(ready); err == nil {
			return socket
		}
		select {
		case <-ended:
			t.Fatalf("qemu-storage-daemon has ended: %v", cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("qemu-storage-daemon does not come to listen")
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
