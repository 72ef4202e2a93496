package sys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFreeSpace(t *testing.T) {
	dir := t.TempDir()
	free, fs, err := FreeSpace(dir)
	if err != nil || free <= 0 || free > 1<<60 || fs == "" {
		t.Errorf("%d bytes are free on %q: %v", free, fs, err)
	}
	if _, _, err := FreeSpace(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("of a folder that there is not: %v", err)
	}
}

// TestZeroDevice: what is no block device is refused, and stays as it was. The
// rest is in TestBenchDevice.
func TestZeroDevice(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // of a test
	if _, err := f.WriteString("precious"); err != nil {
		t.Fatal(err)
	}
	if err := ZeroDevice(int(f.Fd()), 0, 4096); err == nil {
		t.Error("a file was taken for a device")
	}
	if b, err := os.ReadFile(f.Name()); err != nil || string(b) != "precious" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

func TestKernel(t *testing.T) {
	got, err := Kernel()
	want, rerr := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil || rerr != nil || got != strings.TrimSpace(string(want)) {
		t.Errorf("Kernel() = %q, %v; the kernel says %q, %v", got, err, want, rerr)
	}
}
