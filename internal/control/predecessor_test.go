package control

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPredecessorGone: a lock that somebody else holds is an engine that lives;
// the keeper's own does not count, and what nobody holds is removed.
func TestPredecessorGone(t *testing.T) {
	dir := t.TempDir()
	hold := func(name string) *os.File {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if err == nil {
			err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	own := filepath.Join(dir, "engine-own.lock")
	hold("engine-own.lock")
	other := hold("engine-other.lock")
	hold("lock") // the daemon's
	hold("engine-dead.lock").Close()
	err := predecessorGone(dir, own)
	if err == nil || !strings.Contains(err.Error(), "engine-other.lock") || strings.Contains(err.Error(), "own") {
		t.Errorf("with an engine that lives: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "engine-dead.lock")); err == nil {
		t.Error("what a dead engine left is still there")
	}
	other.Close()
	if err := predecessorGone(dir, own); err != nil {
		t.Errorf("with none that lives: %v", err)
	}
	for name, want := range map[string]bool{"engine-own.lock": true, "engine-other.lock": false, "lock": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := predecessorGone(dir, ""); err == nil {
		t.Error("an engine of which nobody knows whose it is counts as dead")
	}
	if err := os.Symlink(own, filepath.Join(dir, "engine-link.lock")); err != nil {
		t.Fatal(err)
	}
	if err := predecessorGone(dir, own); err == nil {
		t.Error("a link counts as a dead engine")
	}
	if err := predecessorGone(filepath.Join(dir, "gone"), own); err == nil {
		t.Error("a folder that cannot be read counts as empty")
	}
}
