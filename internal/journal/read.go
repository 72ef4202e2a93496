package journal

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"go.etcd.io/bbolt"
)

// Read returns the identity of the node and everything that it needs at its
// start, from a journal that cannot be written: it makes, changes and locks
// nothing for longer than the call, so that the folder can be mended meanwhile.
// Its checks and errors are those of [Open] and [Bolt.Load].
func Read(opt Options) (nodeID string, s *State, err error) {
	opt = opt.withDefaults()
	if err := checkFolder(opt.Dir); err != nil {
		return "", nil, err
	}
	f, err := os.OpenFile(opt.path(), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", nil, folderError(opt.Dir, err)
	}
	defer f.Close() // bbolt has closed it in most cases: the second time does nothing
	if err := lock(f, opt); err != nil {
		return "", nil, err
	}
	if err := checkFile(f, opt); err != nil {
		return "", nil, err
	}
	db, err := openBolt(f, opt, true)
	if err != nil {
		return "", nil, err
	}
	b := &Bolt{opt: opt, db: db}
	err = b.view("opening it", func(t *tables) error {
		b.nodeID = t.meta.NodeID
		return t.checkMeta()
	})
	if err != nil {
		err = damaged(opt, err)
	} else {
		s, err = b.Load()
	}
	return b.nodeID, s, errors.Join(err, db.Close())
}

// checkFolder checks that only this user can reach into the state folder.
func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return folderError(dir, err)
	}
	st := info.Sys().(*syscall.Stat_t)
	if uid := os.Geteuid(); int(st.Uid) != uid {
		return fmt.Errorf("%w: %s belongs to uid %d, the daemon runs as uid %d: run `chown -R %d %s`, or name another folder",
			ErrFolder, dir, st.Uid, uid, uid, dir)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: %s has mode %#o, others can reach into it: run `chmod 0700 %s`",
			ErrFolder, dir, info.Mode().Perm(), dir)
	}
	return nil
}

// boltOptions are how bbolt opens f.
func boltOptions(f *os.File, opt Options, readOnly bool) *bbolt.Options {
	return &bbolt.Options{
		Timeout:      opt.LockTimeout,
		NoSync:       opt.NoSync,
		ReadOnly:     readOnly,
		FreelistType: bbolt.FreelistMapType,
		// Mapped once: to map a file anew fails when its file system has turned
		// read-only under errors=remount-ro, and leaves bbolt without a mapping.
		InitialMmapSize: mapBytes,
		OpenFile:        func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	}
}
