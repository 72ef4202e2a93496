package notary

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"vacate/internal/durable"
	"vacate/internal/fail"
	"vacate/internal/journal"
	"vacate/internal/translog"
	"vacate/proof"
)

type leaf = translog.Leaf

// certify writes the certificates that are due and covered by the newest checkpoint.
func (n *Notary) certify(ctx context.Context) error {
	due, err := n.cfg.Spool.Due(1024)
	if err != nil {
		return err
	}
	n.mu.Lock()
	newest := n.newest
	n.mu.Unlock()
	var failed error
	for _, id := range due {
		if n.skip(id, newest) {
			continue
		}
		if err := n.certificate(ctx, id, newest); err != nil { // the others' turn comes all the same
			failed = errors.Join(failed, fmt.Errorf("certificate of lease %s: %w", id, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return failed
}

// skip tells that there is a certificate already, and this checkpoint makes no better
// one.
func (n *Notary) skip(id string, newest published) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, made := n.covered[id]
	return made && !newest.quorum
}

// certificate writes one certificate, if its records are covered.
func (n *Notary) certificate(ctx context.Context, id string, newest published) error {
	seqs, err := n.cfg.Spool.RecordsOf(id)
	if err != nil {
		return err
	}
	all, err := n.collect(seqs)
	if err != nil {
		return err
	}
	if len(all) == 0 || all[0].record.Type != proof.OPEN {
		// Opened by a version that signed nothing: there is nothing to prove it by.
		n.cfg.Logs.Warn("a lease gets no certificate: its OPEN is not signed", "lease_id", id)
		return n.cfg.Spool.Certified(id)
	}
	for _, p := range all {
		if p.index >= newest.point.Size {
			return nil // the next checkpoint
		}
	}
	b, err := n.bundle(ctx, id, all, newest)
	if errors.Is(err, errElsewhere) { // nor will there ever be one
		n.cfg.Logs.Error("a lease gets no certificate", "lease_id", id, "error", err)
		return n.cfg.Spool.Certified(id)
	}
	if err != nil {
		return err
	}
	if !newest.quorum {
		if err := n.store.put(id, b, false); err != nil {
			return err
		}
		n.mu.Lock()
		n.covered[id] = newest.point.Size
		n.mu.Unlock()
		n.changed()
		return nil
	}
	if err := n.store.put(id, b, true); err != nil {
		return err
	}
	if err := n.judge(id, all, newest); err != nil {
		return err
	}
	fail.At(fail.ControlCertified)
	if err := n.cfg.Spool.Certified(id); err != nil {
		return err
	}
	n.mu.Lock()
	delete(n.covered, id)
	n.counts.Certified++
	n.mu.Unlock()
	n.changed()
	return n.drop(id, all)
}

// A piece is one record of a certificate.
type piece struct {
	record   proof.Record
	envelope []byte
	index    uint64
}

// collect finds the records of a lease, and the rotations of keys among them.
func (n *Notary) collect(seqs []uint64) ([]piece, error) {
	var all []piece
	for _, seq := range seqs {
		placed, envelope, err := n.cfg.Spool.Placed(seq)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", seq, err)
		}
		p, err := newPiece(envelope, placed)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	if len(all) < 2 {
		return all, nil
	}
	rotations, err := n.rotations(seqs[0], seqs[len(seqs)-1])
	if err != nil {
		return nil, err
	}
	all = append(all, rotations...)
	slices.SortFunc(all, func(a, b piece) int { return cmp.Compare(a.record.NodeSeq, b.record.NodeSeq) })
	return all, nil
}

func newPiece(envelope []byte, placed journal.Placed) (piece, error) {
	e, err := proof.ParseEnvelope(envelope)
	if err != nil {
		return piece{}, fmt.Errorf("record %d: %w", placed.Seq, err)
	}
	r, err := proof.ParsePayload(e.Payload)
	if err != nil {
		return piece{}, fmt.Errorf("record %d: %w", placed.Seq, err)
	}
	return piece{r, envelope, placed.Index}, nil
}

// rotations are the KEYS records of the node's own key between two records.
func (n *Notary) rotations(from, to uint64) ([]piece, error) {
	names, err := os.ReadDir(n.path(""))
	if err != nil {
		return nil, err
	}
	var out []piece
	for _, e := range names {
		text, ok := strings.CutPrefix(e.Name(), "rotation-")
		if !ok {
			continue
		}
		seq, err := strconv.ParseUint(text, 10, 64)
		if err != nil || seq <= from || seq >= to {
			continue
		}
		b, _, err := durable.Read(n.path(e.Name()), proof.MaxEnvelope+1024)
		if err != nil {
			return nil, err
		}
		r, err := proof.Decode[rotation](b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name(), err)
		}
		p, err := newPiece(r.Envelope, journal.Placed{Seq: r.Seq, Index: r.Index})
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(p.record.Keys, func(k proof.KeyChange) bool { return k.Role == proof.RoleNode }) {
			out = append(out, p)
		}
	}
	return out, nil
}

// bundle puts a certificate together.
func (n *Notary) bundle(ctx context.Context, id string, all []piece, newest published) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	signed, err := proof.ParseCheckpoint(newest.note)
	if err != nil {
		return nil, err
	}
	var b proof.Bundle
	for _, p := range all {
		path, err := n.cfg.Log.Proof(ctx, p.index, newest.point.Size)
		if err != nil {
			return nil, err
		}
		// What is written is never replaced: what the log says is checked before.
		if err := proof.VerifyInclusion(newest.point, p.index, proof.LeafHash(p.envelope), path); err != nil {
			return nil, fmt.Errorf("record %d: %w", p.record.NodeSeq, cmp.Or(n.elsewhere(ctx, p, path, newest), err))
		}
		t := proof.TlogProof{Index: p.index, Path: path, Checkpoint: signed}
		b.Records = append(b.Records, proof.Entry{Envelope: p.envelope, Proof: string(t.Marshal())})
	}
	if b.Beacons, err = n.beacons(ctx, id, all, newest.point); err != nil {
		return nil, err
	}
	if b.Annex, err = n.cfg.Spool.Annex(id); err != nil && !errors.Is(err, journal.ErrNotFound) {
		return nil, err
	}
	for _, p := range all {
		q, err := n.quote(p)
		if err != nil {
			return nil, err
		}
		b.Quotes = append(b.Quotes, q...)
	}
	return b.Marshal()
}

// errElsewhere: another log has a record. There is no certificate over two logs.
var errElsewhere = errors.New("it was logged while another log was in use: this one has another record in its place")

// elsewhere is errElsewhere if the log proves that another record is where p was put.
func (n *Notary) elsewhere(ctx context.Context, p piece, path [][32]byte, newest published) error {
	leaf, err := n.cfg.Log.Leaf(ctx, p.index)
	if err != nil || bytes.Equal(leaf, p.envelope) || proof.VerifyInclusion(newest.point, p.index, proof.LeafHash(leaf), path) != nil {
		return nil //nolint:nilerr // the log is what is wrong
	}
	return errElsewhere
}

// beacons are the checkpoints that records name, the oldest first, with the proof
// that the certificate's tree goes on from each.
func (n *Notary) beacons(ctx context.Context, id string, all []piece, to proof.Checkpoint) ([]proof.BeaconProof, error) {
	notes := map[uint64][]byte{} // by their trees' sizes
	for _, p := range all {
		b := p.record.Beacon
		if b == nil || notes[b.Size] != nil {
			continue
		}
		note, err := n.named(id, *b)
		if err != nil {
			return nil, err
		}
		if note != nil {
			notes[b.Size] = note
		}
	}
	var out []proof.BeaconProof
	for _, s := range slices.Sorted(maps.Keys(notes)) {
		note := notes[s]
		from, _, err := n.rules().OpenCheckpoint(note)
		if err != nil {
			return nil, fmt.Errorf("reading a beacon: %w", err)
		}
		var path [][32]byte
		if s != to.Size {
			if path, err = n.cfg.Log.Consistency(ctx, s, to.Size); err != nil {
				return nil, err
			}
		}
		if err := proof.VerifyConsistency(from, to, path); err != nil {
			return nil, fmt.Errorf("the beacon of %d records: %w", s, err)
		}
		b := proof.BeaconProof{Checkpoint: string(note)}
		for _, h := range path {
			b.Consistency = append(b.Consistency, base64.StdEncoding.EncodeToString(h[:]))
		}
		out = append(out, b)
	}
	return out, nil
}

// named is the checkpoint that a record names, in the very bytes; nil where there is
// none any more that the policy of now would take: the certificate then says that the
// time is not proven.
func (n *Notary) named(id string, b proof.Beacon) ([]byte, error) {
	for _, name := range []string{heldName(id, b.Size), beaconName(b.Size)} {
		note, _, err := durable.Read(n.path(name), maxNote)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading a beacon: %w", err)
		}
		if kept, err := n.asKept(note); err != nil || kept != nil && *kept == b {
			return note, err
		}
	}
	n.cfg.Logs.Warn("a certificate is made without a beacon", "lease_id", id, "size", b.Size)
	return nil, nil
}

// quote is what the TPM said of a record, if it was asked and the policy of now
// would believe it: a certificate with any other is rejected. There is none where
// records are not quoted any more, or by another TPM.
func (n *Notary) quote(p piece) ([]proof.Quote, error) {
	pin, ok := n.rules().TPM(n.node)
	if !ok {
		return nil, nil
	}
	seq := p.record.NodeSeq
	b, _, err := durable.Read(n.path(quoteName(seq)), maxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	q, err := proof.Decode[proof.Quote](b)
	if err != nil {
		return nil, fmt.Errorf("the quote of record %d: %w", seq, err)
	}
	env, err := proof.ParseEnvelope(p.envelope)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", seq, err)
	}
	if _, err := q.Verify(pin, env.Payload); err != nil {
		return nil, nil //nolint:nilerr // the certificate says that it is not measured
	}
	return []proof.Quote{q}, nil
}

// judge notes whether a lease was erased by its time: by the witnesses' clocks, or
// where the policy has none, by the node's own.
func (n *Notary) judge(id string, all []piece, newest published) error {
	by := ""
	for _, p := range all {
		if p.record.EraseBy != "" {
			by = p.record.EraseBy
		}
	}
	if by == "" {
		return nil
	}
	deadline, err := time.Parse(time.RFC3339, by)
	if err != nil {
		return err
	}
	at, ok := n.rules().QuorumTime(newest.point)
	if !ok {
		l, err := n.cfg.Spool.Lease(id)
		if errors.Is(err, journal.ErrNotFound) { // the log was away while a thousand others ended
			n.cfg.Logs.Warn("it is not known any more whether a lease was erased by its time", "lease_id", id, "erase_by", by)
			return nil
		}
		if err != nil {
			return err
		}
		at = l.ClosedAt
	}
	return n.store.judged(id, !at.After(deadline))
}

// drop removes what was kept for a certificate that is written.
func (n *Notary) drop(id string, all []piece) error {
	for _, p := range all {
		if p.record.LeaseID != id {
			continue
		}
		names := []string{quoteName(p.record.NodeSeq)}
		if p.record.Beacon != nil {
			names = append(names, heldName(id, p.record.Beacon.Size))
		}
		for _, name := range names {
			if err := os.Remove(n.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// ErrPending says that there is no certificate yet.
var ErrPending = errors.New("the certificate is not written yet")

// Certificate is the bundle of a lease that ended. With wait it waits until ctx is
// done for one with the witnesses' quorum; the error then wraps [ErrPending].
func (n *Notary) Certificate(ctx context.Context, id string, wait bool) ([]byte, error) {
	var b []byte
	look := func() (done bool, err error) {
		var final bool
		b, final, err = n.store.get(id)
		return final || !wait && b != nil, err
	}
	done, err := look()
	if err != nil || done {
		return b, err
	}
	why := ErrPending
	if wait {
		if err = n.wait(ctx, look); err == nil {
			return b, nil
		}
	}
	if last := n.lastError(); last != "" {
		return nil, fmt.Errorf("lease %s: %w: %s", id, why, last)
	}
	return nil, fmt.Errorf("lease %s: %w", id, why)
}

// State says how far the certificate of a lease is: its size, and whether it has its
// quorum. A size of 0 is none yet.
func (n *Notary) State(id string) (size int64, final bool) { return n.store.state(id) }
