//go:build vm

package vm

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestDevices runs the tests of package devices that need the kernel's ublk driver in
// a machine that has it.
func TestDevices(t *testing.T) {
	ctx := limit(t, 4*time.Minute)
	dir := shortDir(t)
	kernel, err := FindKernel("ublk_drv")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "devices.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "vm", "-o", bin, "vacate/internal/devices")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the tests: %v\n%s", err, out)
	}
	initramfs, err := Initramfs(dir, Contents{Kernel: kernel, Vacate: bin, Programs: []string{"usr/sbin/mkfs.ext4"}})
	if err != nil {
		t.Fatal(err)
	}
	g := startGuest(ctx, t, Config{Dir: dir, Kernel: kernel, Initramfs: initramfs, Processors: 2})
	t.Log(g.run(vacatePath, "-test.run", "^TestKernel", "-test.v"))
	// The kernel complains of what is removed by force: its log is not asked.
}
