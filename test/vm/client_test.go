//go:build vm

package vm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestL8ClientOfQEMU10 has the driver of vhost-user-blk in QEMU 10 (libblkio,
// which shares no code with QEMU's device) read and write a volume. It can not
// connect again, and the engine is killed under it.
func TestL8ClientOfQEMU10(t *testing.T) {
	ctx := limit(t, 2*time.Minute)
	p, err := FindPrograms()
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, 192<<20)
	image := "driver=virtio-blk-vhost-user,path=" + v.socket + ",cache.direct=on"

	// An image goes there, and is compared there and over NBD.
	r := rand.NewChaCha8([32]byte{5})
	path := filepath.Join(shortDir(t), "image")
	content := make([]byte, 24<<20)
	r.Read(content) //nolint:errcheck // it never fails
	clear(content[5<<20 : 9<<20])
	must(t, os.WriteFile(path, content, 0o600))
	must(t, os.Truncate(path, 192<<20))
	must(t, finish(p.Command(ctx, "usr/bin/qemu-img", "convert", "-n", "-f", "raw", path, "--target-image-opts", image)))
	compare := []string{"compare", "--image-opts", "driver=raw,file.driver=file,file.filename=" + path}
	must(t, finish(p.Command(ctx, "usr/bin/qemu-img", append(compare, "driver=raw,file."+strings.ReplaceAll(image, ",", ",file."))...)))
	must(t, finish(p.Command(ctx, "usr/bin/qemu-img", append(compare, "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+v.nbd)...)))

	q := startQemuIO(ctx, t, p, image)
	for n := range 12 {
		q.do(fmt.Sprintf("write -P %d %dk 64k", n+1, 64*n), "wrote 65536/65536")
		big := fmt.Sprintf("write -P %d %dk 1024k", n+1, 32<<10+1024*n)
		q.send(big)
		v.kill(t) // about now
		q.expect(big, "wrote 1048576/1048576")
		for m := range n + 1 {
			q.do(fmt.Sprintf("read -P %d %dk 64k", m+1, 64*m), "read 65536/65536")
			q.do(fmt.Sprintf("read -P %d %dk 1024k", m+1, 32<<10+1024*m), "read 1048576/1048576")
		}
	}
	q.do("discard 0 768k", "discard 786432/786432")
	q.do("read -P 0 0 768k", "read 786432/786432")
	q.do("write -z 32M 12M", "wrote 12582912/12582912")
	q.do("read -P 0 32M 12M", "read 12582912/12582912")
	q.end()

	for _, args := range [][]string{{"-c", "20000"}, {"-w", "-c", "20000"}, {"-c", "500", "-s", "1M"}, {"-w", "-c", "500", "-s", "1M", "--flush-interval", "100"}} {
		t.Logf("qemu-img bench %v: %s", args, bench(ctx, t, p, image, args...))
	}

	// Deep, and killed again and again: every write arrives.
	before := v.kills
	stop := v.killOften(ctx, 100*time.Millisecond)
	said := bench(ctx, t, p, image, "-w", "--pattern", "9", "-c", "150000")
	must(t, stop())
	t.Logf("while the engine was killed %d times: %s", v.kills-before, said)
	if v.kills-before < 3 {
		t.Errorf("the engine was killed only %d times", v.kills-before)
	}
	q = startQemuIO(ctx, t, p, image)
	q.do("read -P 9 0 192M", "read 201326592/201326592")
	q.end()
	v.open(t)
}

// bench runs qemu-img bench with 32 requests at once, which must finish, and
// returns what it says at the end.
func bench(ctx context.Context, t *testing.T, p Programs, image string, args ...string) string {
	t.Helper()
	cmd := p.Command(ctx, "usr/bin/qemu-img", append(append([]string{"bench", "-t", "none", "-d", "32"}, args...), "--image-opts", image)...)
	out, err := cmd.CombinedOutput()
	if err != nil || !regexp.MustCompile(`Run completed in [0-9.]+ seconds`).Match(out) {
		t.Fatalf("qemu-img bench %v: %v\n%s", args, err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// A qemuIO is a running qemu-io that reads commands.
type qemuIO struct {
	t     *testing.T
	in    io.WriteCloser
	lines chan string
	wait  func() error
}

func startQemuIO(ctx context.Context, t *testing.T, p Programs, image string) *qemuIO {
	t.Helper()
	cmd := p.Command(ctx, "usr/bin/qemu-io", "--image-opts", image)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	q := &qemuIO{t: t, in: in, lines: make(chan string, 64), wait: cmd.Wait}
	go func() {
		defer close(q.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			q.lines <- s.Text()
		}
	}()
	return q
}

// do gives a command and waits for the answer.
func (q *qemuIO) do(command, want string) {
	q.t.Helper()
	q.send(command)
	q.expect(command, want)
}

func (q *qemuIO) send(command string) {
	q.t.Helper()
	_, err := io.WriteString(q.in, command+"\n")
	must(q.t, err)
}

// expect waits for the answer to a command. A pattern that is not there, or an
// error, is another answer.
func (q *qemuIO) expect(command, want string) {
	q.t.Helper()
	timeout := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-q.lines:
			switch {
			case !ok:
				q.t.Fatalf("qemu-io ended at %q", command)
			case strings.Contains(line, want):
				return
			case strings.Contains(line, "fail") || strings.Contains(line, "rror"):
				q.t.Fatalf("qemu-io: %q: %s", command, line)
			}
		case <-timeout:
			q.t.Fatalf("qemu-io does not answer %q", command)
		}
	}
}

// end waits until it has ended as it should.
func (q *qemuIO) end() {
	q.t.Helper()
	must(q.t, q.in.Close())
	for line := range q.lines {
		if strings.Contains(line, "fail") || strings.Contains(line, "rror") {
			q.t.Errorf("qemu-io: %s", line)
		}
	}
	must(q.t, q.wait())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
