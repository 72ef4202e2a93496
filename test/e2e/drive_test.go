package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vacate/test/daemon"
)

// A lease that no drive has room for spans two, and is one volume all the same.
func TestLeaseSpansDrives(t *testing.T) {
	d, drive := fileDrive(t, bin)
	dev := showDrive(t, d, filepath.Join(d.Dir, "drive.img")).FreeBytes
	size := dev + 256<<20
	l := open(t, d, "--size", fmt.Sprint(size))
	var got struct{ Pieces []struct{ Drive string } }
	if err := d.JSON(&got, "lease", "show", l.ID); err != nil {
		t.Fatal(err)
	}
	if len(got.Pieces) != 2 || got.Pieces[0].Drive == got.Pieces[1].Drive {
		t.Fatalf("%d bytes lie in %+v, want two drives", size, got.Pieces)
	}
	c := dial(t, l)
	defer c.Close() //nolint:errcheck // done
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	for _, off := range []int64{0, dev - 512<<10, 256<<20 - 300001, size - 1<<20} { // over either order's border, at odd bytes too
		write(t, c, off, data)
		back := make([]byte, len(data))
		if _, err := c.ReadAt(back, off); err != nil || !bytes.Equal(back, data) {
			t.Errorf("what was written at %d does not come back (%v)", off, err)
		}
	}
	if _, err := d.Open("--size", "1GiB"); exitCode(err) != 1 || !strings.Contains(fmt.Sprint(err), "free") {
		t.Errorf("a lease that does not fit: %v, want exit code 1 and what is free", err)
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Fatal(err)
	}
	if info := showDrive(t, d, drive); info.FreeBytes < driveSize*9/10 {
		t.Errorf("after the close only %d bytes are free", info.FreeBytes)
	}
}

// A block device: enrolled by its path, held exclusively while the daemon runs.
func TestBlockDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making a loop device needs root")
	}
	back := filepath.Join(t.TempDir(), "back")
	must(t, os.WriteFile(back, nil, 0o600))
	must(t, os.Truncate(back, 256<<20))
	loop := strings.TrimSpace(command(t, "losetup", "-f", "--show", back))
	t.Cleanup(func() { command(t, "losetup", "-d", loop) })
	d := start(t, daemon.Options{})
	command(t, "mke2fs", "-q", "-t", "ext4", loop)
	_, err := d.Run("drive", "enroll", loop)
	if exitCode(err) != 4 || !strings.Contains(fmt.Sprint(err), "ext4") {
		t.Fatalf("enrolling a file system: %v, want exit code 4 and what was found", err)
	}
	if _, err := d.Run("drive", "enroll", "--force", "--confirm", "/dev/loopX", loop); exitCode(err) != 4 {
		t.Fatalf("enrolling with the wrong path typed: %v, want exit code 4", err)
	}
	command(t, "e2fsck", "-f", "-n", loop) // nothing was changed
	if _, err := d.Run("drive", "enroll", "--force", "--confirm", loop, loop); err != nil {
		t.Fatal(err)
	}
	l := open(t, d, "--drive", loop, "--size", "200MiB")
	c := dial(t, l)
	write(t, c, 12345, []byte("on a block device"))
	c.Close() //nolint:errcheck // done
	if _, err := try("mke2fs", "-q", "-F", loop); err == nil {
		t.Error("mke2fs could open a device that the daemon holds")
	}
	if _, err := d.Run("lease", "close", l.ID); err != nil {
		t.Error(err)
	}
	must(t, d.Stop()) // gives the device back
}

// danger_zone.force_forward holds for the drives that it names, and no others.
func TestForceForward(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "v")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	forced, free := filepath.Join(dir, "forced"), filepath.Join(dir, "free")
	d := start(t, daemon.Options{Env: []string{"VACATE_DANGER_ZONE__ENABLED=true", "VACATE_DANGER_ZONE__FORCE_FORWARD=" + forced}})
	for path, want := range map[string]string{forced: "forward", free: "none"} {
		must(t, os.WriteFile(path, nil, 0o600))
		must(t, os.Truncate(path, 64<<20))
		if _, err := d.Run("drive", "enroll", path); err != nil {
			t.Fatal(err)
		}
		var info struct{ Flush string }
		if err := d.JSON(&info, "drive", "show", path); err != nil {
			t.Fatal(err)
		}
		if info.Flush != want {
			t.Errorf("the flush class of %s is %q, want %q", path, info.Flush, want)
		}
	}
}
