package csi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/lease"
)

// A name is made into a lease once, by the daemon's idempotency key:
//
//	1. The key is the name and a number, from 0 on. An open with it makes a lease, or
//	   finds the one that an earlier call made, be it cut off before it had answered.
//	2. A lease that has ended, as its volume was deleted or lost, is none: the next
//	   number is taken.
//	3. A lease that is there and is not what is wanted is ALREADY_EXISTS.
//
// The daemon remembers the last 1000 leases that ended, with their keys.

// maxReuse bounds how often a name is found to have been used before.
const maxReuse = 1024

// nameKey is the idempotency key of the n-th lease of a name.
func nameKey(name string, n int) string {
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("csi-%s-%d", hex.EncodeToString(sum[:]), n)
}

// CreateVolume implements Controller.
func (d *Driver) CreateVolume(ctx context.Context, req *spec.CreateVolumeRequest) (*spec.CreateVolumeResponse, error) {
	if req.GetName() == "" {
		return nil, missing("name")
	}
	if err := checkCaps(req.GetVolumeCapabilities()); err != nil {
		return nil, err
	}
	if req.GetVolumeContentSource() != nil {
		return nil, invalid("volume_content_source: a volume begins empty, there are no snapshots and no clones")
	}
	p, err := parseParams(req.GetParameters())
	if err != nil {
		return nil, err
	}
	if p.limits, err = parseLimits(p.limits, req.GetMutableParameters()); err != nil {
		return nil, err
	}
	size, err := sizeOf(req.GetCapacityRange(), minBytes(req.GetVolumeCapabilities()), defaultBytes)
	if err != nil {
		return nil, err
	}
	if !d.reaches(req.GetAccessibilityRequirements()) {
		return nil, status.Errorf(codes.ResourceExhausted, "accessibility_requirements do not have this node, %s=%s", TopologyKey, d.cfg.NodeID)
	}
	release, err := d.locks.take("name " + req.GetName())
	if err != nil {
		return nil, err
	}
	defer release()
	st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		return nil, failure("creating a volume", err)
	}
	l, err := d.open(ctx, req, p, size)
	if err != nil {
		return nil, err
	}
	d.cfg.Events.opened(p.claim, l.GetId(), d.cfg.NodeID)
	return &spec.CreateVolumeResponse{Volume: d.volumeMessage(l, st.GetNodeId())}, nil
}

// open finds or opens the lease of a name.
func (d *Driver) open(ctx context.Context, req *spec.CreateVolumeRequest, p params, size int64) (*vacatev1.Lease, error) {
	want := &vacatev1.LeaseServiceOpenRequest{SizeBytes: size, Tenant: p.tenant, Drive: p.drive, LogicalBlock: p.logicalBlock, Limits: p.limits}
	for n := range maxReuse {
		want.IdempotencyKey = nameKey(req.GetName(), n)
		var l *vacatev1.Lease
		res, err := d.cfg.Client.Leases.Open(ctx, want)
		switch has := client.ProblemOf(err).GetObject(); {
		case err == nil:
			l = res.GetLease()
		case kindOf(err) == "refused" && lease.ValidID(has): // the key is lease has's, which is another one
			found, err := d.cfg.Client.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: has})
			if err != nil {
				return nil, failure("creating a volume", err)
			}
			l = found.GetLease()
		case kindOf(err) == "not-found": // the drive: another node may have it
			return nil, status.Errorf(codes.ResourceExhausted, "parameter %s: %v", paramDrive, failure("creating a volume", err))
		default:
			return nil, failure("creating a volume", err)
		}
		if over(l) {
			continue
		}
		if why := differs(l, req, p); why != "" {
			return nil, status.Errorf(codes.AlreadyExists, "there is a volume %q already, lease %s, %s", req.GetName(), l.GetId(), why)
		}
		return l, nil
	}
	return nil, status.Errorf(codes.Internal, "the name %q was used for %d volumes before: take another", req.GetName(), maxReuse)
}

// differs says how a lease is not what is wanted, or nothing.
func differs(l *vacatev1.Lease, req *spec.CreateVolumeRequest, p params) string {
	block := p.logicalBlock
	if block == 0 {
		block = 512
	}
	onDrive := func(piece *vacatev1.Piece) bool {
		return piece.GetDrive() == p.drive || piece.GetDriveUuid() == p.drive
	}
	switch {
	case !within(l.GetSizeBytes(), req.GetCapacityRange()):
		return fmt.Sprintf("which has %d bytes", l.GetSizeBytes())
	case l.GetSizeBytes() < minBytes(req.GetVolumeCapabilities()):
		return fmt.Sprintf("which is too small for the file system, with %d bytes", l.GetSizeBytes())
	case l.GetLogicalBlock() != block:
		return fmt.Sprintf("which has logical blocks of %d bytes", l.GetLogicalBlock())
	case !sameLimits(l.GetLimits(), p.limits):
		return "which has other limits"
	case p.drive != "" && !slices.ContainsFunc(l.GetPieces(), onDrive):
		return "which lies on another drive"
	}
	return ""
}

// volumeMessage is a volume as the interface shows it. What its context says is for
// people: where the lease is, and how to ask for its certificate once it has ended.
func (d *Driver) volumeMessage(l *vacatev1.Lease, daemonID string) *spec.Volume {
	return &spec.Volume{
		VolumeId: d.volumeID(l.GetId()), CapacityBytes: l.GetSizeBytes(), AccessibleTopology: []*spec.Topology{d.topology()},
		VolumeContext: map[string]string{
			Name + "/lease":       l.GetId(),
			Name + "/node":        d.cfg.NodeID,
			Name + "/daemon":      daemonID,
			Name + "/certificate": certificateHint(l.GetId()),
		},
	}
}

// certificateHint says how to get a lease's certificate, on its node.
func certificateHint(leaseID string) string { return "vacate certificate get " + leaseID }

// topology is where volumes of this driver are reached from.
func (d *Driver) topology() *spec.Topology {
	return &spec.Topology{Segments: map[string]string{TopologyKey: d.cfg.NodeID}}
}

// here reports whether a topology is, or has, this node.
func (d *Driver) here(t *spec.Topology) bool {
	for k, v := range t.GetSegments() {
		if k == TopologyKey && v != d.cfg.NodeID {
			return false
		}
	}
	return true
}

// reaches reports whether a volume of this node is what the requirement asks for.
func (d *Driver) reaches(r *spec.TopologyRequirement) bool {
	terms := r.GetRequisite()
	if len(terms) == 0 {
		terms = r.GetPreferred()
	}
	return len(terms) == 0 || slices.ContainsFunc(terms, d.here)
}
