package csi

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	mount "k8s.io/mount-utils"

	vacatev1 "vacate/api/vacate/v1"
)

// realPath is a path as the kernel lists it: its folder without links, which a
// kubelet's folder may be reached by. The last element is left as it is, for what is
// mounted there may be broken.
func realPath(what, path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", invalid("%s %q is not absolute", what, path)
	}
	path = filepath.Clean(path)
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path, nil // nothing is mounted there
	case err != nil:
		return "", status.Errorf(codes.Internal, "%s: %v", what, err)
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// topAt is the uppermost mount at path, or nil.
func topAt(mounts []mount.MountInfo, path string) *mount.MountInfo {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].MountPoint == path {
			return &mounts[i]
		}
	}
	return nil
}

// isOf reports whether a mount is of a device: of the file system on it, or of its
// node, bound to a file.
func (d *Driver) isOf(m *mount.MountInfo, dev Device) bool {
	return m.Major == dev.Major && m.Minor == dev.Minor || d.isNode(m, dev)
}

// isNode reports whether a mount is a device's node, bound to a file.
func (d *Driver) isNode(m *mount.MountInfo, dev Device) bool {
	if m.Root == "/" || m.FsType != "devtmpfs" && m.FsType != "tmpfs" { // what a /dev is
		return false
	}
	at, err := d.cfg.Host.Device(m.MountPoint)
	return err == nil && at.Major == dev.Major && at.Minor == dev.Minor
}

// deviceOf is the device of a lease. One without is FAILED_PRECONDITION.
func (d *Driver) deviceOf(id string, l *vacatev1.Lease) (Device, error) {
	if l.GetDevice() == "" {
		return Device{}, status.Errorf(codes.FailedPrecondition, "volume %s is not staged: its lease has no device", id)
	}
	dev, err := d.cfg.Host.Device(l.GetDevice())
	return dev, failure("the device of volume "+id, err)
}

// mountsOf is all mounts of a lease's device.
func (d *Driver) mountsOf(l *vacatev1.Lease) ([]mount.MountInfo, error) {
	if l.GetDevice() == "" {
		return nil, nil
	}
	dev, err := d.cfg.Host.Device(l.GetDevice())
	if err != nil {
		return nil, err
	}
	mounts, err := d.cfg.Host.Mounts()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(mounts, func(m mount.MountInfo) bool { return !d.isOf(&m, dev) }), nil
}

// A place is where a volume is staged or published.
type place struct {
	path   string
	fsType string // "": as a block device
}

// at finds a volume at a path. One that is not there is NOT_FOUND.
func (d *Driver) at(id string, l *vacatev1.Lease, path string) (place, error) {
	gone := status.Errorf(codes.NotFound, "volume %s is not at %s", id, path)
	if l.GetDevice() == "" || !filepath.IsAbs(path) {
		return place{}, gone
	}
	path, err := realPath("volume_path", path)
	if err != nil {
		return place{}, err
	}
	dev, err := d.cfg.Host.Device(l.GetDevice())
	if err != nil {
		return place{}, failure("the device of volume "+id, err)
	}
	mounts, err := d.cfg.Host.Mounts()
	if err != nil {
		return place{}, failure("volume "+id, err)
	}
	switch m := topAt(mounts, path); {
	case m != nil && d.isNode(m, dev):
		return place{path: path}, nil
	case m != nil && d.isOf(m, dev):
		return place{path: path, fsType: m.FsType}, nil
	}
	if node, err := d.cfg.Host.Device(path); err == nil && node.Major == dev.Major && node.Minor == dev.Minor {
		return place{path: path}, nil // the device itself, or a link to it
	}
	return place{}, gone
}
