package sys

import (
	"errors"
	"os"
	"path/filepath"
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
	has, err := permitted()
	if err != nil || has != own.Held {
		t.Errorf("capget says %#x, status %#x, %v", has, own.Held, err)
	}
	if _, err := ConfinementOf(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nobody: %v", err)
	}
}
