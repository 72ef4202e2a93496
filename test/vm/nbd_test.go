//go:build vm

package vm

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// TestDevicesNBD runs the tests of package devices that need the kernel's nbd driver in
// a machine that has it.
func TestDevicesNBD(t *testing.T) {
	ctx := limit(t, 4*time.Minute)
	dir := shortDir(t)
	kernel, err := FindKernel("nbd")
	must(t, err)
	bin := filepath.Join(dir, "devices.test")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "vm", "-o", bin, "vacate/internal/devices")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	must(t, finish(cmd))
	initramfs, err := Initramfs(dir, Contents{Kernel: kernel, Vacate: bin, Programs: []string{"usr/bin/qemu-nbd"}})
	must(t, err)
	g := startGuest(ctx, t, Config{Dir: dir, Kernel: kernel, Initramfs: initramfs, Processors: 2})
	var ran wire.Ran // it takes longer than a guest may for other things
	must(t, g.Call(ctx, "exec", wire.Exec{Args: []string{vacatePath, "-test.run", "^TestNBDKernel", "-test.v", "-test.timeout", "110s"}}, &ran))
	if t.Log(ran.Stdout, ran.Stderr); ran.Code != 0 {
		t.Errorf("the tests end with exit code %d", ran.Code)
	}
	g.off()
}
