package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/ipc"
)

// TestConnects: the process connects to the daemon whenever it comes, and to the next;
// one that is long about a call does not keep the next from it.
func TestConnects(t *testing.T) {
	dir := t.TempDir()
	c := Config{Socket: filepath.Join(dir, "s"), RunDir: dir, Log: slog.New(slog.DiscardHandler), patience: dialDelays{time.Millisecond, 2 * time.Millisecond, time.Minute}}
	ctx, cancel := context.WithCancel(t.Context())
	begun, long, done := make(chan bool, 1), make(chan bool), make(chan bool)
	files := make(chan *os.File, 1)
	go func() {
		defer close(done)
		c.serve(ctx, func(_ context.Context, method string, _ []byte, _ []*os.File) (any, error) {
			if method != "long" {
				return ipc.Empty{}, nil
			}
			f, err := os.Open(os.DevNull)
			files <- f
			begun <- true
			<-long
			return ipc.WithFiles{Body: ipc.Empty{}, Files: []*os.File{f}}, err
		})
	}()
	time.Sleep(20 * time.Millisecond) // there is no daemon
	for range 3 {
		p := &process{t: t, l: listen(t, c.Socket)}
		cl := p.client()
		if err := cl.Call(t.Context(), "short", ipc.Empty{}, &ipc.Empty{}); err != nil {
			t.Error(err)
		}
		cl.Close() // which it may be because another one has connected
		cl = p.client()
		if len(files) == 0 {
			go cl.Call(t.Context(), "long", ipc.Empty{}, &ipc.Empty{}) // its daemon ends
			<-begun
		}
		p.l.Close()
		cl.Close()
	}
	cancel()
	select {
	case <-done:
		t.Error("it has ended, and a call goes on")
	case <-time.After(20 * time.Millisecond):
	}
	close(long)
	<-done
	if err := (<-files).Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a file that nobody was there for: %v", err)
	}
}

// TestMayAsk: who is not one of the users gives no orders.
func TestMayAsk(t *testing.T) {
	dir := t.TempDir()
	l := listen(t, filepath.Join(dir, "s"))
	c, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	me := uint32(os.Geteuid())
	if err := mayAsk(f, 4242, me); err != nil {
		t.Error(err)
	}
	if err := mayAsk(f, 4242, me+1); err == nil || !strings.Contains(err.Error(), "may not ask") {
		t.Errorf("another user: %v", err)
	}
}

// TestStranger: a socket that another user made in the daemon's folder is not served.
func TestStranger(t *testing.T) {
	if os.Geteuid() != 0 {
		return // only root can be another user
	}
	dir, err := os.MkdirTemp("", "v") // which others reach
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	c := Config{Socket: filepath.Join(dir, "s"), RunDir: dir}
	for uid, owner := range map[int]int{4242: 0, 4243: 4243} {
		if err := os.Chown(dir, owner, -1); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), strangerEnv+"="+c.Socket)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err = c.converse(ctx, nil)
		cancel()
		if stranger := uid != owner; stranger != (err != nil && strings.Contains(err.Error(), fmt.Sprintf("uid %d may not ask", uid))) {
			t.Errorf("uid %d, in the folder of %d: %v", uid, owner, err)
		}
		cmd.Process.Kill()
		cmd.Wait() // it was killed
		os.Remove(c.Socket)
	}
}
