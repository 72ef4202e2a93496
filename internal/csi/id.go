package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
)

// A volume's id is
//
//	NODE-LEASE
//
// with the first 16 hexadecimal digits of SHA-256 of the node's id, and the lease's
// id, of 16 characters. So a driver can tell apart: what is no id of this driver;
// a volume of another node, of which it knows nothing; and a volume of this node,
// which is gone if the daemon does not know its lease, because keys live no longer
// than a daemon.

// nodePart is the part of ids that names a node.
func nodePart(nodeID string) string {
	sum := sha256.Sum256([]byte(nodeID))
	return hex.EncodeToString(sum[:8])
}

// volumeID is the id of the volume that a lease is.
func (d *Driver) volumeID(leaseID string) string { return nodePart(d.cfg.NodeID) + "-" + leaseID }

// origin is whose volume an id names.
type origin int

const (
	nobodys  origin = iota // no id of this driver
	ours                   // of this node
	anothers               // of another node
)

// parseID reads a volume's id.
func (d *Driver) parseID(id string) (leaseID string, of origin) {
	part, leaseID, ok := strings.Cut(id, "-")
	if !ok || len(part) != 16 || strings.Trim(part, "0123456789abcdef") != "" || !lease.ValidID(leaseID) {
		return "", nobodys
	}
	if part != nodePart(d.cfg.NodeID) {
		return leaseID, anothers
	}
	return leaseID, ours
}

// found is the lease of a volume, whatever became of it. Where there is none the
// error is NOT_FOUND.
func (d *Driver) found(ctx context.Context, id string) (*vacatev1.Lease, error) {
	leaseID, of := d.parseID(id)
	switch of {
	case nobodys:
		return nil, status.Errorf(codes.NotFound, "there is no volume %q: it is no id of %s", id, Name)
	case anothers:
		return nil, status.Errorf(codes.NotFound, "volume %s is not of this node, %s: ask the driver of its node", id, d.cfg.NodeID)
	}
	res, err := d.cfg.Client.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: leaseID})
	if err != nil {
		return nil, failure("volume "+id, err)
	}
	return res.GetLease(), nil
}

// hold is volume, for a call that is the only one about it until release.
func (d *Driver) hold(ctx context.Context, id string) (l *vacatev1.Lease, release func(), err error) {
	if release, err = d.locks.take("volume " + id); err != nil {
		return nil, nil, err
	}
	if l, err = d.volume(ctx, id); err != nil {
		release()
		return nil, nil, err
	}
	return l, release, nil
}

// volume is the lease of a volume that can be used. One that has ended is NOT_FOUND:
// nobody can read it any more.
func (d *Driver) volume(ctx context.Context, id string) (*vacatev1.Lease, error) {
	l, err := d.found(ctx, id)
	if err == nil && over(l) {
		return nil, status.Errorf(codes.NotFound, "there is no volume %s any more: %s", id, endText(l))
	}
	return l, err
}

// over reports whether a lease is ending, or has ended.
func over(l *vacatev1.Lease) bool { return l.GetState() > vacatev1.LeaseState_LEASE_STATE_OPEN }

// endText says how a lease ended.
func endText(l *vacatev1.Lease) string {
	if l.GetState() == vacatev1.LeaseState_LEASE_STATE_LOST || strings.HasPrefix(l.GetResult(), "lost") {
		return fmt.Sprintf("lease %s ended as %s, and what it held is gone for good: delete the claim", l.GetId(), l.GetResult())
	}
	return fmt.Sprintf("lease %s was closed, and what it held is erased", l.GetId())
}
