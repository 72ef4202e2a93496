package csi_test

import (
	"testing"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

func TestExpand(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := fileSystem(writer, "")
	id := w.volume("v", c)
	leaseID := w.lease(id).GetId()
	s, p := w.stage("s"), w.pod("p")
	controller := func(r *spec.CapacityRange) (int64, error) {
		res, err := w.ControllerExpandVolume(ctx, &spec.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: r})
		return res.GetCapacityBytes(), err
	}
	node := func(path string, r *spec.CapacityRange) (int64, error) {
		res, err := w.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{VolumeId: id, VolumePath: path, CapacityRange: r})
		return res.GetCapacityBytes(), err
	}
	size := func(what string, got int64, err error, want int64) {
		t.Helper()
		if err != nil || got != want {
			t.Errorf("%s: %d bytes, %v, want %d", what, got, err, want)
		}
	}
	fsBytes := func() int64 {
		_, n := w.kernel.FileSystem(leaseID)
		return n
	}
	must(t, w.stageAt(id, s, c))
	must(t, w.publishAt(id, s, p, c, false))

	n, err := controller(required(100*mib + 1))
	size("controller", n, err, 100*mib+4096)
	size("the file system before the node's step", fsBytes(), nil, 64*mib)
	n, err = node(p, required(100*mib))
	size("node", n, err, 100*mib+4096)
	size("the file system", fsBytes(), nil, 100*mib+4096)
	n, err = controller(required(mib))
	size("smaller", n, err, 100*mib+4096)
	_, err = controller(ranged(mib, 64*mib))
	wantCode(t, "a limit below what it has", err, codes.OutOfRange)
	_, err = controller(required(1 << 50))
	wantCode(t, "over the node", err, codes.ResourceExhausted)
	_, err = controller(nil)
	wantCode(t, "without a range", err, codes.InvalidArgument)
	_, err = node(w.pod("nowhere"), nil)
	wantCode(t, "where it is not", err, codes.NotFound)
	n, err = node(p, required(128*mib)) // where no controller was asked before
	size("node alone", n, err, 128*mib)

	// A kernel that keeps the size of a device in use.
	w.kernel.SetOld(true)
	n, err = controller(required(200 * mib))
	size("controller, old kernel", n, err, 200*mib)
	_, err = node(p, required(200*mib))
	wantCode(t, "node, old kernel", err, codes.FailedPrecondition)
	size("the file system, old kernel", fsBytes(), nil, 128*mib)
	must(t, w.unpublishAt(id, p))
	must(t, w.unstageAt(id, s))
	must(t, w.stageAt(id, s, c))
	size("the file system, staged again", fsBytes(), nil, 200*mib)
	n, err = node(s, required(200*mib))
	size("node, staged again", n, err, 200*mib)

	// As a block device.
	b := w.volume("b", block(writer))
	must(t, w.stageAt(b, w.stage("bs"), block(writer)))
	must(t, w.publishAt(b, w.stage("bs"), w.pod("bp"), block(writer), false))
	w.kernel.SetOld(false)
	res, err := w.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{VolumeId: b, VolumePath: w.pod("bp"), CapacityRange: required(96 * mib), VolumeCapability: block(writer)})
	size("block", res.GetCapacityBytes(), err, 96*mib)
	st, err := w.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: b, VolumePath: w.pod("bp")})
	if err != nil || len(st.GetUsage()) != 1 || st.GetUsage()[0].GetTotal() != 96*mib {
		t.Errorf("statistics of a block volume: %v, %v", st, err)
	}
}

func TestHealth(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	c := fileSystem(writer, "")
	id := w.volume("v", c)
	s := w.stage("s")
	must(t, w.stageAt(id, s, c))
	h, err := w.NodeGetVolumeHealth(ctx, &spec.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil || len(h.GetVolumeHealth().GetHealthStatuses()) != 0 {
		t.Errorf("a good volume: %v, %v", h, err)
	}
	u, err := w.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: s})
	if err != nil || len(u.GetUsage()) != 2 || u.GetUsage()[0].GetTotal() != 64*mib || u.GetUsage()[1].GetUsed() != 11 {
		t.Errorf("statistics: %v, %v", u, err)
	}
	w.kernel.BreakMounts()
	h, err = w.NodeGetVolumeHealth(ctx, &spec.NodeGetVolumeHealthRequest{VolumeId: id})
	if err != nil || len(h.GetVolumeHealth().GetHealthStatuses()) != 1 || h.GetVolumeHealth().GetHealthStatuses()[0].GetReason() != "FileSystemReadOnly" {
		t.Errorf("a file system that was made read-only: %v, %v", h, err)
	}
}
