package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/nbdclient"
	"vacate/test/daemon"
)

// A badDrive is a file that nbdfuse shows and nbdkit backs: a real drive to the
// kernel, which can be made to hang (stop nbdkit) or to fail (kill it).
type badDrive struct {
	path   string // to enrol
	kit    *exec.Cmd
	fuse   *exec.Cmd
	mount  string
	waits  string // the kernel's count of requests that the drive has not answered, or ""
	ended  bool
	halted bool
}

func newBadDrive(t *testing.T) *badDrive {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatalf("a drive that hangs needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
		}
		t.Skipf("a drive that hangs needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
	}
	dir := shortDir(t)
	back, sock := filepath.Join(dir, "back"), filepath.Join(dir, "sock")
	b := &badDrive{mount: filepath.Join(dir, "mnt")}
	b.path = filepath.Join(b.mount, "drive")
	if err := errors.Join(os.WriteFile(back, nil, 0o600), os.Truncate(back, 64<<20), os.Mkdir(b.mount, 0o755)); err != nil {
		t.Fatal(err)
	}
	b.kit = exec.Command("nbdkit", "-f", "-U", sock, "file", back)
	b.fuse = exec.Command("nbdfuse", b.path, "nbd+unix:///?socket="+sock)
	if err := b.kit.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.end(t) })
	eventually(t, "nbdkit's socket", func() error { _, err := os.Stat(sock); return err })
	if err := b.fuse.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nbdfuse's file", func() error { _, err := os.Stat(b.path); return err })
	var st syscall.Stat_t
	ctl := filepath.Join(dir, "ctl")
	must(t, errors.Join(syscall.Stat(b.path, &st), os.Mkdir(ctl, 0o700)))
	if err := syscall.Mount("none", ctl, "fusectl", 0, ""); err != nil {
		t.Logf("mounting fusectl: %v: what hangs in the drive cannot be seen, only waited for", err)
		return b
	}
	t.Cleanup(func() { must(t, syscall.Unmount(ctl, 0)) })
	b.waits = filepath.Join(ctl, fmt.Sprint(st.Dev&0xff|st.Dev>>12&^0xff), "waiting") // by the device's minor number
	return b
}

// awaitRequest waits until a request hangs in the drive.
func (b *badDrive) awaitRequest(t *testing.T) {
	t.Helper()
	if b.waits == "" {
		time.Sleep(3 * time.Second)
		return
	}
	eventually(t, "a request that hangs in the drive", func() error {
		n, err := os.ReadFile(b.waits)
		if err == nil && strings.TrimSpace(string(n)) == "0" {
			err = errors.New("there is none")
		}
		return err
	})
}

func (b *badDrive) hang(t *testing.T) {
	t.Helper()
	b.halted = true
	if err := b.kit.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all threads of the drive to have stopped", func() error { // the signal does not wait for that
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", b.kit.Process.Pid))
		for _, task := range tasks {
			stat, err := os.ReadFile(task)
			if _, state, _ := strings.Cut(string(stat), ") "); err != nil || !strings.HasPrefix(state, "T") {
				return fmt.Errorf("%s is in state %.1s: %v", task, state, err)
			}
		}
		return err
	})
}

func (b *badDrive) goOn(t *testing.T) {
	t.Helper()
	b.halted = false
	if err := b.kit.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// fail makes every further request end with an error.
func (b *badDrive) fail() {
	b.ended = true
	b.kit.Process.Kill() //nolint:errcheck // it may have ended
	b.kit.Wait()         //nolint:errcheck // killed
}

func (b *badDrive) end(t *testing.T) {
	if b.halted {
		b.goOn(t)
	}
	if !b.ended {
		b.fail()
	}
	if b.fuse.Process != nil {
		exec.Command("umount", "-l", b.mount).Run() //nolint:errcheck // it may not be mounted
		b.fuse.Process.Kill()                       //nolint:errcheck // it may have ended
		b.fuse.Wait()                               //nolint:errcheck // killed
	}
}

type leaseInfo struct {
	daemon.Lease
	Erasure *struct {
		GateToKeyDestroyedNs int64
		ReadBack             bool
		Drained              bool
		Quarantined          bool
	}
}

func show(t testing.TB, d *daemon.Daemon, id string) (l leaseInfo) {
	t.Helper()
	if err := d.JSON(&l, "lease", "show", id); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestL5CloseOnAHangingDrive: the key is gone at once, the space is not given to
// anyone until the drive has answered.
func TestL5CloseOnAHangingDrive(t *testing.T) {
	const drain = 12 * time.Second // until then the close waits for the drive, the key's end does not
	b := newBadDrive(t)
	d := start(t, daemon.Options{Env: []string{"VACATE_DRAIN_DEADLINE=" + drain.String()}, Args: driveDir(b.path)})
	if out, err := d.Run("drive", "enroll", b.path); err != nil {
		t.Fatal(err, out)
	}
	l := open(t, d, "--drive", b.path, "--size", "16MiB")
	free := showDrive(t, d, b.path).FreeBytes
	c := dial(t, l)
	write(t, c, 0, bytes.Repeat([]byte{1}, 1<<20))

	b.hang(t)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.WriteAt(bytes.Repeat([]byte{2}, 64<<10), 4<<20)
		wrote <- err
	}()
	b.awaitRequest(t)
	select {
	case err := <-wrote:
		t.Fatalf("the drive does not hang: the write returned %v", err)
	default:
	}

	began := time.Now()
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	got := show(t, d, l.ID)
	if got.State != "erased" || got.Erasure == nil || !got.Erasure.ReadBack || got.Erasure.Drained || !got.Erasure.Quarantined {
		t.Fatalf("closed on a hanging drive: %+v %+v", got.Lease, got.Erasure)
	}
	destroyed := time.Duration(got.Erasure.GateToKeyDestroyedNs)
	t.Logf("key destroyed %v after the gate was shut; close returned after %v", destroyed, took)
	if destroyed > drain/2 || took > drain+20*time.Second {
		t.Error("the close waited for the drive")
	}
	if now := showDrive(t, d, b.path).FreeBytes; now != free {
		t.Errorf("%d bytes are free, %d were before: space in quarantine was given up", now, free)
	}
	if again := show(t, d, l.ID); again.State != "erased" {
		t.Errorf("state %q while the drive hangs", again.State)
	}
	other := open(t, d, "--size", "16MiB", "--drive", filepath.Join(d.Dir, "drive.img")) // the host goes on
	oc := dial(t, other)
	write(t, oc, 0, []byte("alive"))
	oc.Close() //nolint:errcheck // done

	b.goOn(t)
	eventually(t, "the lease to be closed after the drive answered", func() error {
		if s := show(t, d, l.ID); s.State != "closed" {
			return fmt.Errorf("state %q", s.State)
		}
		if now := showDrive(t, d, b.path).FreeBytes; now != free+16<<20 {
			return fmt.Errorf("%d bytes are free, want %d", now, free+16<<20)
		}
		return nil
	})
	if err := <-wrote; err == nil {
		t.Error("the client was told that a write succeeded whose lease was closed")
	}
}

// A drive that fails fails its own requests: the lease, the others and the
// daemon live on.
func TestDriveErrors(t *testing.T) {
	b := newBadDrive(t)
	d := start(t, daemon.Options{Args: driveDir(b.path)})
	if _, err := d.Run("drive", "enroll", b.path); err != nil {
		t.Fatal(err)
	}
	l := open(t, d, "--drive", b.path, "--size", "16MiB")
	other := open(t, d, "--drive", filepath.Join(d.Dir, "drive.img"), "--size", "16MiB")
	c, oc := dial(t, l), dial(t, other)
	write(t, c, 0, []byte("before"))
	write(t, oc, 0, []byte("before"))

	b.fail()
	wantEIO(t, c)
	if _, err := c.ReadAt(make([]byte, 4096), 12<<20); err != nil {
		t.Errorf("an unwritten block needs no drive: %v", err)
	}
	write(t, oc, 4096, []byte("after"))
	if s := show(t, d, l.ID); s.State != "open" {
		t.Errorf("the lease is %s", s.State)
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Errorf("closing on a dead drive: %v", err)
	}
	if s := show(t, d, l.ID); s.Erasure == nil || !s.Erasure.ReadBack {
		t.Errorf("closed on a dead drive: %+v", s)
	}
}

func wantEIO(t *testing.T, c *nbdclient.Client) {
	t.Helper()
	var nbdErr *nbdclient.Error
	_, err := c.WriteAt(make([]byte, 4096), 8<<20)
	if !errors.As(err, &nbdErr) || !errors.Is(err, syscall.EIO) {
		t.Errorf("writing to a drive that fails: %v, want EIO", err)
	}
	// Read what was written, where no cache of the kernel's holds it.
	_, err = c.ReadAt(make([]byte, 4096), 0)
	if err != nil && !errors.Is(err, syscall.EIO) {
		t.Errorf("reading from a drive that fails: %v, want EIO", err)
	}
}

// A drive that is cut short under us answers EIO where it ends.
func TestDriveTruncated(t *testing.T) {
	d, drive := fileDrive(t, bin)
	l := openAll(t, d, drive, "acme")
	c := dial(t, l)
	last := l.SizeBytes - 4096
	write(t, c, last, []byte("tail"))
	write(t, c, 0, []byte("head"))
	if err := os.Truncate(drive, driveSize/2); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadAt(make([]byte, 4096), last); !errors.Is(err, syscall.EIO) {
		t.Errorf("reading behind the drive's end: %v, want EIO", err)
	}
	got := make([]byte, 4)
	if _, err := c.ReadAt(got, 0); err != nil || string(got) != "head" {
		t.Errorf("reading what is left: %q, %v", got, err)
	}
	c.Close() //nolint:errcheck // done
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
}

// Closing while clients are connected and busy: they see errors, never success
// after the close, and the close does not wait for them.
func TestCloseUnderLoad(t *testing.T) {
	d := start(t, daemon.Options{})
	l := open(t, d, "--size", "64MiB")
	ended := make(chan error, 4)
	for range cap(ended) {
		c := dial(t, l)
		go func() {
			buf := make([]byte, 64<<10)
			for i := int64(0); ; i++ {
				if _, err := c.WriteAt(buf, i%1000*64<<10%(60<<20)); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	time.Sleep(200 * time.Millisecond)
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Fatal(err)
	}
	for range cap(ended) {
		select {
		case err := <-ended:
			t.Logf("client: %v", err)
		case <-time.After(30 * time.Second):
			t.Fatal("a client is still writing after the close")
		}
	}
	first := show(t, d, l.ID)
	if first.State != "closed" || !first.Erasure.ReadBack {
		t.Errorf("after close: %+v", first)
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Errorf("closing again: %v, want the same answer", err)
	}
	if _, err := os.Stat(l.Socket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket after close: %v", err)
	}
	if _, err := d.Run("lease", "close", strings.Repeat("a", 16)); exitCode(err) != 3 {
		t.Errorf("closing a lease that never was: %v, want exit code 3", err)
	}
}

// TestL8EngineEndsOnAHangingDrive: a thread that waits for a drive holds its dead
// process, and with it the fences of all its drives. A close does not wait for
// that: its key is destroyed at once. What stays open goes on when the drive has
// answered, with every byte.
func TestL8EngineEndsOnAHangingDrive(t *testing.T) {
	b := newBadDrive(t)
	d := start(t, daemon.Options{Args: driveDir(b.path)})
	t.Cleanup(func() { // before the daemon is stopped, which would wait for it
		if b.halted {
			b.goOn(t)
		}
	})
	if out, err := d.Run("drive", "enroll", b.path); err != nil {
		t.Fatal(err, out)
	}
	l := open(t, d, "--drive", b.path, "--size", "16MiB")
	closed := open(t, d, "--drive", b.path, "--size", "16MiB")
	c := dial(t, l)
	write(t, c, 0, bytes.Repeat([]byte{1}, 1<<20))
	b.hang(t)
	go c.WriteAt(bytes.Repeat([]byte{2}, 64<<10), 4<<20) //nolint:errcheck // it never succeeds
	b.awaitRequest(t)

	first, err := d.Child("engine")
	must(t, err)
	kill(t, d, "engine")
	began := time.Now()
	eventually(t, "the keeper to go on without it", func() error {
		pids, err := d.Children("engine")
		if err == nil && !slices.ContainsFunc(pids, func(pid int) bool { return pid != first }) {
			err = errors.New("there is no second engine")
		}
		return err
	})
	t.Logf("a second engine %v after the first was killed", time.Since(began))
	began = time.Now()
	if _, err := d.Run("lease", "close", closed.ID); err != nil {
		t.Error(err)
	}
	if s := show(t, d, closed.ID); s.State != "erased" {
		t.Errorf("closed while its drive hangs: state %s", s.State)
	}
	t.Logf("closed, with the fence still held by the dead engine, %v after it was asked", time.Since(began))
	b.goOn(t)
	c = dialAgain(t, l)
	got := make([]byte, 1<<20)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 1<<20)) {
		t.Errorf("after the drive has answered: %v, or other bytes", err)
	}
	part := make([]byte, 64<<10) // of the write that hung: each block as before or after
	if _, err := c.ReadAt(part, 4<<20); err != nil {
		t.Error(err)
	}
	for i := 0; i < len(part); i += 4096 {
		if blk := part[i : i+4096]; !bytes.Equal(blk, make([]byte, 4096)) && !bytes.Equal(blk, bytes.Repeat([]byte{2}, 4096)) {
			t.Errorf("block %d of the write that hung is neither old nor new: % x…", i/4096, blk[:16])
		}
	}
	c.Close() //nolint:errcheck // done
	eventually(t, "the closed lease's space to be free", func() error {
		if s := show(t, d, closed.ID); s.State != "closed" {
			return fmt.Errorf("state %s", s.State)
		}
		return nil
	})
	if s := show(t, d, l.ID); s.State != "open" {
		t.Errorf("the other lease is %s", s.State)
	}
	usable(t, d)
}
