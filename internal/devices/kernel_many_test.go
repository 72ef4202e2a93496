//go:build vm

package devices

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vacate/internal/ipc"
)

// TestKernelMany: more devices than ublks_max is by default, of one server, which ends;
// the next process of devices goes on with all of them, and then its daemon is gone.
func TestKernelMany(t *testing.T) {
	const count, size = 70, 1 << 20
	dir := t.TempDir()
	p := real(t, dir)
	cl, ctx := p.client(), t.Context()
	lease := func(i int) string { return fmt.Sprintf("aaaaaaaaaaaaaa%c%c", 'a'+i/26, 'a'+i%26) }
	attach := func() *engine {
		t.Helper()
		start := time.Now()
		var m ipc.DeviceMade
		var chars []*os.File
		for i := range count {
			files, err := cl.CallFiles(ctx, ipc.MethodDeviceMake, &ipc.DeviceMakeRequest{Lease: lease(i), SizeBytes: size, LogicalBlock: 4096, UID: 7}, &m)
			if err != nil {
				t.Fatalf("device %d: %v", i, err)
			}
			chars = append(chars, files...)
		}
		made := time.Since(start)
		e := serve(t, m, size, chars...)
		for i, f := range chars {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := cl.Call(ctx, ipc.MethodDeviceStart, ipc.DeviceStartRequest{Lease: lease(i), PID: e.pid()}, &ipc.Device{}); err != nil {
				t.Fatalf("device %d: %v", i, err)
			}
		}
		t.Logf("%d devices made in %v, served and started in %v", count, made, time.Since(start))
		return e
	}
	e := attach()
	e.kill()
	if err := cl.Close(); err != nil {
		t.Error(err)
	}
	p.stop()
	p = real(t, dir) // knows nothing
	cl = p.client()
	e = attach()
	var list ipc.DeviceList
	if err := cl.Call(ctx, ipc.MethodDeviceList, ipc.Empty{}, &list); err != nil || len(list.Devices) != count {
		t.Fatalf("%d devices, %v", len(list.Devices), err)
	}
	for i, d := range list.Devices {
		if d.Lease != lease(i) || !d.Live || d.SizeBytes != size {
			t.Errorf("device %d: %+v", i, d)
		}
		f, err := os.Open(d.Path)
		if err == nil {
			_, err = f.ReadAt(make([]byte, 4096), 0)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Error(err)
		}
	}
	if err := cl.Close(); err != nil {
		t.Error(err)
	}
	p.stop()
	cfg := p.cfg
	cfg.Parent = 1 << 22 // nobody: the daemon is gone
	start := time.Now()
	if err := Run(ctx, cfg); err != nil {
		t.Error(err)
	}
	t.Logf("all removed in %v", time.Since(start))
	if err := e.cmd.Wait(); err != nil {
		t.Errorf("the server: %v", err)
	}
	for _, left := range []string{"/dev/vacate/*", "/dev/ublkb*", "/dev/ublkc*"} {
		if found, err := filepath.Glob(left); err != nil || len(found) != 0 {
			t.Errorf("left over: %q, %v", found, err)
		}
	}
}
