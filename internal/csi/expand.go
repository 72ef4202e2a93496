package csi

import (
	"context"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vacatev1 "vacate/api/vacate/v1"
)

// A volume grows in three steps: its lease, its device, its file system. The first is
// done by whoever is asked first, ControllerExpandVolume or NodeExpandVolume. The
// second the kernel does for a device in use from 6.16 on, over ublk; else the device
// has its new size when the volume is staged the next time. The third is done by
// NodeExpandVolume, and by each NodeStageVolume.

// ControllerExpandVolume implements Controller. External resizers are one for a
// cluster, and may ask the driver of any node: of another node's volume nothing is
// known here, and the rest is left to its own driver's NodeExpandVolume.
func (d *Driver) ControllerExpandVolume(ctx context.Context, req *spec.ControllerExpandVolumeRequest) (*spec.ControllerExpandVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, missing("volume_id")
	}
	if req.GetCapacityRange() == nil {
		return nil, missing("capacity_range")
	}
	if c := req.GetVolumeCapability(); c != nil {
		if err := checkCap(c); err != nil {
			return nil, err
		}
	}
	if _, of := d.parseID(id); of == anothers {
		size, err := sizeOf(req.GetCapacityRange(), minBlock, minBlock)
		if err != nil {
			return nil, err
		}
		return &spec.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
	}
	l, release, err := d.hold(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	if l, err = d.grow(ctx, id, l, req.GetCapacityRange()); err != nil {
		return nil, err
	}
	return &spec.ControllerExpandVolumeResponse{CapacityBytes: l.GetSizeBytes(), NodeExpansionRequired: true}, nil
}

// grow gives a volume's lease the size that a range asks for. It never gets smaller.
func (d *Driver) grow(ctx context.Context, id string, l *vacatev1.Lease, r *spec.CapacityRange) (*vacatev1.Lease, error) {
	size, err := sizeOf(r, l.GetSizeBytes(), l.GetSizeBytes())
	if err != nil {
		return nil, err
	}
	if size == l.GetSizeBytes() {
		return l, nil
	}
	res, err := d.cfg.Client.Leases.Resize(ctx, &vacatev1.LeaseServiceResizeRequest{Id: l.GetId(), SizeBytes: size})
	if err != nil {
		return nil, failure("expanding volume "+id, err)
	}
	return res.GetLease(), nil
}

// NodeExpandVolume implements Node.
func (d *Driver) NodeExpandVolume(ctx context.Context, req *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	id := req.GetVolumeId()
	switch {
	case id == "":
		return nil, missing("volume_id")
	case req.GetVolumePath() == "":
		return nil, missing("volume_path")
	}
	if c := req.GetVolumeCapability(); c != nil {
		if err := checkCap(c); err != nil {
			return nil, err
		}
	}
	l, release, err := d.hold(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	at, err := d.at(id, l, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if l, err = d.grow(ctx, id, l, req.GetCapacityRange()); err != nil {
		return nil, err
	}
	dev, err := d.cfg.Host.Device(l.GetDevice())
	if err != nil {
		return nil, failure("expanding volume "+id, err)
	}
	if dev.Bytes < l.GetSizeBytes() {
		return nil, status.Errorf(codes.FailedPrecondition,
			"volume %s has %d bytes, and its device %s shows %d while it is in use (that needs ublk and kernel 6.16): end its pods, and it has its new size when it is staged again",
			id, l.GetSizeBytes(), l.GetDevice(), dev.Bytes)
	}
	if at.fsType != "" {
		if err := d.cfg.Host.Grow(l.GetDevice(), at.path); err != nil {
			return nil, failure("expanding volume "+id, err)
		}
	}
	return &spec.NodeExpandVolumeResponse{CapacityBytes: l.GetSizeBytes()}, nil
}

// ControllerModifyVolume implements Controller: what can be changed of a volume is how
// fast it may be used. A limit that is not named stays as it is.
func (d *Driver) ControllerModifyVolume(ctx context.Context, req *spec.ControllerModifyVolumeRequest) (*spec.ControllerModifyVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, missing("volume_id")
	}
	l, release, err := d.hold(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	limits, err := parseLimits(l.GetLimits(), req.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	if !sameLimits(limits, l.GetLimits()) {
		if _, err := d.cfg.Client.Leases.Limit(ctx, &vacatev1.LeaseServiceLimitRequest{Id: l.GetId(), Limits: limits}); err != nil {
			return nil, failure("modifying volume "+id, err)
		}
	}
	return &spec.ControllerModifyVolumeResponse{}, nil
}
