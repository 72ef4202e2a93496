package journal

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestRead: a journal is read as it is, without being changed or kept.
func TestRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	opt := Options{Dir: dir, LockTimeout: time.Millisecond}
	if _, _, err := Read(opt); err == nil {
		t.Error("read a journal that is not there")
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("reading made the state folder")
	}
	b := open(t, dir)
	enrol(t, b, uuidA)
	l, err := b.OpenLease(fresh(1, piece(uuidA, 0, 2)), Testimony{})
	must(t, err)
	want, id := load(t, b), b.NodeID()
	if _, _, err := Read(opt); !errors.Is(err, ErrLocked) {
		t.Errorf("reading a journal that is in use: %v", err)
	}
	must(t, b.Close())
	before, err := os.ReadFile(opt.path())
	must(t, err)
	for range 2 {
		gotID, got, err := Read(opt)
		must(t, err)
		if diff := cmp.Diff(want, got); diff != "" || gotID != id {
			t.Errorf("node %s, want %s (-want +got):\n%s", gotID, id, diff)
		}
	}
	if after, err := os.ReadFile(opt.path()); err != nil || string(after) != string(before) {
		t.Errorf("reading changed the journal: %v", err)
	}
	b = open(t, dir) // nothing holds it
	_, err = b.CloseLease(erased(l), true, Testimony{})
	must(t, err)
	must(t, b.Close())
	must(t, os.WriteFile(opt.path(), before[len(before)/2:], 0o600))
	if _, _, err := Read(opt); !errors.Is(err, ErrCorrupt) {
		t.Errorf("reading half a journal: %v", err)
	}
}
