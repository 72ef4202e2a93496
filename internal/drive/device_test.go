package drive

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/blk/blktest"
	"vacate/internal/sys"
)

// loopOn attaches a loop device to a file. The skip is checked: root with a
// loop driver must get one.
func loopOn(t *testing.T, path string, args ...string) string {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and the loop driver")
	}
	out, err := exec.Command("losetup", append(args, "-f", "--show", path)...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func TestConformanceLoop(t *testing.T) {
	for _, sector := range []string{"512", "4096"} {
		t.Run(sector, func(t *testing.T) {
			dev := loopOn(t, onTmpfs(t, 32<<20), "--sector-size", sector, "--direct-io=off")
			blktest.Run(t, func(t *testing.T) blk.Device {
				if _, err := Enroll(dev, EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 5}); err != nil {
					t.Fatal(err)
				}
				d := open(t, dev)
				if i := d.Info(); !i.Direct || i.Kind != "loop" || i.Flush != FlushForward || !strings.Contains(i.FlushWhy, "loop") {
					t.Errorf("a loop device: %+v", i)
				}
				return d
			})
		})
	}
}

// TestDeviceMounted: a mounted device is never enrolled, whatever is typed; and
// a drive that is open is never mounted.
func TestDeviceMounted(t *testing.T) {
	img := onTmpfs(t, 32<<20)
	dev := loopOn(t, img)
	run(t, "mkfs.ext4", "-q", "-F", "-L", "precious", dev)
	dir := t.TempDir()
	if err := syscall.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	force := EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 5, Force: true, Confirm: dev}
	_, err := Enroll(dev, force)
	e := refused(t, err, CodeMounted)
	if !strings.Contains(e.Findings[0].Text, dir) {
		t.Errorf("%q does not say where it is mounted", e.Findings[0].Text)
	}
	if _, err := thisHost.fence(context.Background(), dev, time.Millisecond); !errors.Is(err, ErrFenced) || !strings.Contains(err.Error(), dir) {
		t.Errorf("the fence of a mounted device: %v", err)
	}
	_, err = Enroll(dev, EnrollOptions{Node: nodeA, UUID: uuid1})
	refused(t, err, CodeMounted, CodeSignature)
	// The image behind it is held, too.
	_, err = Enroll(img, EnrollOptions{Node: nodeA, UUID: uuid1, Force: true, Confirm: img})
	if e := refused(t, err, CodeHeld); !strings.Contains(e.Findings[0].Text, filepath.Base(dev)) {
		t.Errorf("%q does not name the loop device", e.Findings[0].Text)
	}

	if err := syscall.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Enroll(dev, force); err != nil {
		t.Fatal(err)
	}
	d := open(t, dev)
	if err := syscall.Mount(dev, dir, "ext4", 0, ""); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("mounting a drive that is open: %v, want EBUSY", err)
		_ = syscall.Unmount(dir, 0)
	}
	_ = d.Close()
}

// TestDeviceHeld: an exclusive open elsewhere, and another name of the device.
func TestDeviceHeld(t *testing.T) {
	dev := loopOn(t, onTmpfs(t, 32<<20))
	fd, err := sys.OpenStorage(dev, sys.Exclusive)
	if err != nil {
		t.Fatal(err)
	}
	force := EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 5, Force: true, Confirm: dev}
	_, err = Enroll(dev, force)
	refused(t, err, CodeHeld)
	_ = sys.CloseFD(fd)
	if _, err := Enroll(dev, force); err != nil {
		t.Fatal(err)
	}

	// flock knows the name, O_EXCL the device.
	st, err := sys.Stat(dev)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join("/dev", "vacate-test-"+filepath.Base(dev))
	if err := syscall.Mknod(other, syscall.S_IFBLK|0o600, int(st.Major<<8|st.Minor)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(other) })
	d := open(t, dev)
	o := usual
	o.FenceWait = time.Millisecond
	if _, err := Open(context.Background(), other, o); !errors.Is(err, ErrFenced) {
		t.Errorf("the same device by another name: %v", err)
	}
	force.Confirm = other
	_, err = Enroll(other, force)
	refused(t, err, CodeHeld)
	_ = d.Close()
	again, err := Open(context.Background(), other, usual)
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

// TestDeviceReadOnly: refused, and not by trying.
func TestDeviceReadOnly(t *testing.T) {
	dev := loopOn(t, onTmpfs(t, 32<<20), "--read-only")
	_, err := Enroll(dev, EnrollOptions{Node: nodeA, UUID: uuid1, Force: true, Confirm: dev})
	refused(t, err, CodeNotSupported)
}

// TestDeviceShrinks: a device that becomes shorter under its lease.
func TestDeviceShrinks(t *testing.T) {
	img := onTmpfs(t, 32<<20)
	dev := loopOn(t, img)
	if _, err := Enroll(dev, EnrollOptions{Node: nodeA, UUID: uuid1, Epoch: 5}); err != nil {
		t.Fatal(err)
	}
	d := open(t, dev)
	if err := os.Truncate(img, 16<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "losetup", "-c", dev)
	buf := blktest.Buffer(blk.BlockSize)
	for _, op := range []blk.Op{blk.OpRead, blk.OpWrite} {
		r := blk.Request{Op: op, Off: 20 << 20, Len: blk.BlockSize, Buf: buf}
		if err := do(t, d, &r); err == nil || r.N != 0 {
			t.Errorf("%v past the new end: N = %d, %v", op, r.N, err)
		}
		if err := do(t, d, &blk.Request{Op: op, Off: 8 << 20, Len: blk.BlockSize, Buf: buf}); err != nil {
			t.Errorf("%v of what is left: %v", op, err)
		}
	}
	_ = d.Close()
	if _, err := Open(context.Background(), dev, usual); !errors.Is(err, ErrShrunk) {
		t.Errorf("opening it again: %v, want ErrShrunk", err)
	}
}

// TestFull: a sparse file on a full file system gives ENOSPC to that write.
func TestFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	path := filepath.Join(dir, "drive.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 32<<20); err != nil {
		t.Fatal(err)
	}
	d := open(t, enrolled(t, path))
	defer d.Close()
	buf := blktest.Buffer(blk.MaxTransfer)
	var last error
	for off := int64(0); off < 8<<20 && last == nil; off += blk.MaxTransfer {
		last = do(t, d, &blk.Request{Op: blk.OpWrite, Off: off, Len: blk.MaxTransfer, Buf: buf})
	}
	if !errors.Is(last, syscall.ENOSPC) {
		t.Errorf("writing to a full file system: %v", last)
	}
	if err := do(t, d, &blk.Request{Op: blk.OpRead, Len: blk.MaxTransfer, Buf: buf}); err != nil {
		t.Errorf("reading from a full file system: %v", err)
	}
}
