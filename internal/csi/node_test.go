package csi_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/client"
	"vacate/internal/csi"
	"vacate/internal/csi/csitest"
)

// TestStage: what is at the staging path decides, and nothing that is not the
// volume's is touched.
func TestStage(t *testing.T) {
	w := newWorld(t)
	ext4 := fileSystem(writer, "")
	id := w.volume("v", ext4)
	s := w.stage("s")

	w.kernel.MountOther(s)
	wantCode(t, "somebody else's mount at the path", w.stageAt(id, s, ext4), codes.AlreadyExists)
	if l := w.lease(id); l.GetDevice() != "" {
		t.Errorf("a refused stage left the device %s", l.GetDevice())
	}
	must(t, w.kernel.Unmount(s))

	must(t, w.stageAt(id, s, ext4))
	w.again()
	must(t, w.stageAt(id, s, ext4))
	if left := w.kernel.Left(); len(left) != 2 {
		t.Errorf("staged twice: %v", left)
	}
	wantCode(t, "another file system", w.stageAt(id, s, fileSystem(writer, "xfs")), codes.AlreadyExists)
	wantCode(t, "other flags", w.stageAt(id, s, fileSystem(writer, "ext4", "noexec")), codes.AlreadyExists)
	wantCode(t, "flags that the kernel need not list", w.stageAt(id, s, fileSystem(writer, "ext4", "errors=continue")), codes.OK)
	wantCode(t, "the other kind", w.stageAt(id, s, block(writer)), codes.AlreadyExists)
	other := w.volume("other", ext4)
	wantCode(t, "another volume", w.stageAt(other, s, ext4), codes.AlreadyExists)
	wantCode(t, "a path that is not absolute", w.stageAt(id, "s", ext4), codes.InvalidArgument)
	wantCode(t, "many nodes", w.stageAt(id, s, fileSystem(spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, "")), codes.InvalidArgument)

	must(t, w.unstageAt(id, s))
	must(t, w.unstageAt(id, s))
	if left := w.kernel.Left(); len(left) > 0 {
		t.Errorf("unstaged: %v", left)
	}
	wantCode(t, "a device that bears another file system", w.stageAt(id, s, fileSystem(writer, "xfs")), codes.FailedPrecondition)
	if got, _ := w.kernel.FileSystem(w.lease(id).GetId()); got != "ext4" {
		t.Errorf("the device bears %q: it was formatted", got)
	}
	must(t, w.unstageAt(id, s))
	must(t, w.remove(id))
	must(t, w.remove(other))
	w.nothingLeft()
}

// TestPublish follows the specification's table of second calls.
func TestPublish(t *testing.T) {
	for name, access := range map[string]func(mode) *spec.VolumeCapability{
		"file system": func(m mode) *spec.VolumeCapability { return fileSystem(m, "") }, "block": block} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for m, second := range map[mode]codes.Code{
				writer: codes.FailedPrecondition, reader: codes.FailedPrecondition, singleWriter: codes.FailedPrecondition, multiWriter: codes.OK} {
				t.Run(m.String(), func(t *testing.T) {
					c := access(m)
					id := w.volume("v", c)
					s, p, q := w.stage("s"), w.pod("p"), w.pod("q")
					wantCode(t, "before it is staged", w.publishAt(id, s, p, c, false), codes.FailedPrecondition)
					must(t, w.stageAt(id, s, c))
					wantCode(t, "without a staging path", w.publishAt(id, "", p, c, false), codes.FailedPrecondition)
					must(t, w.publishAt(id, s, p, c, false))
					w.again()
					must(t, w.publishAt(id, s, p, c, false))
					if m != reader {
						wantCode(t, "read-only at the same path", w.publishAt(id, s, p, c, true), codes.AlreadyExists)
					}
					wantCode(t, "a second pod", w.publishAt(id, s, q, c, false), second)
					if _, err := os.Lstat(q); second != codes.OK && !os.IsNotExist(err) {
						t.Errorf("what was refused left %s: %v", q, err)
					}
					wantCode(t, "unstaged while it is published", w.unstageAt(id, s), codes.FailedPrecondition)
					wantCode(t, "deleted while it is published", w.remove(id), codes.FailedPrecondition)
					must(t, w.unpublishAt(id, p))
					must(t, w.unpublishAt(id, p))
					must(t, w.unpublishAt(id, q))
					must(t, w.unstageAt(id, s))
					must(t, w.remove(id))
					w.nothingLeft()
					if _, err := os.Lstat(p); !os.IsNotExist(err) {
						t.Errorf("the target is left over: %v", err)
					}
				})
			}
		})
	}
}

func TestPublishOverOthers(t *testing.T) {
	w := newWorld(t)
	c := fileSystem(multiWriter, "")
	id := w.volume("v", c)
	s, p := w.stage("s"), w.stage("p")
	must(t, w.stageAt(id, s, c))
	w.kernel.MountOther(p)
	wantCode(t, "somebody else's mount at the target", w.publishAt(id, s, p, c, false), codes.AlreadyExists)
	wantCode(t, "a target that is not absolute", w.publishAt(id, s, "p", c, false), codes.InvalidArgument)
	wantCode(t, "another staging path", w.publishAt(id, w.stage("t"), w.pod("q"), c, false), codes.FailedPrecondition)
	wantCode(t, "a target without a folder", w.publishAt(id, s, w.pod("no/where"), c, false), codes.Internal)

	full := w.stage("full")
	must(t, os.WriteFile(filepath.Join(full, "precious"), []byte("x"), 0o600))
	if err := w.unpublishAt(id, full); err == nil {
		t.Error("a folder with a file in it was unpublished")
	}
	if err := w.unpublishAt(id, filepath.Join(full, "precious")); err == nil {
		t.Error("a file that holds something was unpublished")
	}
	if _, err := os.Stat(filepath.Join(full, "precious")); err != nil {
		t.Error(err)
	}
}

// TestReadOnly: a read-only volume gets its file system all the same.
func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	c := fileSystem(reader, "", "ro")
	id := w.volume("v", c)
	s, p := w.stage("s"), w.pod("p")
	must(t, w.stageAt(id, s, c))
	must(t, w.publishAt(id, s, p, c, false))
	mounts, err := w.kernel.Mounts()
	must(t, err)
	if o := mounts[len(mounts)-1].MountOptions; o[0] != "ro" {
		t.Errorf("published with %v", o)
	}
}

func TestDeleteInUse(t *testing.T) {
	w := newWorld(t)
	c := fileSystem(writer, "")
	id := w.volume("v", c)
	s := w.stage("s")
	must(t, w.stageAt(id, s, c))
	wantCode(t, "deleted while it is staged", w.remove(id), codes.FailedPrecondition)
	if st := w.lease(id).GetState(); st != vacatev1.LeaseState_LEASE_STATE_OPEN {
		t.Errorf("the lease is %v", st)
	}
	must(t, w.unstageAt(id, s))
	must(t, w.remove(id))
	must(t, w.remove(id))

	// What looks at a device for a moment does not fail a call.
	id = w.volume("v", c)
	must(t, w.stageAt(id, s, c))
	w.kernel.Hold(w.lease(id).GetId(), 3)
	must(t, w.unstageAt(id, s))
	must(t, w.stageAt(id, s, c))
	w.kernel.Hold(w.lease(id).GetId(), 1<<30)
	wantCode(t, "unstaged, and its device is held open", w.unstageAt(id, s), codes.FailedPrecondition)
	wantCode(t, "deleted, and its device is held open", w.remove(id), codes.FailedPrecondition)
	w.kernel.Hold(w.lease(id).GetId(), 0)
	must(t, w.remove(id))

	// A driver that was killed after it had attached leaves a device that nobody uses.
	id = w.volume("v", c)
	_, err := w.client.Leases.Attach(t.Context(), &vacatev1.LeaseServiceAttachRequest{Id: w.lease(id).GetId()})
	must(t, err)
	must(t, w.remove(id))
	w.nothingLeft()
}

// TestKilled kills the driver at each step of a volume's life, before it is done and
// after, and starts another: the caller, who asks again or gives up, gets what it
// asked for, and nothing is left over.
func TestKilled(t *testing.T) {
	w := newWorld(t)
	s, p := w.stage("s"), w.pod("p")
	for name, c := range map[string]*spec.VolumeCapability{"mount": fileSystem(singleWriter, "xfs"), "block": block(singleWriter)} {
		var id string
		up := []func() error{
			func() error {
				req := create(name, c)
				req.CapacityRange = required(300 * mib)
				res, err := w.CreateVolume(t.Context(), req)
				id = res.GetVolume().GetVolumeId()
				return err
			},
			func() error { return w.stageAt(id, s, c) },
			func() error { return w.publishAt(id, s, p, c, false) },
			func() error {
				_, err := w.NodeExpandVolume(t.Context(), &spec.NodeExpandVolumeRequest{VolumeId: id, VolumePath: p, CapacityRange: required(400 * mib)})
				return err
			},
		}
		down := []func() error{
			func() error { return w.unpublishAt(id, p) },
			func() error { return w.unstageAt(id, s) },
			func() error { return w.remove(id) },
		}
		life := func(calls []func() error) {
			for _, call := range calls {
				if call() != nil {
					w.again()
					must(t, call())
				}
			}
		}
		w.kernel.SetFault(csitest.Fault{})
		life(append(up, down...))
		steps := w.kernel.Steps()
		if steps < 6 {
			t.Fatalf("%s: only %d steps: the storm is broken", name, steps)
		}
		for n := 1; n <= steps; n++ {
			for _, done := range []bool{false, true} {
				w.kernel.SetFault(csitest.Fault{Step: n, Done: done})
				life(append(up, down...))
				w.nothingLeft()

				// The same, and the caller gives up where the driver was killed.
				w.kernel.SetFault(csitest.Fault{Step: n, Done: done})
				for _, call := range up {
					if call() != nil {
						w.again()
						break
					}
				}
				w.kernel.SetFault(csitest.Fault{})
				if id == "" { // only a second call tells the volume's id
					must(t, up[0]())
				}
				life(down)
				w.nothingLeft()
				id = ""
			}
		}
	}
}

// TestLost: a lease that was lost is no volume, and what was mounted of it can be
// taken away.
func TestLost(t *testing.T) {
	w := newWorld(t)
	c := fileSystem(writer, "")
	id := w.volume("v", c)
	s, p := w.stage("s"), w.pod("p")
	must(t, w.stageAt(id, s, c))
	must(t, w.publishAt(id, s, p, c, false))
	w.daemon.Kill()
	w.start()

	_, err := w.NodeGetVolumeStats(t.Context(), &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: p})
	wantCode(t, "statistics", err, codes.NotFound)
	wantCode(t, "staging", w.stageAt(id, s, c), codes.NotFound)
	h, err := w.NodeGetVolumeHealth(t.Context(), &spec.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil || len(h.GetVolumeHealth().GetHealthStatuses()) == 0 || h.GetVolumeHealth().GetHealthStatuses()[0].GetStatus() != spec.VolumeHealthErrorType_DATA_LOSS {
		t.Errorf("health: %v, %v", h, err)
	}
	all, err := w.ControllerListVolumeHealth(t.Context(), &spec.ControllerListVolumeHealthRequest{})
	if err != nil || len(all.GetEntries()) != 1 || all.GetEntries()[0].GetVolumeId() != id {
		t.Errorf("health of all: %v, %v", all, err)
	}
	if vols, err := w.ListVolumes(t.Context(), &spec.ListVolumesRequest{}); err != nil || len(vols.GetEntries()) != 0 {
		t.Errorf("listed: %v, %v", vols, err)
	}
	must(t, w.unpublishAt(id, p))
	must(t, w.unstageAt(id, s))
	must(t, w.remove(id))
	if again := w.volume("v", c); again == id {
		t.Error("the name of a lost volume found it again")
	}
}

// held is a host whose mounts wait.
type held struct {
	csi.Host
	begun, free chan struct{}
}

func (h *held) FormatAndMount(device, target, fsType string, flags []string) error {
	close(h.begun)
	<-h.free
	return h.Host.FormatAndMount(device, target, fsType, flags)
}

// TestAborted: while a call about a volume is at work, others about it are turned away.
func TestAborted(t *testing.T) {
	w := newWorld(t)
	c := fileSystem(writer, "")
	id := w.volume("v", c)
	s, p := w.stage("s"), w.pod("p")
	h := &held{w.kernel, make(chan struct{}), make(chan struct{})}
	cfg := w.config()
	cfg.Host = h
	w.Driver = csi.New(cfg)
	done := make(chan error, 1)
	go func() { done <- w.stageAt(id, s, c) }()
	<-h.begun
	for name, err := range map[string]error{
		"stage": w.stageAt(id, s, c), "publish": w.publishAt(id, s, p, c, false), "unpublish": w.unpublishAt(id, p), "unstage": w.unstageAt(id, s), "delete": w.remove(id)} {
		wantCode(t, name, err, codes.Aborted)
	}
	if other := w.volume("other", c); other == id {
		t.Error("another name is the same volume")
	}
	close(h.free)
	must(t, <-done)
	must(t, w.unstageAt(id, s))
}

// TestNoDaemon: without a daemon nothing is made up.
func TestNoDaemon(t *testing.T) {
	w := newWorld(t)
	id := w.volume("v", block(writer))
	must(t, w.daemon.Stop())
	ctx := t.Context()
	probe, err := w.Probe(ctx, &spec.ProbeRequest{})
	if err != nil || probe.GetReady().GetValue() {
		t.Errorf("probe: %v, %v", probe, err)
	}
	_, create := w.CreateVolume(ctx, create("w", block(writer)))
	_, capacity := w.GetCapacity(ctx, &spec.GetCapacityRequest{})
	_, list := w.ListVolumes(ctx, &spec.ListVolumesRequest{})
	_, info := w.NodeGetInfo(ctx, &spec.NodeGetInfoRequest{})
	for name, err := range map[string]error{"create": create, "capacity": capacity, "list": list, "info": info, "delete": w.remove(id),
		"stage": w.stageAt(id, w.stage("s"), block(writer)), "unstage": w.unstageAt(id, w.stage("s"))} {
		wantCode(t, name, err, codes.Unavailable)
	}
	health, err := w.NodeGetStorageHealth(ctx, &spec.NodeGetStorageHealthRequest{})
	if err != nil || len(health.GetBackendHealth()) != 1 || health.GetBackendHealth()[0].GetStatus() != spec.StorageHealthErrorType_STORAGE_UNREACHABLE {
		t.Errorf("the node's health: %v, %v", health, err)
	}
}

// TestNoDevices: a daemon that makes no devices says so, and nothing is left over.
func TestNoDevices(t *testing.T) {
	w := newWorld(t)
	id := w.volume("v", block(writer))
	cfg := w.config()
	cfg.Client = client.Dial(w.socket()) // without csitest's devices
	defer cfg.Client.Close()
	w.Driver = csi.New(cfg)
	err := w.stageAt(id, w.stage("s"), block(writer))
	wantCode(t, "stage", err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "block devices") || strings.Contains(err.Error(), "older") {
		t.Errorf("the error does not say what is missing: %v", err)
	}
	must(t, w.remove(id))
	w.nothingLeft()
}

// TestHost looks at this host with what the driver has in production.
func TestHost(t *testing.T) {
	h := csi.NewHost()
	mounts, err := h.Mounts()
	if err != nil || len(mounts) == 0 {
		t.Errorf("mounts: %v, %v", mounts, err)
	}
	for _, path := range []string{"/dev/null", t.TempDir(), os.Args[0]} {
		if _, err := h.Device(path); !errors.Is(err, csi.ErrNoBlock) {
			t.Errorf("%s: %v, want %v", path, err, csi.ErrNoBlock)
		}
	}
	if _, err := h.Device(filepath.Join(t.TempDir(), "no")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	if u, err := h.Usage("/"); err != nil || u.Bytes == 0 || u.Free > u.Bytes || u.Used > u.Bytes {
		t.Errorf("usage of /: %+v, %v", u, err)
	}
}
