package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBenchDevice: `vacate bench` takes a device only if all that it writes there
// reads as zeros, and it does so again at the end, also after an interrupt.
func TestBenchDevice(t *testing.T) {
	if os.Geteuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("making a loop device needs root")
	}
	const size, precious = 200 << 20, 33<<20 + 7
	back := filepath.Join(t.TempDir(), "back")
	must(t, os.WriteFile(back, nil, 0o600))
	must(t, os.Truncate(back, size))
	loop := strings.TrimSpace(command(t, "losetup", "-f", "--show", back))
	t.Cleanup(func() { command(t, "losetup", "-d", loop) })
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(loop, os.O_RDWR|os.O_SYNC, 0)
		must(t, err)
		_, err = f.WriteAt([]byte(text), precious)
		must(t, errors.Join(err, f.Close()))
	}
	zeros := func(when string) {
		t.Helper()
		b, err := os.ReadFile(loop)
		must(t, err)
		if len(b) != size || len(bytes.Trim(b, "\x00")) != 0 {
			t.Errorf("%s the device does not read as zeros", when)
		}
	}

	write("precious")
	for _, plan := range []string{"--plan=true", "--plan=false"} {
		out, err := try(bin, "bench", plan, "--size", "32MiB", "--seconds", "0.1", loop)
		if exitCode(err) != 4 || !strings.Contains(out, "holds data") {
			t.Errorf("with %s a device that holds data: %v", plan, err)
		}
	}
	b, err := os.ReadFile(loop)
	must(t, err)
	if !bytes.Equal(bytes.Trim(b, "\x00"), []byte("precious")) {
		t.Error("a device that was refused has changed")
	}

	write(strings.Repeat("\x00", len("precious")))
	out := command(t, bin, "bench", "--size", "32MiB", "--seconds", "0.1", loop)
	if !strings.Contains(out, "128K sequential writes, depth 32") || strings.Contains(out, "ERRORS") {
		t.Errorf("it prints %s", out)
	}
	zeros("after a run")

	cmd := exec.Command(bin, "bench", "--size", "32MiB", "--seconds", "30", loop)
	var log bytes.Buffer
	cmd.Stderr = &log
	must(t, cmd.Start())
	wait := make(chan error, 1)
	go func() { wait <- cmd.Wait() }()
	for deadline := time.Now().Add(20 * time.Second); holdsNothing(t, loop); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("after 20 seconds nothing was written to the device")
		}
	}
	must(t, cmd.Process.Signal(syscall.SIGINT))
	if err := <-wait; exitCode(err) != 1 || !strings.Contains(log.String(), "interrupted") {
		t.Errorf("an interrupt: %v: %s", err, log.String())
	}
	zeros("after an interrupt")
}

// holdsNothing tells whether a device's first block, where a superblock lies, is
// zeros.
func holdsNothing(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, 4096)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	return len(bytes.Trim(b, "\x00")) == 0
}
