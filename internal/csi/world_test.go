package csi_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/csi"
	"vacate/internal/csi/csitest"
	"vacate/test/daemon"
)

// program is the binary that the tests' daemons run.
var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "csi")
	if err == nil {
		program, err = daemon.Build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of /tmp
	return m.Run()
}

// A world is a daemon of its own, a kernel in memory, and a driver on both.
type world struct {
	*csi.Driver
	t      *testing.T
	dir    string
	daemon *daemon.Daemon
	kernel *csitest.Kernel
	client *client.Client
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "csi") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) //nolint:errcheck // of /tmp
	w := &world{t: t, dir: dir}
	if w.kernel, err = csitest.New(filepath.Join(dir, "dev")); err == nil {
		err = os.Mkdir(filepath.Join(dir, "pods"), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.client = w.kernel.Client(w.socket())
	t.Cleanup(w.client.Close)
	w.again()
	return w
}

func (w *world) socket() string { return filepath.Join(w.dir, "d", "vacate.sock") }

// start starts the world's daemon.
func (w *world) start() {
	w.t.Helper()
	d, err := daemon.Start(program, filepath.Join(w.dir, "d"), daemon.Options{Env: []string{"VACATE_DEVICE_DIR="}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(d.Kill)
	w.daemon = d
}

// config is a driver's, on this world.
func (w *world) config() csi.Config {
	return csi.Config{Endpoint: "unix://" + filepath.Join(w.dir, "csi.sock"), NodeID: "node-1", Client: w.client, Host: w.kernel,
		Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))}
}

// again is a new driver, after one that was killed.
func (w *world) again() { w.Driver = csi.New(w.config()) }

// stage is a folder that a CO has made for staging; pod is the path of a target, whose
// folder it has made.
func (w *world) stage(name string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, "pods", name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func (w *world) pod(name string) string { return filepath.Join(w.dir, "pods", name) }

type mode = spec.VolumeCapability_AccessMode_Mode

const (
	writer       = spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	reader       = spec.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	singleWriter = spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	multiWriter  = spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
)

// fileSystem is a capability to mount.
func fileSystem(m mode, fsType string, flags ...string) *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: m},
		AccessType: &spec.VolumeCapability_Mount{Mount: &spec.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}}}
}

// block is a capability as a block device.
func block(m mode) *spec.VolumeCapability {
	return &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: m},
		AccessType: &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}}
}

const mib = 1 << 20

func required(n int64) *spec.CapacityRange { return &spec.CapacityRange{RequiredBytes: n} }

func ranged(n, limit int64) *spec.CapacityRange {
	return &spec.CapacityRange{RequiredBytes: n, LimitBytes: limit}
}

// create is a request for a volume of 64 MiB.
func create(name string, c *spec.VolumeCapability) *spec.CreateVolumeRequest {
	return &spec.CreateVolumeRequest{Name: name, VolumeCapabilities: []*spec.VolumeCapability{c}, CapacityRange: required(64 * mib)}
}

// volume makes a volume.
func (w *world) volume(name string, c *spec.VolumeCapability) string {
	w.t.Helper()
	res, err := w.CreateVolume(w.t.Context(), create(name, c))
	if err != nil {
		w.t.Fatal(err)
	}
	return res.GetVolume().GetVolumeId()
}

// lease is the lease of a volume, as its id ends with.
func (w *world) lease(id string) *vacatev1.Lease {
	w.t.Helper()
	res, err := w.client.Leases.Get(w.t.Context(), &vacatev1.LeaseServiceGetRequest{Id: id[len(id)-16:]})
	if err != nil {
		w.t.Fatal(err)
	}
	return res.GetLease()
}

// Requests with a capability, for paths of the world.
func (w *world) stageAt(id, path string, c *spec.VolumeCapability) error {
	_, err := w.NodeStageVolume(w.t.Context(), &spec.NodeStageVolumeRequest{VolumeId: id, StagingTargetPath: path, VolumeCapability: c})
	return err
}

func (w *world) publishAt(id, staging, target string, c *spec.VolumeCapability, readOnly bool) error {
	_, err := w.NodePublishVolume(w.t.Context(), &spec.NodePublishVolumeRequest{VolumeId: id, StagingTargetPath: staging, TargetPath: target, VolumeCapability: c, Readonly: readOnly})
	return err
}

func (w *world) unpublishAt(id, target string) error {
	_, err := w.NodeUnpublishVolume(w.t.Context(), &spec.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: target})
	return err
}

func (w *world) unstageAt(id, path string) error {
	_, err := w.NodeUnstageVolume(w.t.Context(), &spec.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path})
	return err
}

func (w *world) remove(id string) error {
	_, err := w.DeleteVolume(w.t.Context(), &spec.DeleteVolumeRequest{VolumeId: id})
	return err
}

// nothingLeft fails where a device, a mount or a lease is left. An erased lease may be
// closed a moment after its volume was deleted.
func (w *world) nothingLeft() {
	w.t.Helper()
	if left := w.kernel.Left(); len(left) > 0 {
		w.t.Errorf("left over: %v", left)
	}
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		res, err := w.client.Leases.List(w.t.Context(), &vacatev1.LeaseServiceListRequest{})
		if err == nil && len(res.GetLeases()) == 0 {
			return
		}
		if err != nil || time.Since(begin) > 5*time.Second {
			w.t.Fatalf("leases left over: %v, %v", res.GetLeases(), err)
		}
	}
}

// wantCode fails where an error has another code.
func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: code %v, want %v: %v", what, got, want, err)
	}
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
