package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vacatev1 "vacate/api/vacate/v1"
)

// NodePublishVolume implements Node.
func (d *Driver) NodePublishVolume(ctx context.Context, req *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	id, c := req.GetVolumeId(), req.GetVolumeCapability()
	switch {
	case id == "":
		return nil, missing("volume_id")
	case req.GetTargetPath() == "":
		return nil, missing("target_path")
	}
	if err := checkCap(c); err != nil {
		return nil, err
	}
	if req.GetStagingTargetPath() == "" {
		return nil, status.Error(codes.FailedPrecondition, "staging_target_path is missing: volumes are staged before they are published")
	}
	l, release, err := d.hold(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	p := publication{id: id, lease: l, mode: c.GetAccessMode().GetMode(), block: c.GetBlock() != nil}
	p.readOnly = req.GetReadonly() || p.mode == spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY || slices.Contains(c.GetMount().GetMountFlags(), "ro")
	for _, f := range c.GetMount().GetMountFlags() {
		if slices.Contains(shownFlags, f) {
			p.flags = append(p.flags, f)
		}
	}
	if p.staging, err = realPath("staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if p.target, err = realPath("target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := d.publish(p); err != nil {
		return nil, err
	}
	return &spec.NodePublishVolumeResponse{}, nil
}

// A publication is one volume that is to be at one target.
type publication struct {
	id              string
	lease           *vacatev1.Lease
	staging, target string // as the kernel lists them
	mode            spec.VolumeCapability_AccessMode_Mode
	block, readOnly bool
	flags           []string
}

func (d *Driver) publish(p publication) error {
	dev, err := d.deviceOf(p.id, p.lease)
	if err != nil {
		return err
	}
	mounts, err := d.cfg.Host.Mounts()
	if err != nil {
		return failure("publishing volume "+p.id, err)
	}
	staged := topAt(mounts, p.staging)
	if !p.block && (staged == nil || !d.isOf(staged, dev)) {
		return status.Errorf(codes.FailedPrecondition, "volume %s is not staged at %s", p.id, p.staging)
	}
	if m := topAt(mounts, p.target); m != nil {
		switch {
		case !d.isOf(m, dev):
			return status.Errorf(codes.AlreadyExists, "%s has something else mounted: %s (%s)", p.target, m.Source, m.FsType)
		case d.isNode(m, dev) != p.block:
			return status.Errorf(codes.AlreadyExists, "volume %s is published at %s in the other way, as a block device or as a file system", p.id, p.target)
		case slices.Contains(m.MountOptions, "ro") != p.readOnly:
			return status.Errorf(codes.AlreadyExists, "volume %s is published at %s, and whether it is read-only differs", p.id, p.target)
		}
		return nil
	}
	if others := d.others(mounts, dev, p.staging, p.target); len(others) > 0 && p.mode != spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER {
		return status.Errorf(codes.FailedPrecondition, "volume %s is published at %s, and its access mode, %v, allows one place", p.id, others[0], p.mode)
	}
	if err := makeTarget(p.target, p.block); err != nil {
		return failure("publishing volume "+p.id, err)
	}
	source := p.staging
	if p.block {
		if source, err = filepath.EvalSymlinks(p.lease.GetDevice()); err != nil {
			return failure("publishing volume "+p.id, errors.Join(err, removeTarget(p.target)))
		}
	}
	flags := slices.Clone(p.flags)
	if p.readOnly {
		flags = append(flags, "ro")
	}
	if err := d.cfg.Host.Bind(source, p.target, flags); err != nil {
		return failure("publishing volume "+p.id, errors.Join(err, removeTarget(p.target)))
	}
	return nil
}

// makeTarget makes what a volume is mounted over: a folder, or for a block device a
// file. Its own folder is the caller's (NodePublishVolumeRequest.target_path).
func makeTarget(path string, block bool) error {
	if !block {
		if err := os.Mkdir(path, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// removeTarget removes what makeTarget made. What holds anything stays, and is an
// error: it is not the driver's.
func removeTarget(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !st.IsDir() && (!st.Mode().IsRegular() || st.Size() > 0):
		return fmt.Errorf("%s is not what was made for a volume: it is left there", path)
	}
	return os.Remove(path)
}

// NodeUnpublishVolume implements Node.
func (d *Driver) NodeUnpublishVolume(_ context.Context, req *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	id := req.GetVolumeId()
	switch {
	case id == "":
		return nil, missing("volume_id")
	case req.GetTargetPath() == "":
		return nil, missing("target_path")
	}
	if err := d.mineToEnd(id); err != nil {
		return nil, err
	}
	release, err := d.locks.take("volume " + id)
	if err != nil {
		return nil, err
	}
	defer release()
	path, err := realPath("target_path", req.GetTargetPath())
	if err != nil {
		return nil, err
	}
	if err := d.unmount(path); err != nil {
		return nil, failure("unmounting volume "+id, err)
	}
	if err := removeTarget(path); err != nil {
		return nil, failure("unpublishing volume "+id, err)
	}
	return &spec.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats implements Node.
func (d *Driver) NodeGetVolumeStats(ctx context.Context, req *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	id := req.GetVolumeId()
	switch {
	case id == "":
		return nil, missing("volume_id")
	case req.GetVolumePath() == "":
		return nil, missing("volume_path")
	}
	l, err := d.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	at, err := d.at(id, l, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	if at.fsType == "" {
		dev, err := d.deviceOf(id, l)
		if err != nil {
			return nil, err
		}
		return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{{Unit: spec.VolumeUsage_BYTES, Total: dev.Bytes}}}, nil
	}
	u, err := d.cfg.Host.Usage(at.path)
	if err != nil {
		return nil, failure("volume "+id, err)
	}
	return &spec.NodeGetVolumeStatsResponse{Usage: []*spec.VolumeUsage{
		{Unit: spec.VolumeUsage_BYTES, Total: u.Bytes, Used: u.Used, Available: u.Free},
		{Unit: spec.VolumeUsage_INODES, Total: u.Inodes, Used: u.UsedInodes, Available: u.FreeInodes},
	}}, nil
}
