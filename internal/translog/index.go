package translog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"go.etcd.io/bbolt"
	"vacate/proof"
)

// indexFile is below [Config.Dir].
const indexFile = "index.db"

// indexVersion is of the layout of indexFile. Another one is thrown away and
// made again of the tree.
const indexVersion = 1

var (
	bucketState  = []byte("state")  // "state": indexState
	bucketChains = []byte("chains") // node: chain
	bucketPlaces = []byte("places") // node, NUL, number (8): index (8)
)

// An index says where each record of a tree lies.
//
// Invariants:
//
//	X1: it holds the records at index < size, and no others.
//	X2: what its file holds is what it held at some moment: at smaller size.
//
// It belongs to one goroutine.
type index struct {
	db     *bbolt.DB
	size   uint64
	last   [hashSize]byte      // hash of the leaf at size-1
	chains map[string]chain    // all nodes
	fresh  map[string]uint64   // places that the file does not have yet
	dirty  map[string]struct{} // chains that the file does not have yet
}

// A chain is what a log holds of one node.
type chain struct {
	First uint64 `json:"first"` // the first record that the log took
	Next  uint64 `json:"next"`  // the number after that of the last
}

type indexState struct {
	V    int    `json:"v"`
	Size uint64 `json:"size"`
	Last []byte `json:"last"`
}

// errIndex: the file is no index, or of another version.
var errIndex = errors.New("not an index of this version")

// openIndex opens the index in a file, or makes it.
func openIndex(path string) (x *index, err error) {
	defer func() {
		if p := recover(); p != nil { // bbolt on a file that it did not write
			x, err = nil, fmt.Errorf("opening %s: %w: %v", path, errIndex, p)
		}
	}()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true})
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w: %w", path, errIndex, err)
	}
	x = &index{db: db, chains: map[string]chain{}, fresh: map[string]uint64{}, dirty: map[string]struct{}{}}
	if err := db.Update(x.load); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), db.Close())
	}
	return x, nil
}

// load makes what is missing, and reads all but the places.
func (x *index) load(tx *bbolt.Tx) error {
	for _, b := range [][]byte{bucketState, bucketChains, bucketPlaces} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	if raw := tx.Bucket(bucketState).Get(bucketState); raw != nil {
		var st indexState
		if err := json.Unmarshal(raw, &st); err != nil || st.V != indexVersion || len(st.Last) != hashSize {
			return errIndex
		}
		x.size, x.last = st.Size, [hashSize]byte(st.Last)
	}
	return tx.Bucket(bucketChains).ForEach(func(node, raw []byte) error {
		var c chain
		if err := json.Unmarshal(raw, &c); err != nil {
			return errIndex
		}
		x.chains[string(node)] = c
		return nil
	})
}

// removeIndex deletes the file of an index.
func removeIndex(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func place(node string, seq uint64) string {
	b := make([]byte, 0, len(node)+9)
	b = append(append(b, node...), 0)
	return string(binary.BigEndian.AppendUint64(b, seq))
}

// find returns where a record lies.
func (x *index) find(node string, seq uint64) (at uint64, ok bool, err error) {
	c, known := x.chains[node]
	if !known || seq < c.First || seq >= c.Next {
		return 0, false, nil
	}
	key := place(node, seq)
	if at, ok := x.fresh[key]; ok {
		return at, true, nil
	}
	err = x.db.View(func(tx *bbolt.Tx) error {
		switch raw := tx.Bucket(bucketPlaces).Get([]byte(key)); len(raw) {
		case 0:
		case 8:
			at, ok = binary.BigEndian.Uint64(raw), true
		default:
			return errIndex
		}
		return nil
	})
	if err == nil && at >= x.size {
		err = errIndex
	}
	return at, ok, err
}

// add notes the record at x.size. Records come in the order of the tree.
func (x *index) add(node string, seq uint64, leaf []byte) error {
	c, known := x.chains[node]
	switch {
	case !known:
		c = chain{First: seq, Next: seq}
	case seq != c.Next:
		return fmt.Errorf("leaf %d of the log is record %d of node %s, whose next is %d: keep the folder as it is, somebody has changed it",
			x.size, seq, node, c.Next)
	}
	c.Next++
	x.fresh[place(node, seq)] = x.size
	x.dirty[node] = struct{}{}
	x.chains[node] = c
	x.size++
	x.last = proof.LeafHash(leaf)
	return nil
}

// flush brings the file up to date, in one transaction.
func (x *index) flush() error {
	if len(x.fresh) == 0 {
		return nil
	}
	err := x.db.Update(func(tx *bbolt.Tx) error {
		places, chains := tx.Bucket(bucketPlaces), tx.Bucket(bucketChains)
		places.FillPercent = 0.9 // most keys are appended to their node's
		for _, key := range slices.Sorted(maps.Keys(x.fresh)) {
			if err := places.Put([]byte(key), binary.BigEndian.AppendUint64(nil, x.fresh[key])); err != nil {
				return err
			}
		}
		for node := range x.dirty {
			if err := putJSON(chains, []byte(node), x.chains[node]); err != nil {
				return err
			}
		}
		return putJSON(tx.Bucket(bucketState), bucketState, indexState{indexVersion, x.size, x.last[:]})
	})
	if err != nil {
		return fmt.Errorf("writing the log's index: %w", err)
	}
	clear(x.fresh)
	clear(x.dirty)
	return nil
}

func putJSON(b *bbolt.Bucket, key []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, raw)
}

// belongs reports whether the index is of the tree whose leaf at size-1 is leaf.
func (x *index) belongs(leaf []byte) bool {
	h := proof.LeafHash(leaf)
	return bytes.Equal(h[:], x.last[:])
}

func (x *index) close() error { return errors.Join(x.flush(), x.db.Close()) }
