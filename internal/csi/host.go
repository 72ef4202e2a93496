package csi

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	mount "k8s.io/mount-utils"
	"k8s.io/utils/exec"
)

// A Host is what the node service does with devices and mounts. Paths are absolute.
// Its methods may be called from any goroutine.
type Host interface {
	// Mounts is what is mounted where, in the order in which it was.
	Mounts() ([]mount.MountInfo, error)
	// Device looks at a block device, through links. What is there and is none is
	// ErrNoBlock.
	Device(path string) (Device, error)
	// Format is the file system, or whatever else, that a device bears; "" is nothing.
	Format(device string) (string, error)
	// FormatAndMount makes a file system on a device that bears nothing, checks one
	// that is there, and mounts it.
	FormatAndMount(device, target, fsType string, flags []string) error
	// Bind mounts a directory or a file at another place.
	Bind(source, target string, flags []string) error
	// Unmount takes the uppermost mount at target away.
	Unmount(target string) error
	// Grow gives the file system on a device, mounted at target, the device's size. One
	// that has it stays as it is.
	Grow(device, target string) error
	// Usage tells how full the file system is that path lies on.
	Usage(path string) (Usage, error)
}

// ErrNoBlock is returned, wrapped, for what is no block device.
var ErrNoBlock = errors.New("not a block device")

// A Device is a block device.
type Device struct {
	Major, Minor int
	Bytes        int64
}

// Usage is how full a file system is, in bytes and in inodes.
type Usage struct {
	Bytes, Used, Free              int64 // Free is what is left for all but root
	Inodes, UsedInodes, FreeInodes int64
}

// host is this host.
type host struct {
	mounter *mount.SafeFormatAndMount
	resizer *mount.ResizeFs
}

// NewHost is this host.
func NewHost() Host {
	x := exec.New()
	return &host{mounter: mount.NewSafeFormatAndMount(mount.NewWithoutSystemd(""), x), resizer: mount.NewResizeFs(x)}
}

func (h *host) Mounts() ([]mount.MountInfo, error) {
	return mount.ParseMountInfo("/proc/self/mountinfo")
}

// Device does not open the device: that would be a use of it, which Detach refuses.
func (h *host) Device(path string) (Device, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return Device{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Mode&syscall.S_IFMT != syscall.S_IFBLK {
		return Device{}, fmt.Errorf("%s: %w", path, ErrNoBlock)
	}
	major, minor := splitDev(st.Rdev)
	text, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/size", major, minor)) // in 512 bytes: Documentation/ABI/stable/sysfs-block
	if err != nil {
		return Device{}, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return Device{}, fmt.Errorf("reading the size of %s: %w", path, err)
	}
	return Device{Major: major, Minor: minor, Bytes: n * 512}, nil
}

// splitDev takes a device number apart, as the C library does (makedev(3)).
func splitDev(dev uint64) (major, minor int) {
	return int(dev>>8&0xfff | dev>>32&^0xfff), int(dev&0xff | dev>>12&0xffffff00)
}

func (h *host) Format(device string) (string, error) { return h.mounter.GetDiskFormat(device) }

// quick keeps mkfs from discarding a device that nothing was written to.
var quick = map[string][]string{fsExt4: {"-E", "nodiscard"}, fsXFS: {"-K"}}

func (h *host) FormatAndMount(device, target, fsType string, flags []string) error {
	return h.mounter.FormatAndMountSensitiveWithFormatOptions(device, target, fsType, flags, nil, quick[fsType])
}

func (h *host) Bind(source, target string, flags []string) error {
	return h.mounter.Mount(source, target, "", append([]string{"bind"}, flags...))
}

func (h *host) Unmount(target string) error { return h.mounter.Unmount(target) }

func (h *host) Grow(device, target string) error {
	need, err := h.resizer.NeedResize(device, target)
	if err != nil || !need {
		return err
	}
	_, err = h.resizer.Resize(device, target)
	return err
}

func (h *host) Usage(path string) (Usage, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return Usage{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := st.Bsize
	return Usage{Bytes: int64(st.Blocks) * unit, Used: int64(st.Blocks-st.Bfree) * unit, Free: int64(st.Bavail) * unit,
		Inodes: int64(st.Files), UsedInodes: int64(st.Files - st.Ffree), FreeInodes: int64(st.Ffree)}, nil
}
