package journal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
)

// Options say where and how a journal is opened. Zero means the default.
type Options struct {
	Dir         string        // state folder, made with mode 0700 where it is missing
	LockTimeout time.Duration // wait for another daemon that is just ending; 1 s
	CheckTime   time.Duration // bound on checking the file before it is used; 5 s
	KeepEnded   int           // leases that are remembered after their end; 1000
	Rand        io.Reader     // for the node id; crypto/rand
	Clock       func() time.Time
	Observe     func(Timing) // called by the committer after each transaction
	NoSync      bool         // tests only: no fsync, so no durability
}

const (
	fileName = "journal.db"
	newName  = "journal.db.new"
)

const (
	mapBytes  = 256 << 20 // of address space: no journal should outgrow it
	growBytes = 256 << 10 // by how much the file grows
)

func (o Options) path() string { return filepath.Join(o.Dir, fileName) }

func (o Options) withDefaults() Options {
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	if o.CheckTime == 0 {
		o.CheckTime = 5 * time.Second
	}
	if o.KeepEnded == 0 {
		o.KeepEnded = 1000
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	return o
}

// Open opens the journal in opt.Dir, or makes one where there is none, and holds
// it exclusively until Close. Errors wrap ErrLocked, ErrReadOnly, ErrFolder,
// ErrCorrupt or ErrVersion where they fit, name the folder, and say what to do.
//
// Before bbolt, which trusts its file, gets to see it, every page is checked.
func Open(opt Options) (*Bolt, error) {
	opt = opt.withDefaults()
	if err := prepareFolder(opt.Dir); err != nil {
		return nil, err
	}
	f, fresh, err := openFile(opt)
	if err != nil {
		return nil, err
	}
	db, err := openBolt(f, opt, false)
	if err != nil {
		f.Close() // bbolt has closed it in most cases: the second time does nothing
		return nil, err
	}
	b := &Bolt{
		opt:   opt,
		db:    db,
		calls: make(chan *call, batchCalls),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),

		appended: make(chan struct{}, 1),
	}
	go b.commit()
	if err := b.begin(fresh); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// begin gives a fresh journal its identity and its name, and reads the identity
// of an old one.
func (b *Bolt) begin(fresh bool) error {
	if fresh {
		var id [16]byte
		if _, err := io.ReadFull(b.opt.Rand, id[:]); err != nil {
			return fmt.Errorf("reading randomness for the node id: %w", err)
		}
		if err := b.update("making the journal", func(t *tables) error {
			return t.create(hex.EncodeToString(id[:]), b.opt.Clock().UTC().Round(0))
		}); err != nil {
			return err
		}
		if err := publish(b.opt.Dir, !b.opt.NoSync); err != nil {
			return err
		}
	}
	err := b.view("opening it", func(t *tables) error {
		b.nodeID = t.meta.NodeID
		return t.checkMeta()
	})
	if err != nil {
		return damaged(b.opt, err)
	}
	return nil
}

// publish gives the journal its final name once it is whole, durably. Link
// fails where the name is taken, so it never replaces a journal.
func publish(dir string, sync bool) error {
	from, to := filepath.Join(dir, newName), filepath.Join(dir, fileName)
	if err := os.Link(from, to); err != nil {
		return fmt.Errorf("naming the new journal: %w", err)
	}
	if err := os.Remove(from); err != nil {
		return fmt.Errorf("naming the new journal: %w", err)
	}
	if !sync {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("naming the new journal: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("making the new journal durable: %w", err)
	}
	return nil
}

// prepareFolder makes the state folder, or checks that only this user can reach
// into it: tenants' names are in the journal, and who can replace it can have
// space leased twice.
func prepareFolder(dir string) error {
	if dir == "" {
		return fmt.Errorf("%w: no state folder is named", ErrFolder)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return folderError(dir, err)
	}
	return checkFolder(dir)
}

// folderError explains why the folder or a file in it cannot be opened.
func folderError(dir string, err error) error {
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %s: %w: mount it writable for uid %d, or name another state folder",
			ErrReadOnly, dir, err, os.Geteuid())
	}
	return fmt.Errorf("opening state folder %s: %w", dir, err)
}

// openFile opens and locks the journal's file. Where there is none, it opens an
// empty file of another name (fresh), so that a crash never leaves half a journal.
func openFile(opt Options) (f *os.File, fresh bool, err error) {
	path := opt.path()
	f, err = os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		fresh, path = true, filepath.Join(opt.Dir, newName)
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, false, folderError(opt.Dir, err)
	}
	if err := lock(f, opt); err != nil {
		f.Close()
		return nil, false, err
	}
	if fresh { // what a start that was cut off left behind
		if err := f.Truncate(0); err != nil {
			f.Close()
			return nil, false, folderError(opt.Dir, err)
		}
		return f, true, nil
	}
	if err := checkFile(f, opt); err != nil {
		f.Close()
		return nil, false, err
	}
	return f, false, nil
}

// lock takes the file for this process alone (bbolt takes the same lock again,
// which changes nothing).
func lock(f *os.File, opt Options) error {
	const pause = 20 * time.Millisecond
	for waited := time.Duration(0); ; waited += pause {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err == syscall.EINTR:
		case err != syscall.EWOULDBLOCK:
			return fmt.Errorf("locking %s: %w", f.Name(), err)
		case waited >= opt.LockTimeout:
			return fmt.Errorf("%w: another vacate daemon holds %s: stop that one, or name another state folder",
				ErrLocked, opt.Dir)
		}
		time.Sleep(pause)
	}
}

func checkFile(f *os.File, opt Options) error {
	info, err := f.Stat()
	if err != nil {
		return folderError(opt.Dir, err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %s is not a regular file", ErrFolder, f.Name())
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%w: %s has mode %#o, others can reach it: run `chmod 0600 %s`",
			ErrFolder, f.Name(), info.Mode().Perm(), f.Name())
	}
	deadline := time.Now().Add(opt.CheckTime)
	err = checkPages(f, info.Size(), func() bool { return time.Now().After(deadline) })
	if err != nil {
		return damaged(opt, err)
	}
	return nil
}

// damaged is what a person reads when the journal cannot be trusted.
func damaged(opt Options, err error) error {
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("%s: %w: start the newer vacate that wrote it", opt.path(), err)
	}
	return fmt.Errorf("%w: %s: %w: nothing was changed; put back a copy of %s, or name an empty state folder "+
		"and enrol the drives again (their open leases cannot be kept)", ErrCorrupt, opt.path(), err, opt.Dir)
}

// openBolt hands the file over to bbolt.
func openBolt(f *os.File, opt Options, readOnly bool) (db *bbolt.DB, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = damaged(opt, fmt.Errorf("%v", r))
		}
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err = bbolt.Open(f.Name(), 0o600, boltOptions(f, opt, readOnly))
	if err != nil {
		return nil, folderError(opt.Dir, err)
	}
	db.AllocSize = growBytes
	return db, nil
}
