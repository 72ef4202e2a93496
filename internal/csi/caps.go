package csi

import (
	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"vacate/internal/lease"
)

// The file systems that volumes may have.
const (
	fsExt4 = "ext4" // also where none is named
	fsXFS  = "xfs"
)

// The smallest volumes, in bytes.
const (
	minBlock = lease.BlockBytes
	minExt4  = 16 << 20  // below it a journal leaves little
	minXFS   = 300 << 20 // mkfs.xfs refuses smaller ones (xfsprogs 5.19)
)

// defaultBytes is the size of a volume of which the caller does not name one.
const defaultBytes = 1 << 30

// modes are the access modes that a volume of one node can have.
var modes = map[spec.VolumeCapability_AccessMode_Mode]bool{
	spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER:        true,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:   true,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER: true,
	spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:  true,
}

// checkCap says why a volume cannot have a capability.
func checkCap(c *spec.VolumeCapability) error {
	mode := c.GetAccessMode().GetMode()
	switch {
	case c == nil:
		return missing("volume_capability")
	case c.GetBlock() == nil && c.GetMount() == nil:
		return missing("volume_capability.access_type")
	case c.GetAccessMode() == nil || mode == spec.VolumeCapability_AccessMode_UNKNOWN:
		return missing("volume_capability.access_mode")
	case !modes[mode]:
		return invalid("access mode %v: a volume is reached from its own node alone", mode)
	case c.GetMount().GetVolumeMountGroup() != "":
		return invalid("volume_mount_group is set, and this driver does not announce VOLUME_MOUNT_GROUP")
	case c.GetMount() != nil && fsType(c) != fsExt4 && fsType(c) != fsXFS:
		return invalid("file system %q: there are %s and %s", fsType(c), fsExt4, fsXFS)
	}
	return nil
}

// checkCaps checks all capabilities of a volume that is wanted.
func checkCaps(all []*spec.VolumeCapability) error {
	if len(all) == 0 {
		return missing("volume_capabilities")
	}
	for _, c := range all {
		if err := checkCap(c); err != nil {
			return err
		}
	}
	return nil
}

// fsType is the file system of a capability to mount.
func fsType(c *spec.VolumeCapability) string {
	if t := c.GetMount().GetFsType(); t != "" {
		return t
	}
	return fsExt4
}

// minBytes is the smallest volume that has all capabilities. Where none is named
// they may be any.
func minBytes(all []*spec.VolumeCapability) int64 {
	least := int64(minBlock)
	for _, c := range all {
		switch {
		case c.GetMount() == nil:
		case fsType(c) == fsXFS:
			least = max(least, minXFS)
		default:
			least = max(least, minExt4)
		}
	}
	return least
}
