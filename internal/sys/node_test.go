package sys

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestHandOver: nothing but a block device is given away, and no link followed. (That
// one is given away, the tests in a machine hold: they have one.)
func TestHandOver(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o644), os.Symlink(file, link)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, dir, os.DevNull} {
		if err := HandOver(path, uint32(os.Geteuid())); !errors.Is(err, syscall.ENOTBLK) {
			t.Errorf("%s: %v, want ENOTBLK", path, err)
		}
		if OpensBlock(path, Number{1, 3}) {
			t.Errorf("%s is a block device", path)
		}
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("the file: %v, %v", st, err)
	}
	if err := HandOver(filepath.Join(dir, "none"), 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	if uid, err := OwnerOf(file); err != nil || uid != uint32(os.Geteuid()) {
		t.Errorf("the owner: %d, %v", uid, err)
	}
	if got := (Number{259, 3}).String(); got != "259:3" {
		t.Error(got)
	}
}

func TestEnded(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := OpenProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if ended, err := Ended(p, time.Millisecond); ended || err != nil {
		t.Errorf("it lives: %v, %v", ended, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	for _, reaped := range []bool{false, true} {
		if ended, err := Ended(p, time.Minute); !ended || err != nil {
			t.Errorf("it has ended, reaped %v: %v, %v", reaped, ended, err)
		}
		if !reaped {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if _, err := OpenProcess(cmd.Process.Pid); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("nobody: %v", err)
	}
}
