package notary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"vacate/internal/durable"
	"vacate/internal/translog"
	"vacate/proof"
)

// workDir is beneath the folder of the certificates, for what they will need:
//
//	beacon-SIZE        the first checkpoint of this size that had a quorum
//	lease-ID-SIZE      another name of it, while a lease needs it
//	quote-SEQ          the TPM's word on a record
//	rotation-SEQ       a KEYS record and its place
const workDir = "work"

const maxNote = 64 << 10 // bytes of a checkpoint

func beaconName(size uint64) string { return "beacon-" + strconv.FormatUint(size, 10) }
func heldName(lease string, sz uint64) string {
	return "lease-" + lease + "-" + strconv.FormatUint(sz, 10)
}
func quoteName(seq uint64) string    { return "quote-" + strconv.FormatUint(seq, 10) }
func rotationName(seq uint64) string { return "rotation-" + strconv.FormatUint(seq, 10) }

// keep writes a file of the work folder, durably.
func (n *Notary) keep(name string, b []byte) error {
	if err := durable.Write(n.path(name), b, 0o600); err != nil {
		return fmt.Errorf("keeping what a certificate needs: %w", err)
	}
	return nil
}

// Beacon is the newest checkpoint that a record may name, with the cosignatures that
// are kept for its certificate; nil before the first. What is returned is not changed
// any more.
func (n *Notary) Beacon() *proof.Beacon {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.beacon
}

// readBeacon takes the newest beacon that was kept: what comes next must go on from it.
func (n *Notary) readBeacon() error {
	names, err := os.ReadDir(n.path(""))
	if err != nil {
		return err
	}
	var size uint64
	for _, e := range names {
		if s, ok := strings.CutPrefix(e.Name(), "beacon-"); ok {
			if v, err := strconv.ParseUint(s, 10, 64); err == nil {
				size = max(size, v)
			}
		}
	}
	if size == 0 {
		return nil
	}
	b, _, err := durable.Read(n.path(beaconName(size)), maxNote)
	if err != nil {
		return err
	}
	p, quorum, err := n.policy.OpenCheckpoint(b)
	if err != nil { // another log, or other witnesses: its beacons mean nothing here
		n.cfg.Logs.Warn("the newest beacon is not of this log or its witnesses any more", "size", size, "reason", err)
		return nil
	}
	n.newest = published{b, p, quorum}
	n.beacon, err = n.asKept(b)
	return err
}

// asKept is how a record names a checkpoint that was kept: by the very bytes. It is
// nil where a certificate of now could not carry these: the policy's quorum is not in
// them, or its witnesses are others.
func (n *Notary) asKept(note []byte) (*proof.Beacon, error) {
	policy := n.rules()
	canonical, err := policy.CanonicalCheckpoint(note)
	if err != nil || !bytes.Equal(canonical, note) {
		return nil, nil //nolint:nilerr // it was kept under another policy
	}
	if _, quorum, err := policy.OpenCheckpoint(note); err != nil || !quorum {
		return nil, err
	}
	signed, err := proof.ParseCheckpoint(note)
	if err != nil {
		return nil, err
	}
	b := signed.Beacon()
	return &b, nil
}

// look reads the newest checkpoint, and makes the certificates that it covers.
func (n *Notary) look(ctx context.Context) (time.Duration, error) {
	call, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	raw, err := n.cfg.Log.Checkpoint(call)
	if errors.Is(err, translog.ErrNotFound) {
		return n.lookAgain()
	}
	if err != nil {
		return 0, err
	}
	if err := n.take(call, raw); err != nil {
		return 0, err
	}
	if err := n.certify(ctx); err != nil {
		return 0, err
	}
	return n.lookAgain()
}

// lookAgain says how soon: quickly while a record that the log has is not covered, or
// the quorum of one that is.
func (n *Notary) lookAgain() (time.Duration, error) {
	st, err := n.cfg.Spool.SpoolStats()
	if err != nil {
		return 0, err
	}
	if st.Sent == 0 {
		return 0, nil
	}
	last, _, err := n.cfg.Spool.Placed(st.Sent)
	if err != nil {
		return 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.newest.note == nil || n.newest.point.Size <= last.Index:
		return pollBusy, nil
	case !n.newest.quorum:
		return 10 * pollBusy, nil
	}
	return 0, nil
}

// take verifies a checkpoint, and makes it the newest: it is of the policy's log, and
// goes on from the one before.
func (n *Notary) take(ctx context.Context, raw []byte) error {
	policy := n.rules()
	point, quorum, err := policy.OpenCheckpoint(raw)
	if err != nil {
		return err
	}
	note, err := policy.CanonicalCheckpoint(raw)
	if err != nil {
		return err
	}
	n.mu.Lock()
	old := n.newest
	n.mu.Unlock()
	if old.note != nil && string(old.note) == string(note) {
		return nil
	}
	if err := n.goesOn(ctx, old, point); err != nil {
		return err
	}
	if old.note != nil && old.point.Size == point.Size && old.quorum && !quorum {
		return nil // what there is says more
	}
	var beacon *proof.Beacon
	if quorum && point.Size > 0 {
		if beacon, err = n.keepBeacon(note, point.Size); err != nil {
			return err
		}
	}
	n.mu.Lock()
	n.newest = published{note, point, quorum}
	if beacon != nil {
		n.beacon = beacon
	}
	n.mu.Unlock()
	n.changed()
	return nil
}

// keepBeacon keeps a checkpoint that has the quorum, and returns how records name it.
// The first with its size stays, cosignatures and all: records name it by them
// already. It goes where the policy has other witnesses now.
func (n *Notary) keepBeacon(note []byte, size uint64) (*proof.Beacon, error) {
	kept, _, err := durable.Read(n.path(beaconName(size)), maxNote)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil {
		if b, err := n.asKept(kept); b != nil || err != nil {
			return b, err
		}
	}
	if err := n.keep(beaconName(size), note); err != nil {
		return nil, err
	}
	return n.asKept(note)
}

// goesOn checks that the log did not take back what it had said.
func (n *Notary) goesOn(ctx context.Context, old published, point proof.Checkpoint) error {
	if old.note == nil || old.point.Size == 0 {
		return nil
	}
	if point.Size < old.point.Size {
		return fmt.Errorf("the log %s has %d records, and had %d: it was put back from a copy, or shows two faces", point.Origin, point.Size, old.point.Size)
	}
	var path [][32]byte
	if point.Size > old.point.Size {
		var err error
		if path, err = n.cfg.Log.Consistency(ctx, old.point.Size, point.Size); err != nil {
			return err
		}
	}
	if err := proof.VerifyConsistency(old.point, point, path); err != nil {
		return fmt.Errorf("the log has changed what it had: %w", err)
	}
	return nil
}

// holdBeacon keeps the beacon that a record names for the record's certificate.
func (n *Notary) holdBeacon(r proof.Record) error {
	if r.LeaseID == "" {
		return nil
	}
	err := os.Link(n.path(beaconName(r.Beacon.Size)), n.path(heldName(r.LeaseID, r.Beacon.Size)))
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		// It was kept before it was given out. So somebody has removed it: the record is
		// as true without, and its certificate says that the time is not proven.
		n.cfg.Logs.Error("a beacon is gone that a record names", "lease_id", r.LeaseID, "size", r.Beacon.Size)
		return nil
	case err != nil:
		return err
	}
	return durable.SyncDir(n.path(""))
}

// surely is a time that it is by now: the node's clock, which a mistake may have set
// years ahead, but not later than the newest time that a quorum of witnesses gave.
func (n *Notary) surely(now time.Time) time.Time {
	policy := n.rules()
	n.mu.Lock()
	defer n.mu.Unlock()
	if since, ok := policy.QuorumSince(n.newest.point); policy.NeedsWitnesses() && (!ok || since.Before(now)) {
		return since
	}
	return now
}

// tidy removes certificates whose time is over, and beacons that no record names.
func (n *Notary) tidy(context.Context) (time.Duration, error) {
	now := n.cfg.Clock()
	if err := n.store.expire(n.surely(now).Add(-n.cfg.Keep)); err != nil {
		return 0, err
	}
	names, err := os.ReadDir(n.path(""))
	if err != nil {
		return 0, err
	}
	newest := n.Beacon()
	for _, e := range names {
		st, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), "beacon-") || newest != nil && e.Name() == beaconName(newest.Size) {
			continue
		}
		// A record that names it may be on its way to the journal: not for an hour.
		if now.Sub(st.ModTime()) > time.Hour {
			if err := os.Remove(n.path(e.Name())); err != nil {
				return 0, err
			}
		}
	}
	return 0, nil
}
