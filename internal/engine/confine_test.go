package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/sandbox"
)

// TestBarred: who may not open a drive is told what to change.
func TestBarred(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	for _, d := range []string{in, out} {
		if err := errors.Join(os.Mkdir(d, 0o700), os.WriteFile(filepath.Join(d, "drive"), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink(filepath.Join(out, "drive"), filepath.Join(in, "leads out")),
		os.Symlink(filepath.Join(in, "drive"), filepath.Join(out, "leads in")), os.Symlink(in, filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	o := sandbox.EngineOptions{DriveDirs: []string{filepath.Join(dir, "link")}, DriveFiles: []string{filepath.Join(dir, "single")}}
	denied := &os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}
	const add, mode = "to drive_dirs in its configuration, then run `vacate upgrade`", "overrides no permissions"
	for path, want := range map[string]string{
		filepath.Join(in, "drive"): mode, filepath.Join(out, "drive"): add, filepath.Join(in, "leads out"): add,
		filepath.Join(out, "leads in"): mode, filepath.Join(dir, "single"): mode, filepath.Join(dir, "single2"): add, in + "2": add,
	} {
		err := barred(o, path, denied)
		var re *ipc.RemoteError
		if !errors.Is(err, syscall.EACCES) || !errors.As(refused(err), &re) || re.Code != ipc.CodeRefused || !strings.Contains(re.Text, want) || !strings.Contains(re.Text, "permission denied") {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	for _, err := range []error{nil, syscall.ENOENT} {
		if got := refused(barred(o, in, err)); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
	if got := barred(sandbox.EngineOptions{Off: true}, out, denied); got != error(denied) {
		t.Errorf("without a sandbox: %v", got)
	}
}
