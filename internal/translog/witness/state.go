package witness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"vacate/internal/durable"
)

// stateFile is below [Config.Dir]: one bucket, origin: saw.
const stateFile = "witness.db"

var bucketLogs = []byte("logs")

// saw is what a witness last cosigned of a log.
type saw struct {
	V    int    `json:"v"`    // 1
	Size uint64 `json:"size"` // of the tree
	Root []byte `json:"root"` // 32 bytes
	Time int64  `json:"time"` // of the cosignature, Unix seconds
}

// state is what a witness must never forget.
type state struct {
	db    *bbolt.DB
	fresh bool // it held nothing when it was opened
}

// openState opens the state in a folder, or makes it. It is there, durably, before the
// key is: a key without it belongs to a witness that has forgotten what it cosigned.
func openState(dir string) (*state, error) {
	path := filepath.Join(dir, stateFile)
	if err := forgotten(dir); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("opening the witness's state %s: %w: another witness may have it open", path, err)
	}
	s := &state{db: db}
	err = db.Update(func(tx *bbolt.Tx) error { // which makes a new file durable; its name is below
		b, err := tx.CreateBucketIfNotExists(bucketLogs)
		if err != nil {
			return err
		}
		first, _ := b.Cursor().First()
		s.fresh = first == nil
		return nil
	})
	if err = errors.Join(err, durable.SyncDir(dir)); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the witness's state %s: %w", path, err), db.Close())
	}
	return s, nil
}

// forgotten fails where a folder has the key of a witness, and not its state: it
// would sign again, of any log, what it had ruled out.
func forgotten(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, keyFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking for the witness's key: %w", err)
	}
	info, err := os.Stat(filepath.Join(dir, stateFile))
	if err == nil && info.Size() > 0 {
		return nil
	}
	return fmt.Errorf("the witness's state %s is gone, its key is there: start another witness, with an empty folder and another name",
		filepath.Join(dir, stateFile))
}

// replace gives what is known of a log to next and, where that returns no error
// and something else, makes it durable before it returns: one transaction, of
// which there is never more than one.
func (s *state) replace(origin string, next func(old saw) (saw, error)) error {
	same := errors.New("nothing to write") // whoever sends a checkpoint again must not cost the disk anything
	err := s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLogs)
		old := saw{V: 1}
		if raw := b.Get([]byte(origin)); raw != nil {
			if err := json.Unmarshal(raw, &old); err != nil || old.V != 1 {
				return fmt.Errorf("the witness's state of log %q is of a version that this program does not know", origin)
			}
		}
		now, err := next(old)
		if err != nil {
			return err
		}
		raw, err := json.Marshal(now)
		switch {
		case err != nil:
			return err
		case bytes.Equal(raw, b.Get([]byte(origin))):
			return same
		}
		return b.Put([]byte(origin), raw)
	})
	if errors.Is(err, same) {
		return nil
	}
	return err
}

func (s *state) close() error { return s.db.Close() }
