//go:build vm

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/wire"
)

// csiTools are what a driver of the Container Storage Interface runs (k8s.io/mount-utils).
var csiTools = []string{
	"usr/bin/mount", "usr/bin/umount", "usr/sbin/blkid", "usr/sbin/blockdev", "usr/sbin/fsck", "usr/sbin/fsck.ext4",
	"usr/sbin/fsck.xfs", "usr/sbin/xfs_growfs",
}

// sanityPath is csi-sanity in the machine.
const sanityPath = "/bin/csi-sanity"

// sanity builds csi-sanity as a program.
func sanity(dir string) (string, error) {
	bin := filepath.Join(dir, "csi-sanity")
	cmd := exec.Command("go", "test", "-c", "-ldflags", "-s -w", "-o", bin, "vacate/test/csi")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building csi-sanity: %w\n%s", err, out)
	}
	return bin, nil
}

// TestCSI runs all of csi-sanity against `vacate csi`, with the devices, file systems
// and mounts of a host. The program itself fails where another spec is skipped than
// docs/csi.md lists.
func TestCSI(t *testing.T) {
	eachDriver(t, 12*time.Minute, func(h *host, kind string) {
		const socket, dir, size = "/run/csi.sock", "/mnt/csi", 64 << 20
		args := []string{"/bin/vacate", "csi", "--endpoint", "unix://" + socket, "--node-id", "node-1", "--debug"}
		h.do("start", wire.Start{Args: args, File: socket}, nil)
		kinds := h.kindsOf()
		ran := h.long(10*time.Minute, sanityPath, "-test.v", "-test.run", "TestSanity$", "-endpoint", "unix://"+socket, "-dir", dir, "-size", fmt.Sprint(size))
		if ran.Code != 0 || !strings.Contains(ran.Stdout, "--- PASS: TestSanity") {
			h.t.Errorf("csi-sanity: exit code %d\n%s%s", ran.Code, ran.Stdout, ran.Stderr)
		}
		if seen := kinds(); seen[kind] == 0 || len(seen) != 1 {
			h.t.Errorf("leases had these kinds of devices: %v, want %s alone", seen, kind)
		}
		var driver wire.Ran
		h.do("stop", wire.Stop{File: socket}, &driver)
		if driver.Code != 0 || h.t.Failed() {
			h.t.Errorf("vacate csi: exit code %d\n%s", driver.Code, driver.Stderr)
		}
		for line := range strings.Lines(ran.Stdout) {
			if strings.Contains(line, "specs") || strings.Contains(line, "Ran ") {
				h.t.Log(strings.TrimSpace(line))
			}
		}
		h.clean()
		h.nothingLeft()
	})
}

// long runs a program in the machine for as long as that may take.
func (h *host) long(d time.Duration, args ...string) (ran wire.Ran) {
	h.t.Helper()
	must(h.t, h.Call(h.ctx, "exec", wire.Exec{Args: args, Timeout: d}, &ran))
	return ran
}

// kindsOf looks at the leases again and again, until it is asked how often each kind of
// device was seen.
func (h *host) kindsOf() func() map[string]int {
	seen, ctx, done := map[string]int{}, h.ctx, make(chan struct{})
	ctx, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			var leases []attached
			if err := h.JSON(ctx, &leases, "lease", "list"); err == nil {
				for _, l := range leases {
					if l.DeviceKind != "" {
						seen[l.DeviceKind]++
					}
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * time.Second):
			}
		}
	}()
	return func() map[string]int {
		stop()
		<-done
		return seen
	}
}
