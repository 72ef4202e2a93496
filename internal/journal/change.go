package journal

import (
	"errors"
	"fmt"

	"vacate/internal/lease"
	"vacate/internal/limit"
)

// This file has the changes, one method a transaction.

// AddDrive implements [Store].
func (b *Bolt) AddDrive(d Drive) error {
	return b.update("noting drive "+d.Path, func(t *tables) error {
		key, err := driveKey(d.UUID)
		if err != nil {
			return err
		}
		if _, found, err := get[driveValue](t, drivesBucket, key); err != nil || found {
			return or(err, ErrExists)
		}
		d.State = Enrolling
		t.put(drivesBucket, key, encode(driveValue{Version, d}))
		return nil
	})
}

// DropDrive implements [Store].
func (b *Bolt) DropDrive(uuid string) error {
	return b.update("forgetting drive "+uuid, func(t *tables) error {
		key, err := driveKey(uuid)
		if err != nil {
			return err
		}
		d, found, err := get[driveValue](t, drivesBucket, key)
		if err != nil || !found {
			return err
		}
		if d.State != Enrolling {
			return fmt.Errorf("it is %s: %w", d.State, ErrExists)
		}
		t.delete(drivesBucket, key)
		return nil
	})
}

// FinishDrive implements [Store].
func (b *Bolt) FinishDrive(d Drive, te Testimony) error {
	return b.update("enrolling drive "+d.Path, func(t *tables) error {
		key, err := driveKey(d.UUID)
		if err != nil {
			return err
		}
		old, found, err := get[driveValue](t, drivesBucket, key)
		if err != nil || !found {
			return or(err, ErrNotFound)
		}
		if old.State == Ready {
			return nil
		}
		d.State = Ready
		t.put(drivesBucket, key, encode(driveValue{Version, d}))
		r, err := enrolRecord(d, te)
		if err != nil {
			return err
		}
		_, err = t.append(r)
		return err
	})
}

// IntendEpochs implements [Store].
func (b *Bolt) IntendEpochs(uuids []string) error {
	return b.epochs("writing the next epoch", uuids, func(d *driveValue) bool {
		if d.Next != 0 {
			return false
		}
		d.Next = d.Epoch + 1
		return true
	})
}

// ConfirmEpochs implements [Store].
func (b *Bolt) ConfirmEpochs(uuids []string) error {
	return b.epochs("confirming the epoch", uuids, func(d *driveValue) bool {
		if d.Next == 0 {
			return false
		}
		d.Epoch, d.Next = d.Next, 0
		return true
	})
}

func (b *Bolt) epochs(op string, uuids []string, change func(*driveValue) bool) error {
	if len(uuids) == 0 {
		return nil
	}
	return b.update(op, func(t *tables) error {
		for _, uuid := range uuids {
			key, err := driveKey(uuid)
			if err != nil {
				return err
			}
			d, found, err := get[driveValue](t, drivesBucket, key)
			if err != nil || !found {
				return or(err, fmt.Errorf("drive %s: %w", uuid, ErrNotFound))
			}
			if change(&d) {
				t.put(drivesBucket, key, encode(d))
			}
		}
		return nil
	})
}

// OpenLease implements [Store].
func (b *Bolt) OpenLease(l lease.Lease, te Testimony) (lease.Lease, error) {
	var out lease.Lease
	err := b.update("opening lease "+l.ID, func(t *tables) error {
		if l.State != lease.Opening || l.Space != lease.Held || !lease.ValidID(l.ID) {
			return fmt.Errorf("lease %q in state %s with space %s cannot be opened", l.ID, l.State, l.Space)
		}
		if err := errors.Join(l.Limits.Check(), l.OpenLimits.Check(), l.Exports.Check()); err != nil {
			return err
		}
		for _, bucket := range [][]byte{leasesBucket, endedBucket} {
			if t.tx.Bucket(bucket).Get([]byte(l.ID)) != nil {
				return ErrExists
			}
		}
		if l.Key != "" {
			if t.tx.Bucket(keysBucket).Get(keyKey(l.Tenant, l.Key)) != nil {
				return fmt.Errorf("idempotency key: %w", ErrExists)
			}
			t.put(keysBucket, keyKey(l.Tenant, l.Key), encode(refValue{Version, l.ID}))
		}
		if err := t.hold(l); err != nil {
			return err
		}
		out = l
		r, err := t.openRecord(l, te)
		if err != nil {
			return err
		}
		if out.OpenSeq, err = t.append(r); err != nil {
			return err
		}
		t.put(leasesBucket, []byte(l.ID), encode(leaseValue{Version, out}))
		return nil
	})
	return out, err
}

// LimitLease implements [Store].
func (b *Bolt) LimitLease(id string, limits limit.Limits) (lease.Lease, error) {
	var out lease.Lease
	err := b.update("limiting lease "+id, func(t *tables) error {
		if err := limits.Check(); err != nil {
			return err
		}
		old, live, err := t.find(id)
		if err != nil {
			return err
		}
		if !live || old.CloseSeq != 0 {
			return fmt.Errorf("it is %s: %w", old.State, ErrNotFound)
		}
		if out = old; out.Limits == limits {
			return nil
		}
		out.Limits = limits
		t.put(leasesBucket, []byte(id), encode(leaseValue{Version, out}))
		return nil
	})
	return out, err
}

// CloseLease implements [Store].
func (b *Bolt) CloseLease(l lease.Lease, free bool, te Testimony) (lease.Lease, error) {
	var out lease.Lease
	err := b.update("closing lease "+l.ID, func(t *tables) error {
		old, live, err := t.find(l.ID)
		if err != nil {
			return err
		}
		out = old
		if live && old.CloseSeq == 0 {
			if l.SizeBytes != old.SizeBytes || l.Proof.Released != old.Proof.Released {
				return ErrStale
			}
			if out, err = t.record(old, l, free, te); err != nil {
				return err
			}
		}
		if !live {
			return nil
		}
		if free {
			out, err = t.retire(out, b.opt.KeepEnded)
			return err
		}
		t.put(leasesBucket, []byte(out.ID), encode(leaseValue{Version, out}))
		return nil
	})
	return out, err
}

// record writes the CLOSE record of old with what l observed.
func (t *tables) record(old, l lease.Lease, drained bool, te Testimony) (lease.Lease, error) {
	if l.State != lease.Erased && l.State != lease.Lost || l.Result == "" {
		return old, fmt.Errorf("lease in state %s with result %q has not ended", l.State, l.Result)
	}
	out := old
	out.State, out.Result, out.Text, out.ClosedAt = l.State, l.Result, l.Text, l.ClosedAt
	if l.Erasure != nil {
		e := *l.Erasure
		e.Drained = drained
		out.Erasure = &e
	}
	if err := out.Apply(lease.Recorded); err != nil {
		return old, err
	}
	r, err := t.closeRecord(out, te)
	if err != nil {
		return old, err
	}
	if out.CloseSeq, err = t.append(r); err != nil {
		return old, err
	}
	if err := t.bequeath(out, te.Annex); err != nil {
		return old, err
	}
	out.Space = lease.Cleaning
	if out.Result == lease.Failed && out.Key != "" {
		// Nothing came of it: the same key may try again.
		if err := t.dropKey(out); err != nil {
			return old, err
		}
	}
	return out, t.release(out, lease.Cleaning)
}

// FreeSpace implements [Store].
func (b *Bolt) FreeSpace(id string) (lease.Lease, error) {
	var out lease.Lease
	err := b.update("freeing the space of lease "+id, func(t *tables) error {
		old, live, err := t.find(id)
		if err != nil {
			return err
		}
		if out = old; !live {
			return nil
		}
		if old.CloseSeq == 0 {
			return fmt.Errorf("its CLOSE record is not written: %w", ErrNotFound)
		}
		out, err = t.retire(old, b.opt.KeepEnded)
		return err
	})
	return out, err
}

// find returns a lease, whether its space is free or not.
func (t *tables) find(id string) (l lease.Lease, live bool, err error) {
	v, live, err := get[leaseValue](t, leasesBucket, []byte(id))
	if err != nil || live {
		return v.Lease, live, err
	}
	v, found, err := get[leaseValue](t, endedBucket, []byte(id))
	if err == nil && !found {
		err = ErrNotFound
	}
	return v.Lease, false, err
}

func driveKey(uuid string) ([]byte, error) {
	b, err := parseHex(uuid, 16)
	if err != nil {
		return nil, fmt.Errorf("drive uuid: %w", err)
	}
	return b, nil
}

// or returns err, or else other.
func or(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
