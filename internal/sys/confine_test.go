package sys

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestIsFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(dir, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{dir: true, filepath.Join(dir, "link"): true, file: false, "/dev/null": false} {
		if got, err := IsFolder(path); got != want || err != nil {
			t.Errorf("IsFolder(%s) = %v, %v, want %v", path, got, err, want)
		}
	}
	for path, want := range map[string]syscall.Errno{filepath.Join(dir, "none"): syscall.ENOENT, filepath.Join(file, "below"): syscall.ENOTDIR} {
		if _, err := IsFolder(path); !errors.Is(err, want) {
			t.Errorf("IsFolder(%s): %v, want %v", path, err, want)
		}
	}
}

// TestFilterRefused: what is no filter is not installed. What is, is tried by
// package sandbox, in processes of its own.
func TestFilterRefused(t *testing.T) {
	for _, n := range []int{0, 4097} {
		if err := InstallFilter(make([]FilterOp, n)); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("a filter of %d instructions: %v", n, err)
		}
	}
}

func TestConfinementOf(t *testing.T) {
	own, err := ConfinementOf(0)
	if err != nil {
		t.Fatal(err)
	}
	same, err := ConfinementOf(os.Getpid())
	if err != nil || own != same {
		t.Errorf("this process is %+v and %+v, %v", own, same, err)
	}
	has, err := capabilities()
	if held := uint64(has[1].Permitted)<<32 | uint64(has[0].Permitted); err != nil || held != own.Held {
		t.Errorf("capget says %#x, status %#x, %v", held, own.Held, err)
	}
	if _, err := ConfinementOf(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nobody: %v", err)
	}
}

// TestBounded: what is started so has no other capability, and this process keeps
// all that it has.
func TestBounded(t *testing.T) {
	before, err := ConfinementOf(0)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	if err := Bounded([]Capability{CapChown, CapIPCLock}, func() (err error) {
		out, err = exec.Command("cat", "/proc/self/status").Output()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := uint64(1<<CapChown | 1<<CapIPCLock)
	if os.Geteuid() != 0 {
		want = 0
	}
	for _, line := range []string{fmt.Sprintf("CapPrm:\t%016x\n", want), fmt.Sprintf("CapEff:\t%016x\n", want), "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(out), line) {
			t.Errorf("the child's status lacks %q:\n%s", line, out)
		}
	}
	after, err := ConfinementOf(0)
	if err != nil || after != before {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	broken := errors.New("broken")
	if err := Bounded(nil, func() error { return broken }); err != broken {
		t.Errorf("the error of start came out as %v", err)
	}
}
