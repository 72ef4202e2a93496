package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// qemu is the emulator's program.
const qemu = "qemu-system-x86_64"

// A Kernel is one that can be booted.
type Kernel struct {
	Image   string   // path
	Modules []string // paths, to be loaded in this order
	dir     string   // what was unpacked
}

// wanted are the modules that machines need beyond what is built in.
var wanted = []string{"virtio_blk"}

// XFS are the modules that a machine needs to mount xfs, in their order.
var XFS = []string{"libcrc32c", "xfs"}

// FindKernel returns the kernel that tools/test-kernel.sh fetches into the
// user's cache, with the named modules besides those that all machines need.
func FindKernel(modules ...string) (k Kernel, err error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return k, err
	}
	dir = filepath.Join(dir, "vacate-test", "kernel-trixie")
	k.Image = filepath.Join(dir, "vmlinuz")
	switch _, err := os.Stat(k.Image); {
	case errors.Is(err, fs.ErrNotExist):
		return k, fmt.Errorf("no kernel to boot at %s: run tools/test-kernel.sh, which fetches it, or `make test-vm`, which runs it", k.Image)
	case err != nil:
		return k, err
	}
	if _, err := exec.LookPath(qemu); err != nil {
		return k, fmt.Errorf("%w: install it with `apt-get install qemu-system-x86`, or run `make test-vm`, which does", err)
	}
	k.dir = dir
	for _, name := range slices.Concat(wanted, modules) {
		module, err := k.module(name)
		if err != nil {
			return k, err
		}
		k.Modules = append(k.Modules, module)
	}
	return k, nil
}

// module returns the path of a module.
func (k Kernel) module(name string) (string, error) {
	var found []string
	for _, below := range []string{"*", "*/*", "*/*/*"} {
		f, err := filepath.Glob(filepath.Join(k.dir, "usr/lib/modules/*/kernel", below, name+".ko.xz"))
		if err != nil {
			return "", err
		}
		found = append(found, f...)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("the kernel in %s has not one module %s but %q: remove the folder and run tools/test-kernel.sh", k.dir, name, found)
	}
	return found[0], nil
}

// Ext4 makes an image of an empty ext4 file system.
func Ext4(dir string, size int64) ([]byte, error) {
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/usr/sbin/mke2fs" // where only root's PATH looks
	}
	path := filepath.Join(dir, "ext4.img")
	defer os.Remove(path) //nolint:errcheck // the folder goes too
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return nil, err
	}
	// Everything is written now, so that no kernel thread goes on with it later.
	cmd := exec.Command(mke2fs, "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making a file system: %w\n%s", err, out)
	}
	return os.ReadFile(path)
}
