package journal

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/proof"
)

// tailRecords is how many of the newest records stay, and Load checks the chain
// of.
const tailRecords = 1024

// past reports whether record seq may have been forgotten.
func (t *tables) past(seq uint64) bool { return seq+tailRecords < t.meta.NextSeq }

// Load implements [Store]. It trusts nothing: whatever does not fit together is
// ErrCorrupt.
func (b *Bolt) Load() (*State, error) {
	var s *State
	err := b.view("reading the journal", func(t *tables) error {
		s = &State{}
		for _, step := range []func(*State) error{t.loadDrives, t.loadLive, t.loadEnded, t.checkExtents, t.checkKeys, t.checkRecords, t.checkSpool} {
			if err := step(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, damaged(b.opt, err)
	}
	return s, nil
}

func (t *tables) loadDrives(s *State) error {
	return each(t, drivesBucket, func(k []byte, v driveValue) error {
		switch {
		case hex.EncodeToString(k) != v.UUID:
			return fmt.Errorf("it is drive %q", v.UUID)
		case v.State != Enrolling && v.State != Ready:
			return fmt.Errorf("unknown state %q", v.State)
		case v.State == Ready && (v.ExtentBytes <= 0 || v.ExtentBytes%lease.BlockBytes != 0 ||
			v.ExtentBytes > lease.MaxBytes || int64(v.Extents) > lease.MaxBytes/v.ExtentBytes):
			return fmt.Errorf("%d extents of %d bytes", v.Extents, v.ExtentBytes)
		case v.Next != 0 && v.Next != v.Epoch+1:
			return fmt.Errorf("epoch %d is followed by %d", v.Epoch, v.Next)
		}
		s.Drives = append(s.Drives, v.Drive)
		return nil
	})
}

func (t *tables) loadLive(s *State) error {
	err := each(t, leasesBucket, func(k []byte, v leaseValue) error {
		recorded := v.CloseSeq != 0
		switch {
		case string(k) != v.ID || !lease.ValidID(v.ID):
			return fmt.Errorf("it is lease %q", v.ID)
		case !recorded && (v.State != lease.Opening || v.Space != lease.Held),
			recorded && (v.State != lease.Erased && v.State != lease.Lost || v.Space != lease.Cleaning || v.Result == ""):
			return fmt.Errorf("state %s, space %s, result %q, CLOSE record %d", v.State, v.Space, v.Result, v.CloseSeq)
		case v.Slot < 0 || len(v.Pieces) == 0 || len(v.Pieces) > lease.MaxPieces:
			return fmt.Errorf("slot %d, %d pieces", v.Slot, len(v.Pieces))
		}
		if err := errors.Join(v.Limits.Check(), v.OpenLimits.Check(), v.Exports.Check()); err != nil {
			return err
		}
		s.Live = append(s.Live, v.Lease)
		if err := t.checkSeqs(v.Lease); err != nil {
			return err
		}
		return t.checkCommitted(v.Lease)
	})
	slices.SortFunc(s.Live, func(a, b lease.Lease) int { return cmp.Compare(a.OpenSeq, b.OpenSeq) })
	return err
}

func (t *tables) loadEnded(s *State) error {
	listed := 0
	err := each(t, orderBucket, func(k []byte, ref refValue) error {
		v, found, err := get[leaseValue](t, endedBucket, []byte(ref.Lease))
		switch {
		case err != nil:
			return err
		case !found || v.ID != ref.Lease || !bytes.Equal(k, seqKey(v.CloseSeq)):
			return fmt.Errorf("lease %q is not there", ref.Lease)
		case v.State != lease.Closed && v.State != lease.Lost || v.Space != lease.Free:
			return fmt.Errorf("lease %s: state %s, space %s", v.ID, v.State, v.Space)
		}
		listed++
		s.Ended = append(s.Ended, v.Lease)
		return t.checkSeqs(v.Lease)
	})
	if n := t.tx.Bucket(endedBucket).Stats().KeyN; err == nil && (n != listed || n != t.meta.Ended) {
		err = fmt.Errorf("%w: %d leases have ended, %d are listed, %d are counted", ErrCorrupt, n, listed, t.meta.Ended)
	}
	return err
}

// checkSeqs checks that a lease's records are there and are its own.
func (t *tables) checkSeqs(l lease.Lease) error {
	for seq, typ := range map[uint64]proof.Type{l.OpenSeq: proof.OPEN, l.CloseSeq: proof.CLOSE} {
		b := t.tx.Bucket(recordsBucket).Get(seqKey(seq))
		if seq == 0 && typ == proof.CLOSE || b == nil && l.CloseSeq != 0 && t.past(seq) {
			continue
		}
		r, err := ParseRecord(b)
		if err != nil {
			return fmt.Errorf("lease %s: record %d: %w", l.ID, seq, err)
		}
		if r.Type != typ || r.LeaseID != l.ID || r.NodeSeq != seq {
			return fmt.Errorf("lease %s: record %d is not its %s", l.ID, seq, typ)
		}
	}
	return nil
}

// checkCommitted checks that a live lease commits to what its OPEN record committed
// to: its CLOSE record will say so again.
func (t *tables) checkCommitted(l lease.Lease) error {
	open, err := ParseRecord(t.tx.Bucket(recordsBucket).Get(seqKey(l.OpenSeq)))
	if err != nil {
		return fmt.Errorf("lease %s: record %d: %w", l.ID, l.OpenSeq, err)
	}
	r, err := t.committed(proof.Record{}, l)
	if err != nil {
		return fmt.Errorf("lease %s: %w", l.ID, err)
	}
	if r.KeyMode != open.KeyMode || r.KeyCommit != open.KeyCommit || r.NodeCommit != open.NodeCommit || r.ShareCommit != open.ShareCommit ||
		r.TenantCommit != open.TenantCommit || r.EraseBy != open.EraseBy {
		return fmt.Errorf("lease %s commits to something else than its OPEN record %d", l.ID, l.OpenSeq)
	}
	return nil
}

// checkExtents checks that the extents are exactly the pieces of live leases,
// and that none overlap: with one run too many, space is lost; with one too few,
// it is leased twice.
func (t *tables) checkExtents(s *State) error {
	type run struct {
		drive string
		r     extent.Range
	}
	want := map[run]extentValue{}
	for _, l := range s.Live {
		for _, p := range l.Pieces {
			want[run{p.Drive, p.Range}] = extentValue{V: Version, Count: p.Count, Lease: l.ID, State: l.Space}
		}
	}
	sizes := map[string]uint32{}
	for _, d := range s.Drives {
		sizes[d.UUID] = d.Extents
	}
	var last run
	err := each(t, extentsBucket, func(k []byte, v extentValue) error {
		uuid, first, err := parseExtentKey(k)
		if err != nil {
			return err
		}
		this := run{uuid, extent.Range{First: first, Count: v.Count}}
		switch {
		case want[this] != v:
			return fmt.Errorf("run of %d extents is not one of lease %q in state %s", v.Count, v.Lease, v.State)
		case v.Count == 0 || this.r.End() > uint64(sizes[uuid]):
			return fmt.Errorf("run of %d extents, drive has %d", v.Count, sizes[uuid])
		case last.drive == uuid && last.r.Overlaps(this.r):
			return fmt.Errorf("extents %v and %v overlap", last.r, this.r)
		}
		delete(want, this)
		last = this
		return nil
	})
	if err != nil {
		return err
	}
	for r, v := range want {
		return fmt.Errorf("%w: extents %v of drive %s, of lease %s, are missing", ErrCorrupt, r.r, r.drive, v.Lease)
	}
	return nil
}

// checkKeys checks that idempotency keys lead to leases that have them.
func (t *tables) checkKeys(s *State) error {
	want := map[string]string{}
	for _, l := range slices.Concat(s.Live, s.Ended) {
		if l.Key != "" && (l.Result != lease.Failed || l.CloseSeq == 0) {
			want[string(keyKey(l.Tenant, l.Key))] = l.ID
		}
	}
	err := each(t, keysBucket, func(k []byte, v refValue) error {
		if want[string(k)] != v.Lease {
			return fmt.Errorf("lease %q does not have it", v.Lease)
		}
		delete(want, string(k))
		return nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%w: %d idempotency keys are missing", ErrCorrupt, len(want))
	}
	return err
}

// checkRecords checks the chain of the newest records against the meta value.
func (t *tables) checkRecords(*State) error {
	c := t.tx.Bucket(recordsBucket).Cursor()
	seq, hash := t.meta.NextSeq, t.meta.LastHash
	k, v := c.Last()
	var whole bool // the walk went back to the first record
	for n := 0; ; n++ {
		if k == nil || n == tailRecords {
			whole = k == nil && n < tailRecords
			break
		}
		r, err := ParseRecord(v)
		switch {
		case err != nil:
			return fmt.Errorf("%w: record %x: %w", ErrCorrupt, k, err)
		case len(k) != 8 || binary.BigEndian.Uint64(k)+1 != seq || r.NodeSeq+1 != seq || Hash(v) != hash || r.NodeID != t.meta.NodeID:
			return fmt.Errorf("%w: record %x does not stand before record %d", ErrCorrupt, k, seq)
		}
		seq, hash = r.NodeSeq, r.PrevHash
		k, v = c.Prev()
	}
	if whole && (seq != 1 || hash != proof.ZeroHash) {
		return fmt.Errorf("%w: the records before number %d are missing", ErrCorrupt, seq)
	}
	return nil
}

// Records implements [Store].
func (b *Bolt) Records(after uint64, limit int) ([]Stored, error) {
	var out []Stored
	err := b.view("reading records", func(t *tables) error {
		out = nil
		c := t.tx.Bucket(recordsBucket).Cursor()
		for k, v := c.Seek(seqKey(after + 1)); k != nil && len(out) < limit; k, v = c.Next() {
			if len(k) != 8 {
				return fmt.Errorf("%w: record key %x", ErrCorrupt, k)
			}
			out = append(out, Stored{Seq: binary.BigEndian.Uint64(k), JSON: bytes.Clone(v)})
		}
		return nil
	})
	return out, err
}
