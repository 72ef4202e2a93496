// Package csitest is the kernel that tests of the CSI driver run on: block devices of
// leases, file systems and mounts, all in memory. Folders and files are real ones,
// under a folder of the test's.
package csitest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	mount "k8s.io/mount-utils"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/csi"
)

// A Kernel is a [csi.Host], and makes devices of leases. Its methods may be called
// from any goroutine.
type Kernel struct {
	dir string

	mu      sync.Mutex
	devices map[string]*device // by lease
	was     map[string]device  // what leases without a device hold
	mounts  []mount.MountInfo
	last    int // of minor numbers and mounts
	old     bool
	step    int // steps that were taken
	fault   Fault
}

// A Fault strikes one step: an attach, mkfs with mount, bind, … Who takes it gets
// ErrFault, and does not know whether it was done.
type Fault struct {
	Step int  // from 1 on; 0: none
	Done bool // the step is done all the same
}

// ErrFault is the error of a step that a fault struck.
var ErrFault = errors.New("the process was killed here")

// A device is a block device, with what it bears.
type device struct {
	node   string // real path
	minor  int
	bytes  int64
	fsType string
	grown  int64 // size of the file system
	held   int   // detaches that are refused yet
}

const major = 259

// New makes a kernel whose devices lie under dir.
func New(dir string) (*Kernel, error) {
	if err := os.MkdirAll(filepath.Join(dir, "vacate"), 0o700); err != nil {
		return nil, err
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	return &Kernel{dir: dir, devices: map[string]*device{}, was: map[string]device{}}, nil
}

// SetOld makes it a kernel that does not change the size of a device in use.
func (k *Kernel) SetOld(old bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.old = old
}

// SetFault sets the fault to come, and counts steps anew.
func (k *Kernel) SetFault(f Fault) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fault, k.step = f, 0
}

// Steps is how many steps were taken since SetFault.
func (k *Kernel) Steps() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.step
}

// do carries out a step, unless a fault strikes it. REQUIRES: k.mu is not held.
func (k *Kernel) do(step func() error) error {
	k.mu.Lock()
	k.step++
	struck, done := k.step == k.fault.Step, k.fault.Done
	k.mu.Unlock()
	if struck && !done {
		return ErrFault
	}
	if err := step(); err != nil {
		return err
	}
	if struck {
		return ErrFault
	}
	return nil
}

// Left is what there is of devices and mounts.
func (k *Kernel) Left() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for l := range k.devices {
		all = append(all, "device of "+l)
	}
	for _, m := range k.mounts {
		all = append(all, "mount at "+m.MountPoint)
	}
	slices.Sort(all)
	return all
}

// FileSystem is the size of the file system on a lease's device, and its kind.
func (k *Kernel) FileSystem(leaseID string) (fsType string, bytes int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d := k.devices[leaseID]; d != nil {
		return d.fsType, d.grown
	}
	return "", 0
}

// Hold has the next n detaches of a lease's device refused.
func (k *Kernel) Hold(leaseID string, n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.devices[leaseID].held = n
}

// BreakMounts has the kernel make all file systems read-only.
func (k *Kernel) BreakMounts() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.mounts {
		k.mounts[i].SuperOptions = []string{"ro"}
	}
}

// MountOther mounts something of another's at a path.
func (k *Kernel) MountOther(path string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add(mount.MountInfo{Major: 0, Minor: 77, Root: "/", Source: "somebody", MountPoint: path, FsType: "tmpfs", MountOptions: []string{"rw"}})
}

// add lists a mount. REQUIRES: k.mu is held.
func (k *Kernel) add(m mount.MountInfo) {
	k.last++
	m.ID = k.last
	k.mounts = append(k.mounts, m)
}

// attach makes the device of a lease, and returns its link. REQUIRES: k.mu is held.
func (k *Kernel) attach(l *vacatev1.Lease) (string, error) {
	link := filepath.Join(k.dir, "vacate", l.GetId())
	if k.devices[l.GetId()] != nil {
		return link, nil
	}
	k.last++
	d := &device{node: filepath.Join(k.dir, fmt.Sprintf("ublkb%d", k.last)), minor: k.last, bytes: l.GetSizeBytes()}
	if old, ok := k.was[l.GetId()]; ok {
		d.fsType, d.grown = old.fsType, old.grown
	}
	if err := os.WriteFile(d.node, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Symlink("../"+filepath.Base(d.node), link); err != nil {
		return "", err
	}
	k.devices[l.GetId()] = d
	return link, nil
}

// detach takes a device away. With force it does so whoever uses it. REQUIRES: k.mu
// is held.
func (k *Kernel) detach(leaseID string, force bool) error {
	d := k.devices[leaseID]
	if d == nil {
		return nil
	}
	if !force && d.held > 0 {
		d.held--
		return refused(leaseID, "the device is held open")
	}
	for _, m := range k.mounts {
		if !force && (m.Major == major && m.Minor == d.minor || m.Root == "/"+filepath.Base(d.node)) {
			return refused(leaseID, "the device is mounted at "+m.MountPoint)
		}
	}
	k.was[leaseID] = *d
	delete(k.devices, leaseID)
	return errors.Join(os.Remove(filepath.Join(k.dir, "vacate", leaseID)), os.Remove(d.node))
}

// Mounts implements [csi.Host].
func (k *Kernel) Mounts() ([]mount.MountInfo, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.mounts), nil
}

// find is the device at a path: its node, a link to it, or a file that it is bound to.
// REQUIRES: k.mu is held.
func (k *Kernel) find(path string) (*device, error) {
	for _, m := range slices.Backward(k.mounts) {
		if m.MountPoint == path && strings.HasPrefix(m.Root, "/ublkb") {
			path = k.dir + m.Root
			break
		}
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	for _, d := range k.devices {
		if d.node == real {
			return d, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", path, csi.ErrNoBlock)
}

// Device implements [csi.Host].
func (k *Kernel) Device(path string) (csi.Device, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.find(path)
	if err != nil {
		return csi.Device{}, err
	}
	return csi.Device{Major: major, Minor: d.minor, Bytes: d.bytes}, nil
}

// Format implements [csi.Host].
func (k *Kernel) Format(path string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := k.find(path)
	if err != nil {
		return "", err
	}
	return d.fsType, nil
}

// FormatAndMount implements [csi.Host]. They are two steps.
func (k *Kernel) FormatAndMount(path, target, fsType string, flags []string) error {
	err := k.do(func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		d, err := k.find(path)
		if err == nil && d.fsType == "" {
			d.fsType, d.grown = fsType, d.bytes
		}
		return err
	})
	if err != nil {
		return err
	}
	return k.do(func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		d, err := k.find(path)
		if err != nil {
			return err
		}
		if d.fsType != fsType {
			return fmt.Errorf("mount: wrong fs type, %s bears %s", path, d.fsType)
		}
		if st, err := os.Stat(target); err != nil || !st.IsDir() {
			return errors.Join(err, fmt.Errorf("mount: %s is no folder", target))
		}
		k.add(mount.MountInfo{Major: major, Minor: d.minor, Root: "/", Source: d.node, MountPoint: target, FsType: fsType,
			MountOptions: append([]string{"rw", "relatime"}, flags...), SuperOptions: []string{"rw"}})
		return nil
	})
}

// Bind implements [csi.Host].
func (k *Kernel) Bind(source, target string, flags []string) error {
	return k.do(func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		st, err := os.Stat(target)
		if err != nil {
			return err
		}
		options := []string{"rw", "relatime"}
		if slices.Contains(flags, "ro") {
			options[0] = "ro"
		}
		if d, err := k.find(source); err == nil {
			if st.IsDir() {
				return fmt.Errorf("mount: a device cannot be bound to the folder %s", target)
			}
			k.add(mount.MountInfo{Minor: 5, Root: "/" + filepath.Base(d.node), Source: "devtmpfs", MountPoint: target, FsType: "devtmpfs", MountOptions: options})
			return nil
		}
		for _, m := range slices.Backward(k.mounts) {
			if m.MountPoint == source {
				m.MountPoint, m.MountOptions = target, options
				k.add(m)
				return nil
			}
		}
		return fmt.Errorf("mount: nothing is mounted at %s", source)
	})
}

// Unmount implements [csi.Host].
func (k *Kernel) Unmount(target string) error {
	return k.do(func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		for i, m := range slices.Backward(k.mounts) {
			if m.MountPoint == target {
				k.mounts = slices.Delete(k.mounts, i, i+1)
				return nil
			}
		}
		return fmt.Errorf("umount: %s: not mounted", target)
	})
}

// Grow implements [csi.Host].
func (k *Kernel) Grow(path, target string) error {
	return k.do(func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		d, err := k.find(path)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(k.mounts, func(m mount.MountInfo) bool { return m.MountPoint == target && m.Minor == d.minor }) {
			return fmt.Errorf("xfs_growfs: %s is not mounted at %s", path, target)
		}
		d.grown = d.bytes
		return nil
	})
}

// Usage implements [csi.Host].
func (k *Kernel) Usage(path string) (csi.Usage, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range slices.Backward(k.mounts) {
		for _, d := range k.devices {
			if m.MountPoint == path && m.Minor == d.minor {
				return csi.Usage{Bytes: d.grown, Used: 1 << 20, Free: d.grown - 1<<20, Inodes: 1000, UsedInodes: 11, FreeInodes: 989}, nil
			}
		}
	}
	return csi.Usage{}, &fs.PathError{Op: "statfs", Path: path, Err: fs.ErrNotExist}
}

// Client is a client of a daemon whose leases get devices of this kernel.
func (k *Kernel) Client(socket string) *client.Client {
	c := client.Dial(socket)
	c.Leases = &leases{LeaseServiceClient: c.Leases, k: k}
	return c
}
