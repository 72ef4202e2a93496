package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vacate/test/daemon"
)

// TestL8QemuReconnects: QEMU's own NBD client, told to connect again, sees
// neither an error nor a wrong byte when the engine is killed under it.
func TestL8QemuReconnects(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "16MiB")
	q := startQemuIO(t, "driver=nbd,reconnect-delay=30,server.type=unix,server.path="+l.Socket())
	for n := range 10 {
		q.do(t, fmt.Sprintf("write -P %d %dk 64k", n+1, 64*n), "wrote 65536/65536")
		kill(t, d, "engine")
		for m := range n + 1 {
			q.do(t, fmt.Sprintf("read -P %d %dk 64k", m+1, 64*m), "read 65536/65536")
		}
		q.do(t, fmt.Sprintf("read -P 0 %dk 64k", 64*(n+1)), "read 65536/65536")
	}
	if s := show(t, d, l.ID); s.State != "open" {
		t.Errorf("state %s", s.State)
	}
}

// A qemuIO is a running qemu-io that reads commands.
type qemuIO struct {
	in    io.WriteCloser
	lines chan string
}

func startQemuIO(t *testing.T, image string) *qemuIO {
	t.Helper()
	cmd := exec.Command("qemu-io", "--image-opts", image)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	q := &qemuIO{in: in, lines: make(chan string, 64)}
	go func() {
		defer close(q.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			q.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		in.Close()         //nolint:errcheck // ends it
		cmd.Process.Kill() //nolint:errcheck // if that did not
		cmd.Wait()         //nolint:errcheck // killed
	})
	return q
}

// do gives a command and waits for the answer. A pattern that is not there, or an
// error, is another answer.
func (q *qemuIO) do(t *testing.T, command, want string) {
	t.Helper()
	_, err := io.WriteString(q.in, command+"\n")
	must(t, err)
	timeout := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-q.lines:
			switch {
			case !ok:
				t.Fatalf("qemu-io ended at %q", command)
			case strings.Contains(line, want):
				return
			case strings.Contains(line, "fail") || strings.Contains(line, "rror"):
				t.Fatalf("qemu-io: %q: %s", command, line)
			}
		case <-timeout:
			t.Fatalf("qemu-io does not answer %q", command)
		}
	}
}
