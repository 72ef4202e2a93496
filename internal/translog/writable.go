package translog

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	stateDir  = ".state" // tessera's, beneath treeDir
	probeFile = "writable"
)

// writable fails where tessera would panic: it ends the process when it cannot open
// its lock, as on a file system that has turned read-only, and leases must be closed
// all the same. Its lock itself is left alone: to close a second descriptor of it
// would give the lock up (fcntl(2)).
//
// A folder that turns in the moment between this and tessera's opening of its lock, far
// under a millisecond, does end the process. The daemon's control is started anew
// then, and leases go on; the batch is in the log or it is not, and its senders,
// who got no answer, send it again (TestPanic).
func (l *Log) writable() error {
	dir := filepath.Join(l.cfg.Dir, treeDir, stateDir)
	f, err := os.OpenFile(filepath.Join(dir, probeFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) { // a new log
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("writing to the log's folder: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("writing to the log's folder: %w", err)
	}
	return f.Close()
}
