package devices

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSpare: the driver keeps one command of each queue. A kernel that has not the
// setting is none to complain of, one that refuses it is.
func TestSpare(t *testing.T) {
	h := host{sys: t.TempDir()}
	queue := filepath.Join(h.sys, "block/ublkb0/queue")
	if err := h.spare("ublkb0"); err != nil {
		t.Errorf("a kernel without schedulers: %v", err)
	}
	if err := os.MkdirAll(queue, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"scheduler", "nr_requests"} {
		if err := os.WriteFile(filepath.Join(queue, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.spare("ublkb0"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"scheduler": "none", "nr_requests": "63"} {
		if got, err := os.ReadFile(filepath.Join(queue, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
	if err := os.Remove(filepath.Join(queue, "scheduler")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(queue, "scheduler"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.spare("ublkb0"); err == nil {
		t.Error("what could not be set is passed over")
	}
}
