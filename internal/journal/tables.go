package journal

import (
	"bytes"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/proof"
)

// The buckets.
var (
	metaBucket    = []byte("meta")        // "meta" → metaValue
	drivesBucket  = []byte("drives")      // UUID → driveValue
	leasesBucket  = []byte("leases")      // id → leaseValue, space not free
	endedBucket   = []byte("ended")       // id → leaseValue, space free
	orderBucket   = []byte("order")       // number of the CLOSE record → id, of the ended
	extentsBucket = []byte("extents")     // UUID, first extent → extentValue
	recordsBucket = []byte("records")     // number → record
	keysBucket    = []byte("idempotency") // tenant, NUL, key → refValue

	buckets = [][]byte{metaBucket, drivesBucket, leasesBucket, endedBucket, orderBucket, extentsBucket,
		recordsBucket, keysBucket}
	metaKey = []byte("meta")
)

// tables is the journal in one transaction.
type tables struct {
	tx    *bbolt.Tx
	meta  metaValue
	dirty bool  // meta has to be stored
	err   error // the first that bbolt returned to put or delete
	now   func() time.Time
	wrote bool // a record
}

// openTables reads the meta value. In a file that has none yet, only create may
// follow.
func openTables(tx *bbolt.Tx) (*tables, error) {
	t := &tables{tx: tx}
	b := tx.Bucket(metaBucket)
	if b == nil {
		return t, nil
	}
	var err error
	if t.meta, err = decode[metaValue](b.Get(metaKey)); err != nil {
		return nil, fmt.Errorf("%w: meta: %w", ErrCorrupt, err)
	}
	for _, name := range buckets {
		if tx.Bucket(name) == nil {
			return nil, fmt.Errorf("%w: bucket %s is missing", ErrCorrupt, name)
		}
	}
	return t, nil
}

// checkMeta checks that the meta value is there and has sense.
func (t *tables) checkMeta() error {
	_, err := parseHex(t.meta.NodeID, 16)
	if err == nil {
		_, err = parseHex(t.meta.LastHash, 32)
	}
	if err == nil && t.meta.NextSeq == 0 {
		err = fmt.Errorf("records are numbered from 1, the next is %d", t.meta.NextSeq)
	}
	if err != nil {
		return fmt.Errorf("%w: meta: %w", ErrCorrupt, err)
	}
	return nil
}

func (t *tables) create(nodeID string, now time.Time) error {
	for _, name := range buckets {
		if _, err := t.tx.CreateBucket(name); err != nil {
			return err
		}
	}
	t.meta = metaValue{V: Version, NodeID: nodeID, CreatedAt: now, NextSeq: 1, LastHash: proof.ZeroHash}
	t.dirty = true
	return nil
}

func (t *tables) saveMeta() {
	if t.dirty {
		t.put(metaBucket, metaKey, encode(t.meta))
	}
}

func (t *tables) put(bucket, key, value []byte) {
	if err := t.tx.Bucket(bucket).Put(key, value); err != nil && t.err == nil {
		t.err = err
	}
}

func (t *tables) delete(bucket, key []byte) {
	if err := t.tx.Bucket(bucket).Delete(key); err != nil && t.err == nil {
		t.err = err
	}
}

// get decodes a value; found is false where there is none.
func get[T any](t *tables, bucket, key []byte) (v T, found bool, err error) {
	b := t.tx.Bucket(bucket).Get(key)
	if b == nil {
		return v, false, nil
	}
	if v, err = decode[T](b); err != nil {
		return v, false, fmt.Errorf("%w: %s %x: %w", ErrCorrupt, bucket, key, err)
	}
	return v, true, nil
}

// each decodes every value of a bucket, in the order of keys.
func each[T any](t *tables, bucket []byte, yield func(key []byte, v T) error) error {
	return t.tx.Bucket(bucket).ForEach(func(k, b []byte) error {
		v, err := decode[T](b)
		if err == nil {
			err = yield(k, v)
		}
		if err != nil {
			return fmt.Errorf("%w: %s %x: %w", ErrCorrupt, bucket, k, err)
		}
		return nil
	})
}

// append numbers a record, chains it to the one before, and stores it.
func (t *tables) append(r proof.Record) (uint64, error) {
	r.NodeID, r.NodeSeq, r.PrevHash = t.meta.NodeID, t.meta.NextSeq, t.meta.LastHash
	b, err := proof.EncodePayload(r)
	if err != nil {
		return 0, err
	}
	t.put(recordsBucket, seqKey(r.NodeSeq), b)
	if err := t.spooled(r); err != nil {
		return 0, err
	}
	t.meta.NextSeq++
	t.meta.LastHash = Hash(b)
	t.dirty, t.wrote = true, true
	return r.NodeSeq, nil
}

// hold gives a lease its extents, where nobody holds them.
func (t *tables) hold(l lease.Lease) error {
	for _, p := range l.Pieces {
		uuid, err := parseHex(p.Drive, 16)
		if err != nil {
			return err
		}
		d, found, err := get[driveValue](t, drivesBucket, uuid)
		switch {
		case err != nil:
			return err
		case !found || d.State != Ready:
			return fmt.Errorf("drive %s: %w", p.Drive, ErrNotFound)
		case p.Count == 0 || p.End() > uint64(d.Extents):
			return fmt.Errorf("extents %d+%d of drive %s, which has %d: %w", p.First, p.Count, p.Drive, d.Extents, ErrOverlap)
		}
		if err := t.free(uuid, p.Range); err != nil {
			return err
		}
		t.put(extentsBucket, extentKey(uuid, p.First),
			encode(extentValue{V: Version, Count: p.Count, Lease: l.ID, State: lease.Held}))
	}
	return nil
}

// free checks that nobody holds an extent of r: the run before r must end before
// it, the run after must start after it.
func (t *tables) free(uuid []byte, r extent.Range) error {
	c := t.tx.Bucket(extentsBucket).Cursor()
	key := extentKey(uuid, r.First)
	k, v := c.Seek(key)
	for range 2 {
		if k != nil && bytes.HasPrefix(k, uuid) {
			_, first, err := parseExtentKey(k)
			if err != nil {
				return fmt.Errorf("%w: %w", ErrCorrupt, err)
			}
			e, err := decode[extentValue](v)
			if err != nil {
				return fmt.Errorf("%w: extents %x: %w", ErrCorrupt, k, err)
			}
			if r.Overlaps(extent.Range{First: first, Count: e.Count}) {
				return fmt.Errorf("extents %v of drive %x, held by lease %s: %w", r, uuid, e.Lease, ErrOverlap)
			}
		}
		if k == nil {
			k, v = c.Last()
		} else {
			k, v = c.Prev()
		}
	}
	return nil
}

// release takes a lease's extents to Cleaning or Free.
func (t *tables) release(l lease.Lease, to lease.Space) error {
	for _, p := range l.Pieces {
		uuid, err := parseHex(p.Drive, 16)
		if err != nil {
			return fmt.Errorf("%w: lease %s: %w", ErrCorrupt, l.ID, err)
		}
		key := extentKey(uuid, p.First)
		e, found, err := get[extentValue](t, extentsBucket, key)
		if err != nil {
			return err
		}
		if !found || e.Lease != l.ID || e.Count != p.Count {
			return fmt.Errorf("%w: extents %v of drive %s are not those of lease %s", ErrCorrupt, p.Range, p.Drive, l.ID)
		}
		if to == lease.Free {
			t.delete(extentsBucket, key)
		} else {
			e.State = to
			t.put(extentsBucket, key, encode(e))
		}
	}
	return nil
}

// retire moves a lease, whose CLOSE record is written and whose extents nobody
// uses, to the ended ones.
func (t *tables) retire(l lease.Lease, keep int) (lease.Lease, error) {
	if err := t.release(l, lease.Free); err != nil {
		return l, err
	}
	if err := l.Apply(lease.Freed); err != nil {
		return l, err
	}
	l.Space = lease.Free
	t.delete(leasesBucket, []byte(l.ID))
	t.put(endedBucket, []byte(l.ID), encode(leaseValue{Version, l}))
	t.put(orderBucket, seqKey(l.CloseSeq), encode(refValue{Version, l.ID}))
	t.meta.Ended++
	t.dirty = true
	return l, t.trim(keep)
}

// trim forgets the oldest ended leases, with their idempotency keys, but keep.
func (t *tables) trim(keep int) error {
	for t.meta.Ended > keep {
		k, v := t.tx.Bucket(orderBucket).Cursor().First()
		if k == nil {
			return fmt.Errorf("%w: %d leases have ended, none is listed", ErrCorrupt, t.meta.Ended)
		}
		ref, err := decode[refValue](v)
		if err != nil {
			return fmt.Errorf("%w: order %x: %w", ErrCorrupt, k, err)
		}
		old, found, err := get[leaseValue](t, endedBucket, []byte(ref.Lease))
		if err != nil {
			return err
		}
		if found && old.Key != "" {
			if err := t.dropKey(old.Lease); err != nil {
				return err
			}
		}
		t.delete(endedBucket, []byte(ref.Lease))
		t.delete(orderBucket, bytes.Clone(k))
		t.meta.Ended--
	}
	return nil
}

// dropKey forgets a lease's idempotency key, unless it is another lease's now.
func (t *tables) dropKey(l lease.Lease) error {
	key := keyKey(l.Tenant, l.Key)
	ref, found, err := get[refValue](t, keysBucket, key)
	if err == nil && found && ref.Lease == l.ID {
		t.delete(keysBucket, key)
	}
	return err
}
