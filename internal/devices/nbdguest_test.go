//go:build vm

package devices

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdctl"
)

// The tests of this file need the kernel's nbd driver, and are run in a machine of
// test/vm (TestDevicesNBD there).

// qemuEnv has this program become qemu-nbd for the file that it names.
const qemuEnv = "VACATE_TEST_FILE"

func init() {
	file := os.Getenv(qemuEnv)
	if file == "" {
		return
	}
	// The socket comes as sd_listen_fds(3) has it, which wants the pid told.
	env := append(os.Environ(), "LISTEN_FDS=1", fmt.Sprintf("LISTEN_PID=%d", os.Getpid()))
	err := syscall.Exec("/usr/bin/qemu-nbd", []string{"qemu-nbd", "--persistent", "--shared=8", "--format=raw", "--discard=unmap", file}, env)
	fmt.Fprintln(os.Stderr, "starting qemu-nbd:", err)
	os.Exit(1)
}

// A qemuNBD is a server whose listening socket stays while it is away, as the keeper
// holds that of a lease.
type qemuNBD struct {
	t            *testing.T
	socket, file string
	listen       *os.File
	cmd          *exec.Cmd
}

func newQemu(t *testing.T, run string, size int64) *qemuNBD {
	t.Helper()
	q := &qemuNBD{t: t, socket: filepath.Join(run, "leases", nbdLease, "nbd.sock"), file: filepath.Join(run, "disk")}
	nbdMust(t, os.MkdirAll(filepath.Dir(q.socket), 0o755))
	nbdMust(t, os.WriteFile(q.file, nil, 0o600))
	nbdMust(t, os.Truncate(q.file, size))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: q.socket, Net: "unix"})
	nbdMust(t, err)
	q.listen, err = l.File()
	nbdMust(t, err)
	q.start()
	t.Cleanup(q.kill)
	return q
}

func (q *qemuNBD) start() {
	q.t.Helper()
	self, err := os.Executable()
	nbdMust(q.t, err)
	q.cmd = exec.Command(self)
	q.cmd.Env = append(os.Environ(), qemuEnv+"="+q.file)
	q.cmd.Stderr, q.cmd.ExtraFiles = os.Stderr, []*os.File{q.listen}
	nbdMust(q.t, q.cmd.Start())
}

func (q *qemuNBD) kill() {
	q.cmd.Process.Kill() //nolint:errcheck // it may have ended
	q.cmd.Wait()         //nolint:errcheck // it was killed
}

func nbdMust(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// nbdPage is a page of memory that O_DIRECT takes.
func nbdPage(t *testing.T) []byte {
	t.Helper()
	p, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	nbdMust(t, err)
	return p
}

func openDirect(t *testing.T, node string) *os.File {
	t.Helper()
	f, err := os.OpenFile(node, os.O_RDWR|syscall.O_DIRECT, 0)
	nbdMust(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func openGuest(t *testing.T, run string) *nbdDriver {
	t.Helper()
	c := &Config{RunDir: run, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), exit: os.Exit}
	d, err := openNBD(c, false)
	nbdMust(t, err)
	return d.(*nbdDriver)
}

// nbdWriters write random blocks and read them back, each its own, until they are
// stopped.
type nbdWriters struct {
	t       *testing.T
	stopped atomic.Bool
	count   atomic.Int64
	ended   sync.WaitGroup
}

func newWriters(t *testing.T, f *os.File, size int64) *nbdWriters {
	const writers = 8
	w := &nbdWriters{t: t}
	for n := range writers {
		p, q := nbdPage(t), nbdPage(t)
		r := rand.New(rand.NewPCG(1, uint64(n)))
		w.ended.Go(func() {
			for !w.stopped.Load() {
				for i := range p {
					p[i] = byte(r.Uint32())
				}
				off := (r.Int64N(size/4096/writers)*writers + int64(n)) * 4096
				if _, err := f.WriteAt(p, off); err != nil {
					t.Errorf("writing at %d: %v", off, err)
					return
				}
				if _, err := f.ReadAt(q, off); err != nil {
					t.Errorf("reading at %d: %v", off, err)
					return
				}
				if !bytes.Equal(p, q) {
					t.Errorf("at %d something else is read than was written", off)
					return
				}
				w.count.Add(1)
			}
		})
	}
	return w
}

func (w *nbdWriters) stop() {
	w.stopped.Store(true)
	w.ended.Wait()
}

// goOn waits until all writers have gone on, and returns how long that took.
func (w *nbdWriters) goOn() time.Duration {
	w.t.Helper()
	start, from := time.Now(), w.count.Load()
	for w.count.Load() < from+200 {
		if time.Since(start) > 20*time.Second || w.t.Failed() {
			w.t.Fatalf("%d writes within %v", w.count.Load()-from, time.Since(start))
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(start)
}

// TestNBDKernel has the real driver make a device of a server that is killed again and
// again.
func TestNBDKernel(t *testing.T) {
	run := t.TempDir()
	const size = 64 << 20
	q := newQemu(t, run, size)
	d := openGuest(t, run)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	req := &ipc.DeviceMakeRequest{Lease: nbdLease, SizeBytes: size, LogicalBlock: 4096, UID: 1234, Socket: q.socket}
	attach := func() string {
		t.Helper()
		_, _, err := d.make(ctx, req)
		nbdMust(t, err)
		node, err := d.start(ctx, nbdLease, 0)
		nbdMust(t, err)
		return node
	}
	node := attach()
	dir := "/sys/block/" + filepath.Base(node) + "/"
	for file, want := range map[string]string{
		"backend": nbdPrefix(run) + nbdLease, "size": fmt.Sprint(size / 512), "queue/logical_block_size": "4096",
		"queue/write_cache": "write back", "queue/fua": "1", "queue/io_timeout": fmt.Sprint(nbdPatience.Milliseconds()),
	} {
		if b, err := os.ReadFile(dir + file); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %q, %v, want %q", file, b, err, want)
		}
	}
	st, err := os.Stat(node)
	nbdMust(t, err)
	if uid := st.Sys().(*syscall.Stat_t).Uid; uid != req.UID || st.Mode().Perm() != 0o600 {
		t.Errorf("%s is %v of uid %d", node, st.Mode(), uid)
	}

	f := openDirect(t, node)
	w := newWriters(t, f, size)
	defer w.stop()
	for range 3 {
		w.goOn()
		q.kill()
		away := time.Duration(rand.Int64N(int64(500 * time.Millisecond)))
		time.Sleep(away)
		q.start()
		t.Logf("away for %v, back %v after", away, w.goOn())
	}
	// The next process finds out that the connection died while it was not there.
	nbdMust(t, d.close())
	q.kill()
	time.Sleep(100 * time.Millisecond)
	d = openGuest(t, run)
	q.start()
	t.Logf("with a new process: back after %v", w.goOn())
	if again := attach(); again != node { // as control asks of each engine
		t.Errorf("attached again it is %s, not %s", again, node)
	}
	w.stop()

	nbdMust(t, os.Truncate(q.file, 2*size))
	q.kill() // as an engine ends connections for a resize
	q.start()
	code(t, d.resize(ctx, nbdLease, 2*size), ipc.CodeUnsupported, node, "attach")
	code(t, d.remove(ctx, nbdLease, false), ipc.CodeBusy, node, fmt.Sprint(os.Getpid()))
	nbdMust(t, f.Close())
	nbdMust(t, d.resize(ctx, nbdLease, 2*size))
	if got, err := d.kernel.Size(0); got != 2*size || err != nil {
		t.Errorf("resized it has %d bytes, %v", got, err)
	}
	f = openDirect(t, node)
	if _, err := f.WriteAt(nbdPage(t), 2*size-4096); err != nil {
		t.Errorf("writing at the new end: %v", err)
	}
	clean(t)

	nbdMust(t, d.remove(ctx, nbdLease, true))
	if _, err := f.WriteAt(nbdPage(t), 0); err == nil {
		t.Error("a device that was removed is written")
	}
	if all, err := d.list(ctx); err != nil || len(all) != 0 {
		t.Errorf("list: %+v, %v", all, err)
	}
	req.SizeBytes = 2 * size
	if next := attach(); next == node {
		t.Errorf("%s is attached while another has it open", next)
	}
	nbdMust(t, f.Close())
	nbdMust(t, d.remove(ctx, nbdLease, false))
	if marks, err := d.kernel.List(); err != nil || len(marks) != 0 {
		t.Errorf("left over: %v, %v", marks, err)
	}
	if p, err := d.kernel.Patience(0); p != nbdctl.DefaultPatience || err != nil {
		t.Errorf("its number has the patience %v, %v", p, err)
	}
	nbdMust(t, d.close())
}

// TestNBDKernelAway: a device that nobody answers is removed by force at once, with
// what waits.
func TestNBDKernelAway(t *testing.T) {
	run := t.TempDir()
	const size = 1 << 20
	q := newQemu(t, run, size)
	d := openGuest(t, run)
	_, _, err := d.make(t.Context(), &ipc.DeviceMakeRequest{Lease: nbdLease, SizeBytes: size, LogicalBlock: 512, Socket: q.socket})
	nbdMust(t, err)
	node, err := d.start(t.Context(), nbdLease, 0)
	nbdMust(t, err)
	f := openDirect(t, node)
	q.kill()
	p, failed := nbdPage(t), make(chan error, 1)
	go func() {
		_, err := f.WriteAt(p, 0)
		failed <- err
	}()
	select {
	case err := <-failed:
		t.Fatalf("a write without a server: %v", err)
	case <-time.After(5 * time.Second):
	}
	start := time.Now()
	nbdMust(t, d.clear(t.Context()))
	if err := <-failed; err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("what waited ended with %v after %v", err, time.Since(start))
	}
	nbdMust(t, f.Close())
	nbdMust(t, d.close())
}

// clean demands that no request has failed so far.
func clean(t *testing.T) {
	t.Helper()
	p := make([]byte, 1<<20)
	n, err := syscall.Klogctl(3, p) // SYSLOG_ACTION_READ_ALL
	nbdMust(t, err)
	if !bytes.Contains(p[:n], []byte("nbd0")) {
		t.Error("the kernel's log says nothing of the device")
	}
	for line := range strings.Lines(string(p[:n])) {
		if strings.Contains(line, "I/O error") {
			t.Error(line)
		}
	}
}
