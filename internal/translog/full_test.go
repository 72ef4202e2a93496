package translog

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestFullDisk: the log's disk is full for a while. What was acknowledged stays,
// and what was not is taken once there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		if os.Getenv("CI") != "" || os.Geteuid() == 0 && err != syscall.EPERM {
			t.Fatalf("mounting a small tmpfs: %v", err)
		}
		t.Skipf("mounting a small tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	cfg := testConfig(t, filepath.Join(dir, "log"))
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	where, leaves := map[string]uint64{}, run(t, 1, 1, 1201)
	refused, at, filled := 0, 0, false
	fill := filepath.Join(dir, "fill")
	for at < len(leaves) {
		if at == 300 && !filled {
			filled = true
			if err := os.WriteFile(fill, make([]byte, 8<<20), 0o600); err == nil {
				t.Fatal("the disk is not small")
			}
		}
		got, err := l.Add(t.Context(), leaves[at:at+100])
		if err != nil {
			if refused++; refused == 5 {
				if err := os.Remove(fill); err != nil {
					t.Fatal(err)
				}
			} else if refused > 5 {
				t.Fatalf("there is room again: %v", err)
			}
			continue
		}
		for i, index := range got {
			where[place(leaves[at+i].NodeID, leaves[at+i].NodeSeq)] = index
		}
		at += len(got)
	}
	if refused != 5 {
		t.Errorf("a full disk refused %d times, want 5", refused)
	}
	checkLog(t, l, where, uint64(len(leaves)))
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	openLog(t, cfg)
	err = filepath.WalkDir(filepath.Join(cfg.Dir, treeDir), func(path string, e os.DirEntry, err error) error {
		if err == nil && stray.MatchString(e.Name()) {
			t.Errorf("%s was left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestUnwritable: tessera's state cannot be opened for a while, as on a file system
// that has turned read-only. It would end the process; it must only end the call.
func TestUnwritable(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	leaves := run(t, 1, 1, 3)
	if _, err := l.Add(t.Context(), leaves[:1]); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(cfg.Dir, treeDir, stateDir)
	away := func(is bool) {
		t.Helper()
		var err error
		if is {
			err = errors.Join(os.Rename(state, state+"-away"), os.WriteFile(state, nil, 0o600))
		} else {
			err = errors.Join(os.Remove(state), os.Rename(state+"-away", state))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	away(true)
	if _, err := l.Add(t.Context(), leaves[1:]); err == nil {
		t.Error("added to a log that cannot be written")
	}
	away(false)
	if got, err := l.Add(t.Context(), leaves); err != nil || len(got) != len(leaves) || got[1] != 1 {
		t.Errorf("added again: %v, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	away(true)
	if _, err := Open(t.Context(), cfg); err == nil {
		t.Error("a log that cannot be written was opened")
	}
	away(false)
	openLog(t, cfg)
}
