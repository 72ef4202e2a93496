package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"vacate/proof"
)

// certify writes the certificates of leases that ended with their node: their
// records and the NODE_LOST, in the log's newest tree. There is no annex, as the node
// alone could have made one, and no beacon but the operator's.
func (n *nodeLoss) certify(ctx context.Context, l *lostReader, leases []lostLease, before []byte, head proof.Checkpoint) (files []string, err error) {
	note, err := n.log.Checkpoint(ctx)
	if err != nil {
		return nil, err
	}
	if note, err = n.policy.CanonicalCheckpoint(note); err != nil {
		return nil, fmt.Errorf("the log's checkpoint: %w", err)
	}
	signed, err := proof.ParseCheckpoint(note)
	if err != nil {
		return nil, err
	}
	var beacons []proof.BeaconProof
	if named(l.gone.envelope, before) {
		b, err := n.beacon(ctx, before, head, signed.Size)
		if err != nil {
			return nil, err
		}
		beacons = append(beacons, b)
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	for _, o := range leases {
		b, err := n.bundle(ctx, l, o, beacons, signed)
		if err != nil {
			return files, fmt.Errorf("certificate of lease %s: %w", o.ID, err)
		}
		file := filepath.Join(n.dir, o.ID+".certificate.json")
		if err := n.a.write(output{path: file}, b); err != nil {
			return files, err
		}
		files = append(files, file)
	}
	return files, nil
}

// named reports whether the record in an envelope has this checkpoint as its beacon.
func named(envelope, note []byte) bool {
	c, err := proof.ParseCheckpoint(note)
	if err != nil {
		return false
	}
	env, err := proof.ParseEnvelope(envelope)
	if err != nil {
		return false
	}
	r, err := proof.ParsePayload(env.Payload)
	return err == nil && r.Beacon != nil && *r.Beacon == c.Beacon()
}

func (n *nodeLoss) beacon(ctx context.Context, note []byte, head proof.Checkpoint, size uint64) (b proof.BeaconProof, err error) {
	b.Checkpoint = string(note)
	if head.Size == size {
		return b, nil
	}
	path, err := n.log.Consistency(ctx, head.Size, size)
	for _, h := range path {
		b.Consistency = append(b.Consistency, base64.StdEncoding.EncodeToString(h[:]))
	}
	return b, err
}

// bundle makes the certificate of a lease, and verifies it.
func (n *nodeLoss) bundle(ctx context.Context, l *lostReader, o lostLease, beacons []proof.BeaconProof, signed *proof.SignedCheckpoint) ([]byte, error) {
	first, last := o.pieces[0].seq, o.pieces[len(o.pieces)-1].seq
	pieces := slices.Clone(o.pieces)
	for _, r := range l.rotations {
		if r.seq > first && r.seq < last {
			pieces = append(pieces, r)
		}
	}
	slices.SortFunc(pieces, func(a, b lostPiece) int { return cmp.Compare(a.seq, b.seq) })
	bundle := proof.Bundle{Beacons: beacons}
	for _, p := range append(pieces, *l.gone) {
		path, err := n.log.Proof(ctx, p.index, signed.Size)
		if err != nil {
			return nil, err
		}
		t := proof.TlogProof{Index: p.index, Path: path, Checkpoint: signed}
		bundle.Records = append(bundle.Records, proof.Entry{Envelope: bytes.Clone(p.envelope), Proof: string(t.Marshal())})
	}
	b, err := bundle.Marshal()
	if err != nil {
		return nil, err
	}
	if _, err := proof.Verify(b, n.text, proof.Options{}); err != nil {
		return nil, err
	}
	return b, nil
}
