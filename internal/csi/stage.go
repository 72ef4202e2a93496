package csi

import (
	"context"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	mount "k8s.io/mount-utils"

	vacatev1 "vacate/api/vacate/v1"
)

// A volume comes to a workload in these steps, and goes in the reverse order:
//
//	1. NodeStageVolume has the daemon attach a device to the lease,
//	2. makes a file system on it if it bears nothing, and mounts it at the staging
//	   path. (A block volume is only attached.)
//	3. NodePublishVolume binds the staging path, or the device's node, to the target.
//
// Each step looks at what is there, and does what is missing.

// NodeGetCapabilities implements Node.
func (d *Driver) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	res := &spec.NodeGetCapabilitiesResponse{}
	for _, t := range []spec.NodeServiceCapability_RPC_Type{
		spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, spec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		spec.NodeServiceCapability_RPC_EXPAND_VOLUME, spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH, spec.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	} {
		res.Capabilities = append(res.Capabilities, &spec.NodeServiceCapability{
			Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: t}}})
	}
	return res, nil
}

// NodeGetInfo implements Node.
func (d *Driver) NodeGetInfo(ctx context.Context, _ *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	most := d.cfg.MaxVolumes
	if most == 0 {
		st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
		if err != nil {
			return nil, failure("asking how many leases there can be", err)
		}
		if most = int64(st.GetEngine().GetMaxLeases()); most == 0 {
			return nil, status.Error(codes.Unavailable, "the engine does not answer, so how many leases there can be is unknown: ask again")
		}
	}
	return &spec.NodeGetInfoResponse{NodeId: d.cfg.NodeID, MaxVolumesPerNode: most, AccessibleTopology: d.topology()}, nil
}

// NodeStageVolume implements Node.
func (d *Driver) NodeStageVolume(ctx context.Context, req *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	id, c := req.GetVolumeId(), req.GetVolumeCapability()
	switch {
	case id == "":
		return nil, missing("volume_id")
	case req.GetStagingTargetPath() == "":
		return nil, missing("staging_target_path")
	}
	if err := checkCap(c); err != nil {
		return nil, err
	}
	l, release, err := d.hold(ctx, id)
	if err != nil {
		return nil, err
	}
	defer release()
	path, err := realPath("staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	staged, err := d.staged(id, l, path, c)
	if err != nil {
		return nil, err
	}
	if !staged {
		err = d.stage(ctx, id, l, path, c)
	} else if c.GetMount() != nil {
		err = failure("growing the file system of volume "+id, d.cfg.Host.Grow(l.GetDevice(), path))
	}
	if err != nil {
		return nil, err
	}
	return &spec.NodeStageVolumeResponse{}, nil
}

// staged reports whether a volume is staged at path. What is mounted there, and is not
// this volume with this capability, is ALREADY_EXISTS.
func (d *Driver) staged(id string, l *vacatev1.Lease, path string, c *spec.VolumeCapability) (bool, error) {
	mounts, err := d.cfg.Host.Mounts()
	if err != nil {
		return false, failure("staging volume "+id, err)
	}
	m := topAt(mounts, path)
	if m == nil {
		return false, nil
	}
	mine := false
	if l.GetDevice() != "" {
		dev, err := d.cfg.Host.Device(l.GetDevice())
		if err != nil {
			return false, failure("staging volume "+id, err)
		}
		mine = d.isOf(m, dev)
	}
	switch {
	case !mine:
		return false, status.Errorf(codes.AlreadyExists, "%s has something else mounted: %s (%s): unmount it, or stage volume %s elsewhere", path, m.Source, m.FsType, id)
	case c.GetBlock() != nil:
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged at %s as a file system, and is wanted as a block device", id, path)
	case m.FsType != fsType(c):
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged at %s with %s, and is wanted with %s", id, path, m.FsType, fsType(c))
	case !sameFlags(m.MountOptions, c.GetMount().GetMountFlags()):
		return false, status.Errorf(codes.AlreadyExists, "volume %s is staged at %s with the mount flags %v, and is wanted with %v", id, path, m.MountOptions, c.GetMount().GetMountFlags())
	}
	return true, nil
}

// stage attaches a volume, and mounts it where it is to be mounted.
func (d *Driver) stage(ctx context.Context, id string, l *vacatev1.Lease, path string, c *spec.VolumeCapability) error {
	res, err := d.cfg.Client.Leases.Attach(ctx, &vacatev1.LeaseServiceAttachRequest{Id: l.GetId()})
	if err != nil {
		return failure("attaching volume "+id, err)
	}
	l = res.GetLease()
	if _, err := d.deviceOf(id, l); err != nil || c.GetBlock() != nil {
		return err
	}
	has, err := d.cfg.Host.Format(l.GetDevice())
	if err != nil {
		return failure("looking at what volume "+id+" bears", err)
	}
	if has != "" && has != fsType(c) {
		return status.Errorf(codes.FailedPrecondition, "volume %s bears %s, and is wanted with %s: nothing was formatted", id, has, fsType(c))
	}
	// A read-only volume is mounted read-only where it is published: here it may have to
	// get its file system.
	flags := slices.DeleteFunc(slices.Clone(c.GetMount().GetMountFlags()), func(f string) bool { return f == "ro" })
	if err := d.cfg.Host.FormatAndMount(l.GetDevice(), path, fsType(c), flags); err != nil {
		return failure("mounting volume "+id, err)
	}
	if has == "" {
		return nil
	}
	return failure("growing the file system of volume "+id, d.cfg.Host.Grow(l.GetDevice(), path))
}

// shownFlags are the mount flags that the kernel always lists for a mount that has
// them. Others it may leave out, or write otherwise, so that they tell nothing.
var shownFlags = []string{"nosuid", "nodev", "noexec", "noatime", "nodiratime"}

// sameFlags reports whether a mount has the flags that are wanted.
func sameFlags(has, wanted []string) bool {
	for _, f := range shownFlags {
		if slices.Contains(has, f) != slices.Contains(wanted, f) {
			return false
		}
	}
	return true
}

// NodeUnstageVolume implements Node. A volume that has ended may be mounted still: it
// is unmounted all the same.
func (d *Driver) NodeUnstageVolume(ctx context.Context, req *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	id := req.GetVolumeId()
	switch {
	case id == "":
		return nil, missing("volume_id")
	case req.GetStagingTargetPath() == "":
		return nil, missing("staging_target_path")
	}
	if err := d.mineToEnd(id); err != nil {
		return nil, err
	}
	release, err := d.locks.take("volume " + id)
	if err != nil {
		return nil, err
	}
	defer release()
	path, err := realPath("staging_target_path", req.GetStagingTargetPath())
	if err != nil {
		return nil, err
	}
	if err := d.unmount(path); err != nil {
		return nil, failure("unmounting volume "+id, err)
	}
	l, err := d.volume(ctx, id)
	switch {
	case status.Code(err) == codes.NotFound:
		return &spec.NodeUnstageVolumeResponse{}, nil
	case err != nil:
		return nil, err
	case l.GetDevice() != "":
		if err := d.detach(ctx, id, l); err != nil {
			return nil, err
		}
	}
	return &spec.NodeUnstageVolumeResponse{}, nil
}

// mineToEnd is for a volume that is to be unpublished or unstaged. It may be forgotten;
// but it is, or was, of this node, or the error is NOT_FOUND.
func (d *Driver) mineToEnd(id string) error {
	if _, of := d.parseID(id); of != ours {
		return status.Errorf(codes.NotFound, "there is no volume %q on this node, %s", id, d.cfg.NodeID)
	}
	return nil
}

// unmount takes all mounts at path away.
func (d *Driver) unmount(path string) error {
	for {
		mounts, err := d.cfg.Host.Mounts()
		if err != nil {
			return err
		}
		if topAt(mounts, path) == nil {
			return nil
		}
		if err := d.cfg.Host.Unmount(path); err != nil {
			return err
		}
	}
}

// others are the places, beside those named, where a device is mounted or bound.
func (d *Driver) others(mounts []mount.MountInfo, dev Device, but ...string) []string {
	var all []string
	for i := range mounts {
		if m := &mounts[i]; !slices.Contains(but, m.MountPoint) && d.isOf(m, dev) {
			all = append(all, m.MountPoint)
		}
	}
	return all
}
