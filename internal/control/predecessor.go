package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// aliveEnv names the file that the engines of this keeper hold locked.
const aliveEnv = "VACATE_ALIVE"

// engineLocks are the files that keepers' engines hold locked.
const engineLocks = "engine-*.lock"

// predecessorGone returns nil when no engine of an earlier keeper is alive.
//
// Each keeper makes one file engine-….lock in the folder of its sockets, and all
// its engines hold one exclusive lock on it: the kernel lets that go when the
// last thread of the last of them has ended, also one that hung in a drive. A
// keeper has no other trace: the lock of the folder says that it is gone. Files
// that nobody holds are removed. own is this keeper's.
func predecessorGone(dir, own string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("looking for engines of earlier keepers: %w", err)
	}
	var alive []error
	for _, e := range entries {
		name := e.Name()
		if is, _ := filepath.Match(engineLocks, name); !is || name == filepath.Base(own) {
			continue
		}
		if err := bury(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			alive = append(alive, err)
		}
	}
	return errors.Join(alive...)
}

// bury removes the file at path if nobody holds its lock.
func bury(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("an engine of an earlier keeper has not ended: it holds %s", path)
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", path, err)
	}
	return os.Remove(path)
}
