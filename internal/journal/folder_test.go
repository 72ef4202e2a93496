package journal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vacate/internal/lease"
)

// refusal checks that err wraps want and tells a person which folder it is about
// and what to do.
func refusal(t *testing.T, err, want error, dir, hint string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), hint) {
		t.Errorf("got %v; want one that wraps %q, names %s and says %q", err, want, dir, hint)
	}
}

func TestSecondDaemon(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	_, err := Open(Options{Dir: dir, LockTimeout: 30 * time.Millisecond})
	refusal(t, err, ErrLocked, dir, "stop that one")
	ended := make(chan error)
	go func() { // the hint works, also while the second one waits
		c, err := Open(Options{Dir: dir, LockTimeout: 10 * time.Second})
		if err == nil {
			err = c.Close()
		}
		ended <- err
	}()
	must(t, b.Close())
	must(t, <-ended)
}

func TestFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	must(t, b.Close())
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, b.opt.path(): 0o600} {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
	for path, good := range map[string]os.FileMode{dir: 0o700, b.opt.path(): 0o600} {
		for _, bad := range []os.FileMode{good | 0o040, good | 0o005, good | 0o020, 0o777} {
			must(t, os.Chmod(path, bad))
			_, err := Open(Options{Dir: dir})
			refusal(t, err, ErrFolder, path, fmt.Sprintf("chmod %#o %s", good, path))
			must(t, os.Chmod(path, good)) // as it says
		}
		c, err := Open(Options{Dir: dir})
		must(t, err)
		must(t, c.Close())
	}
}

func TestFolderOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a folder away")
	}
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	must(t, os.Chown(dir, 12345, -1))
	_, err := Open(Options{Dir: dir})
	refusal(t, err, ErrFolder, dir, "chown -R 0 "+dir)
}

func TestStrangeFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, fileName)
	must(t, os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), path))
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("a symbolic link was followed")
	}
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o700))
	if _, err := Open(Options{Dir: dir}); err == nil {
		t.Error("a folder was opened as a journal")
	}
	if _, err := Open(Options{}); !errors.Is(err, ErrFolder) {
		t.Errorf("no folder: %v", err)
	}
}

// TestReadOnlyFolder has two ways to a folder that cannot be written: as root a
// read-only mount, as anyone else its mode.
func TestReadOnlyFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	b := open(t, dir)
	must(t, b.Close())
	if os.Geteuid() == 0 {
		if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); errors.Is(err, syscall.EPERM) {
			t.Skip("this root may not mount")
		} else {
			must(t, err)
		}
		defer func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) }()
		must(t, syscall.Mount("", dir, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
	} else {
		must(t, os.Chmod(b.opt.path(), 0o400))
	}
	_, err := Open(Options{Dir: dir})
	refusal(t, err, ErrReadOnly, dir, "mount it writable")
}

// TestCutOffStart leaves half a journal under the name of a new one.
func TestCutOffStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	must(t, os.Mkdir(dir, 0o700))
	half := filepath.Join(dir, newName)
	must(t, os.WriteFile(half, specimen(t)[:9000], 0o600))
	b := open(t, dir)
	if s := load(t, b); len(s.Drives) != 0 {
		t.Errorf("half a journal was read: %v", s)
	}
	if _, err := os.Stat(half); !os.IsNotExist(err) {
		t.Errorf("half a journal is still there: %v", err)
	}
}

// TestFullDisk fills the medium: calls fail, nothing changes, and all goes on
// when there is room again. It runs in a process of its own, whose files may not
// grow.
func TestFullDisk(t *testing.T) {
	if os.Getenv("JOURNAL_TEST_FULL") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
		cmd.Env = append(os.Environ(), "JOURNAL_TEST_FULL=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: TestFullDisk")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ) // so that write returns EFBIG
	b := open(t, filepath.Join(t.TempDir(), "state"))
	enrol(t, b, uuidA)
	room := func(bytes uint64) {
		var lim syscall.Rlimit
		must(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &lim))
		lim.Cur = min(bytes, lim.Max)
		must(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &lim))
	}
	info, err := os.Stat(b.opt.path())
	must(t, err)
	refused := 0
	var held []lease.Lease
	for n := range 60 { // each round a little more room, at every length of the file
		room(uint64(info.Size()) + uint64(n)*1024)
		before := load(t, b)
		l := fresh(n, piece(uuidA, uint32(n), 1))
		l.Text = strings.Repeat("x", 2000)
		l, err := b.OpenLease(l, Testimony{})
		after := load(t, b)
		switch {
		case err == nil:
			held = append(held, l)
		case !errors.Is(err, ErrUnchanged) || errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), b.opt.path()):
			t.Fatalf("round %d: %v", n, err)
		default:
			refused++
			if diff := cmp.Diff(before, after); diff != "" {
				t.Fatalf("round %d failed, but (-before +after):\n%s", n, diff)
			}
		}
	}
	if refused == 0 || len(held) == 0 {
		t.Fatalf("%d calls were refused, %d were not: the limit is wrong", refused, len(held))
	}
	room(1 << 30)
	for _, l := range held {
		_, err := b.CloseLease(erased(l), true, Testimony{})
		must(t, err)
	}
	b = reopen(t, b)
	if s := load(t, b); len(s.Live) != 0 {
		t.Errorf("%d leases are still there", len(s.Live))
	}
	if a := audit(t, b); a.Open() != 0 {
		t.Errorf("%d leases have no CLOSE", a.Open())
	}
}
