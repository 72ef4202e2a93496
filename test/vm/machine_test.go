//go:build vm

package vm

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/test/vm/disk"
	"vacate/test/vm/wire"
)

// TestMachine boots a real kernel and lives one lease on an emulated NVMe drive:
// its key is in memfd_secret while it is open, and nowhere after.
func TestMachine(t *testing.T) {
	dir, ctx := shortDir(t), limit(t, 3*time.Minute)
	v := boot(ctx, t, dir)
	if err := v.Call(ctx, "mount", wire.Mount{Device: "/dev/state", Dir: "/state"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := v.Call(ctx, "serve", wire.Serve{StateDir: "/state/vacate"}, nil); err != nil {
		var log string
		v.Call(ctx, "log", nil, &log) //nolint:errcheck // it helps where it can
		t.Fatalf("%v\n%s", err, log)
	}
	if ran, err := v.Run(ctx, "drive", "enroll", "/dev/data"); err != nil || ran.Code != 0 {
		t.Fatalf("enrolling: %v, %+v", err, ran)
	}
	var status struct {
		Engine struct {
			KeyStore string `json:"keyStore"`
			Buffers  string `json:"buffers"`
		} `json:"engine"`
	}
	if err := v.JSON(ctx, &status, "status"); err != nil {
		t.Fatal(err)
	}
	if status.Engine.KeyStore != "memfd_secret" || status.Engine.Buffers != "locked" {
		t.Errorf("the status shows %+v", status)
	}
	keys(ctx, t, v, 0)
	var lease struct {
		ID string `json:"id"`
	}
	if err := v.JSON(ctx, &lease, "lease", "open", "--size", "1MiB", "--tenant", "acme"); err != nil {
		t.Fatal(err)
	}
	keys(ctx, t, v, 1)
	if ran, err := v.Run(ctx, "lease", "close", lease.ID); err != nil || ran.Code != 0 {
		t.Fatalf("closing: %v, %+v", err, ran)
	}
	keys(ctx, t, v, 0)
	if err := v.Call(ctx, "check", wire.Check{Drive: "/dev/data", Canary: wire.Canary{Hunt: 1, Tag: 1}}, nil); err != nil {
		t.Errorf("a lease over the whole drive: %v", err)
	}
	if ran, err := v.Run(ctx, "stop"); err != nil || ran.Code != 0 {
		t.Errorf("stopping: %v, %+v", err, ran)
	}
	if err := v.Off(ctx); err != nil {
		t.Errorf("switching off: %v", err)
	}
}

// boot starts a machine with a state disk and a drive.
func boot(ctx context.Context, t *testing.T, dir string) *VM {
	t.Helper()
	v, _ := bootWith(ctx, t, dir)
	return v
}

// bootWith is boot, and returns the drive too.
func bootWith(ctx context.Context, t *testing.T, dir string) (*VM, *disk.Disk) {
	t.Helper()
	kernel, err := FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	initramfs, err := Initramfs(dir, Contents{Kernel: kernel, Vacate: bin})
	if err != nil {
		t.Fatal(err)
	}
	const size = 32 << 20
	image, err := Ext4(dir, size)
	if err != nil {
		t.Fatal(err)
	}
	supply := disk.NewSupply()
	state, data := disk.New(supply, size), disk.New(supply, size)
	if err := state.Fill(image); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Kernel: kernel, Initramfs: initramfs, Dir: dir, Drives: []Drive{
		{Name: "state", Socket: serveDisk(t, dir, "state", state), Bus: Virtio},
		{Name: "data", Socket: serveDisk(t, dir, "data", data), Bus: NVMe},
	}}
	for try := 0; ; try++ {
		v, up, err := Boot(ctx, cfg)
		if err != nil && try < 2 && strings.Contains(err.Error(), "Kernel panic") {
			t.Logf("the emulated kernel failed, once more: %v", err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(v.Kill)
		t.Logf("linux %s is up after %v", up.Release, v.Age())
		if !strings.HasPrefix(up.Release, "6.") || len(up.BootID) != 36 {
			t.Errorf("the machine says %+v", up)
		}
		return v, data
	}
}

func serveDisk(t *testing.T, dir, name string, d *disk.Disk) (socket string) {
	t.Helper()
	socket = filepath.Join(dir, name+".sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go d.Serve(l) //nolint:errcheck // its machine would fail
	return socket
}

// keys demands that the keys' memory holds n keys.
func keys(ctx context.Context, t *testing.T, v *VM, n int) {
	t.Helper()
	var k wire.Keys
	if err := v.Call(ctx, "keys", nil, &k); err != nil {
		t.Fatal(err)
	}
	if len(k.Slots) != n || !k.Secret {
		t.Errorf("the keys' memory holds %d keys, secret %v; want %d in memfd_secret", len(k.Slots), k.Secret, n)
	}
}
