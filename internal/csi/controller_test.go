package csi_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/api/vacate/v1/vacatev1connect"
	"vacate/internal/csi"
)

// TestOtherIDs: ids that are not of this driver, of another node, and of a volume that
// is gone, in every call that takes one.
func TestOtherIDs(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	id := w.volume("here", block(writer))
	must(t, w.remove(id))
	there := csi.New(csi.Config{NodeID: "node-2", Client: w.client, Host: w.kernel})
	res, err := there.CreateVolume(ctx, create("there", block(writer)))
	must(t, err)
	foreign := res.GetVolume().GetVolumeId()

	calls := map[string]func(id string) error{
		"DeleteVolume": w.remove,
		"ControllerExpandVolume": func(id string) error {
			_, err := w.ControllerExpandVolume(ctx, &spec.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: required(mib)})
			return err
		},
		"ControllerGetVolume": func(id string) error {
			_, err := w.ControllerGetVolume(ctx, &spec.ControllerGetVolumeRequest{VolumeId: id})
			return err
		},
		"ControllerModifyVolume": func(id string) error {
			_, err := w.ControllerModifyVolume(ctx, &spec.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: map[string]string{"iops": "1"}})
			return err
		},
		"ControllerGetVolumeHealth": func(id string) error {
			_, err := w.ControllerGetVolumeHealth(ctx, &spec.ControllerGetVolumeHealthRequest{VolumeId: id})
			return err
		},
		"NodeGetVolumeHealth": func(id string) error {
			_, err := w.NodeGetVolumeHealth(ctx, &spec.NodeGetVolumeHealthRequest{VolumeId: id})
			return err
		},
		"ValidateVolumeCapabilities": func(id string) error {
			_, err := w.ValidateVolumeCapabilities(ctx, &spec.ValidateVolumeCapabilitiesRequest{VolumeId: id, VolumeCapabilities: []*spec.VolumeCapability{block(writer)}})
			return err
		},
		"NodeStageVolume":     func(id string) error { return w.stageAt(id, w.stage("s"), block(writer)) },
		"NodePublishVolume":   func(id string) error { return w.publishAt(id, w.stage("s"), w.pod("p"), block(writer), false) },
		"NodeUnpublishVolume": func(id string) error { return w.unpublishAt(id, w.pod("p")) },
		"NodeUnstageVolume":   func(id string) error { return w.unstageAt(id, w.stage("s")) },
		"NodeGetVolumeStats": func(id string) error {
			_, err := w.NodeGetVolumeStats(ctx, &spec.NodeGetVolumeStatsRequest{VolumeId: id, VolumePath: w.pod("p")})
			return err
		},
		"NodeExpandVolume": func(id string) error {
			_, err := w.NodeExpandVolume(ctx, &spec.NodeExpandVolumeRequest{VolumeId: id, VolumePath: w.pod("p")})
			return err
		},
	}
	const ok, not, pre = codes.OK, codes.NotFound, codes.FailedPrecondition
	special := map[string][3]codes.Code{ // no id; another node's; gone
		"DeleteVolume":           {ok, pre, ok},
		"ControllerExpandVolume": {not, ok, not}, // the node does the rest
		"NodeUnpublishVolume":    {not, not, ok},
		"NodeUnstageVolume":      {not, not, ok},
	}
	for name, call := range calls {
		want, found := special[name]
		if !found {
			want = [3]codes.Code{not, not, not}
		}
		for _, bad := range []string{"x", "fake-vol-id", strings.ToUpper(id), id[1:], id + "a", strings.Replace(id, "-", "/", 1), "../../../../etc", strings.Repeat("a", 300)} {
			wantCode(t, name+" of "+bad, call(bad), want[0])
		}
		wantCode(t, name+" of another node", call(foreign), want[1])
		wantCode(t, name+" of what is gone", call(id), want[2])
		wantCode(t, name+" of nothing", call(""), codes.InvalidArgument)
	}
	if l := w.lease(foreign); l.GetState() != vacatev1.LeaseState_LEASE_STATE_OPEN || l.GetSizeBytes() != 64*mib {
		t.Errorf("the other node's volume was touched: %v", l)
	}
}

func TestSizes(t *testing.T) {
	w := newWorld(t)
	tests := []struct {
		name string
		cap  *spec.VolumeCapability
		r    *spec.CapacityRange
		want int64
		code codes.Code
	}{
		{"none", block(writer), nil, 1 << 30, codes.OK},
		{"none, and a limit", block(writer), ranged(0, 10000), 8192, codes.OK},
		{"odd", block(writer), required(4097), 8192, codes.OK},
		{"odd, and a limit that is too near", block(writer), ranged(4097, 5000), 0, codes.OutOfRange},
		{"a byte", block(writer), required(1), 4096, codes.OK},
		{"a limit below all", block(writer), ranged(0, 100), 0, codes.OutOfRange},
		{"ext4", fileSystem(writer, ""), required(1), 16 * mib, codes.OK},
		{"ext4, and a limit below it", fileSystem(writer, "ext4"), ranged(1, mib), 0, codes.OutOfRange},
		{"xfs", fileSystem(writer, "xfs"), required(64 * mib), 300 * mib, codes.OK},
		{"negative", block(writer), required(-1), 0, codes.InvalidArgument},
		{"turned round", block(writer), ranged(2*mib, mib), 0, codes.InvalidArgument},
		{"over all", block(writer), required(1<<62 + 1), 0, codes.OutOfRange},
		{"over the node", block(writer), required(1 << 50), 0, codes.ResourceExhausted},
	}
	for i, tt := range tests {
		req := create(fmt.Sprintf("size-%d", i), tt.cap)
		req.CapacityRange = tt.r
		res, err := w.CreateVolume(t.Context(), req)
		wantCode(t, tt.name, err, tt.code)
		if got := res.GetVolume().GetCapacityBytes(); err == nil && got != tt.want {
			t.Errorf("%s: %d bytes, want %d", tt.name, got, tt.want)
		}
	}
}

func TestParameters(t *testing.T) {
	w := newWorld(t)
	ok := map[string]string{"csi.storage.k8s.io/pvc/namespace": "acme", "csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pv/name": "pvc-1",
		"iops": "5000", "bandwidth": "64Mi", "bandwidthBurst": "1Gi", "logicalBlock": "4096"}
	req := create("p", block(writer))
	req.Parameters, req.MutableParameters = ok, map[string]string{"iops": "100"}
	res, err := w.CreateVolume(t.Context(), req)
	must(t, err)
	l := w.lease(res.GetVolume().GetVolumeId())
	if l.GetTenant() != "acme" || l.GetLogicalBlock() != 4096 || l.GetLimits().GetIops() != 100 || l.GetLimits().GetBandwidthBytes() != 64*mib || l.GetLimits().GetBandwidthBurstBytes() != 1<<30 {
		t.Errorf("the lease is %v", l)
	}
	if got := res.GetVolume().GetVolumeContext()[csi.Name+"/lease"]; got != l.GetId() {
		t.Errorf("the context names lease %q, not %q", got, l.GetId())
	}
	for name, tt := range map[string]struct {
		params map[string]string
		code   codes.Code
	}{
		"unknown":        {map[string]string{"iop": "5"}, codes.InvalidArgument},
		"provisioner's":  {map[string]string{"csi.storage.k8s.io/new": "5"}, codes.InvalidArgument},
		"no number":      {map[string]string{"iops": "5k"}, codes.InvalidArgument},
		"negative":       {map[string]string{"iops": "-5"}, codes.InvalidArgument},
		"over 64 bits":   {map[string]string{"bandwidth": "18446744073709551615Ti"}, codes.InvalidArgument},
		"over its bound": {map[string]string{"iops": "4294967296"}, codes.InvalidArgument},
		"block":          {map[string]string{"logicalBlock": "1024"}, codes.InvalidArgument},
		"tenant":         {map[string]string{"tenant": "a/b"}, codes.InvalidArgument},
		"no such drive":  {map[string]string{"drive": "/dev/nowhere"}, codes.ResourceExhausted},
	} {
		req := create("bad", block(writer))
		req.Parameters = tt.params
		_, err := w.CreateVolume(t.Context(), req)
		wantCode(t, name, err, tt.code)
		if tt.code == codes.InvalidArgument && name != "over its bound" {
			_, err = w.GetCapacity(t.Context(), &spec.GetCapacityRequest{Parameters: tt.params})
			wantCode(t, name+" of GetCapacity", err, tt.code)
		}
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	change := func(f func(r *spec.CreateVolumeRequest)) *spec.CreateVolumeRequest {
		r := create("bad", block(writer))
		f(r)
		return r
	}
	elsewhere := &spec.Topology{Segments: map[string]string{csi.TopologyKey: "node-2"}}
	here := &spec.Topology{Segments: map[string]string{csi.TopologyKey: "node-1"}}
	for name, tt := range map[string]struct {
		req  *spec.CreateVolumeRequest
		code codes.Code
	}{
		"many nodes": {change(func(r *spec.CreateVolumeRequest) {
			r.VolumeCapabilities = append(r.VolumeCapabilities, block(spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER))
		}), codes.InvalidArgument},
		"a file system that there is not": {create("bad", fileSystem(writer, "btrfs")), codes.InvalidArgument},
		"no access type":                  {create("bad", &spec.VolumeCapability{AccessMode: block(writer).AccessMode}), codes.InvalidArgument},
		"no access mode":                  {create("bad", &spec.VolumeCapability{AccessType: block(writer).AccessType}), codes.InvalidArgument},
		"a snapshot": {change(func(r *spec.CreateVolumeRequest) {
			r.VolumeContentSource = &spec.VolumeContentSource{Type: &spec.VolumeContentSource_Snapshot{Snapshot: &spec.VolumeContentSource_SnapshotSource{SnapshotId: "s"}}}
		}), codes.InvalidArgument},
		"another node": {change(func(r *spec.CreateVolumeRequest) {
			r.AccessibilityRequirements = &spec.TopologyRequirement{Requisite: []*spec.Topology{elsewhere}, Preferred: []*spec.Topology{elsewhere}}
		}), codes.ResourceExhausted},
		"this node among others": {change(func(r *spec.CreateVolumeRequest) {
			r.AccessibilityRequirements = &spec.TopologyRequirement{Requisite: []*spec.Topology{elsewhere, here}, Preferred: []*spec.Topology{elsewhere}}
		}), codes.OK},
	} {
		_, err := w.CreateVolume(t.Context(), tt.req)
		wantCode(t, name, err, tt.code)
	}
}

// TestNames: a name is one volume, whatever the caller knows of it, until that is gone.
func TestNames(t *testing.T) {
	w := newWorld(t)
	id := w.volume("n", block(writer))
	w.again()
	if again := w.volume("n", block(writer)); again != id {
		t.Errorf("asked again, the name is %s, not %s", again, id)
	}
	for name, tt := range map[string]struct {
		r    *spec.CapacityRange
		p    map[string]string
		code codes.Code
	}{
		"larger":        {required(65 * mib), nil, codes.AlreadyExists},
		"smaller":       {ranged(mib, 63*mib), nil, codes.AlreadyExists},
		"in the range":  {ranged(mib, 65*mib), nil, codes.OK},
		"other limits":  {required(64 * mib), map[string]string{"iops": "7"}, codes.AlreadyExists},
		"other blocks":  {required(64 * mib), map[string]string{"logicalBlock": "4096"}, codes.AlreadyExists},
		"another drive": {required(64 * mib), map[string]string{"drive": "/dev/nowhere"}, codes.AlreadyExists},
		"no size":       {nil, nil, codes.OK},
	} {
		req := create("n", block(writer))
		req.CapacityRange, req.Parameters = tt.r, tt.p
		res, err := w.CreateVolume(t.Context(), req)
		wantCode(t, name, err, tt.code)
		if err == nil && res.GetVolume().GetVolumeId() != id {
			t.Errorf("%s: another volume", name)
		}
	}
	_, err := w.ControllerExpandVolume(t.Context(), &spec.ControllerExpandVolumeRequest{VolumeId: id, CapacityRange: required(128 * mib)})
	must(t, err)
	if again := w.volume("n", block(writer)); again != id {
		t.Errorf("expanded, the name is %s, not %s", again, id)
	}
	seen := map[string]bool{id: true}
	for range 3 {
		must(t, w.remove(id))
		id = w.volume("n", block(writer))
		if seen[id] {
			t.Errorf("deleted, the name is %s again", id)
		}
		seen[id] = true
	}
}

// TestFull: no capacity is told of that cannot be had, and none that can is hidden.
func TestFull(t *testing.T) {
	w := newWorld(t)
	capacity := func(c ...*spec.VolumeCapability) *spec.GetCapacityResponse {
		t.Helper()
		res, err := w.GetCapacity(t.Context(), &spec.GetCapacityRequest{VolumeCapabilities: c})
		must(t, err)
		return res
	}
	before := capacity(block(writer))
	req := create("all", block(writer))
	req.CapacityRange = required(before.GetMaximumVolumeSize().GetValue() + 1)
	_, err := w.CreateVolume(t.Context(), req)
	wantCode(t, "a byte over the largest", err, codes.ResourceExhausted)
	req.CapacityRange = required(before.GetMaximumVolumeSize().GetValue())
	res, err := w.CreateVolume(t.Context(), req)
	must(t, err)
	full := capacity(block(writer))
	if full.GetAvailableCapacity() != 0 || full.GetMaximumVolumeSize() == nil || full.GetMaximumVolumeSize().GetValue() != 0 {
		t.Errorf("the capacity of a full node is %v", full)
	}
	_, err = w.CreateVolume(t.Context(), create("more", block(writer)))
	wantCode(t, "a volume on a full node", err, codes.ResourceExhausted)
	must(t, w.remove(res.GetVolume().GetVolumeId()))
	w.nothingLeft()
	if after := capacity(block(writer)); after.GetAvailableCapacity() != before.GetAvailableCapacity() {
		t.Errorf("after the volume's end %d bytes are free, before it %d", after.GetAvailableCapacity(), before.GetAvailableCapacity())
	}
	if got := capacity(fileSystem(writer, "xfs")).GetMinimumVolumeSize().GetValue(); got != 300*mib {
		t.Errorf("the smallest volume with xfs has %d bytes", got)
	}

	// What is too little for the file system is none.
	req = create("most", block(writer))
	req.CapacityRange = required(before.GetMaximumVolumeSize().GetValue() - 128*mib)
	res, err = w.CreateVolume(t.Context(), req)
	must(t, err)
	if got := capacity(fileSystem(writer, "xfs")); got.GetAvailableCapacity() != 0 || got.GetMaximumVolumeSize().GetValue() != 0 {
		t.Errorf("with 128 MiB free the capacity for xfs is %v", got)
	}
	if got := capacity(fileSystem(writer, "ext4")).GetMaximumVolumeSize().GetValue(); got != 128*mib {
		t.Errorf("with 128 MiB free the largest volume with ext4 has %d bytes", got)
	}
	must(t, w.remove(res.GetVolume().GetVolumeId()))
	w.nothingLeft()

	// What cannot be had here is no capacity.
	many := block(spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER)
	if got := capacity(many).GetAvailableCapacity(); got != 0 {
		t.Errorf("%d bytes for many nodes", got)
	}
	other, err := w.GetCapacity(t.Context(), &spec.GetCapacityRequest{AccessibleTopology: &spec.Topology{Segments: map[string]string{csi.TopologyKey: "node-2"}}})
	if err != nil || other.GetAvailableCapacity() != 0 {
		t.Errorf("the capacity of another node is %v, %v", other, err)
	}
	none, err := w.GetCapacity(t.Context(), &spec.GetCapacityRequest{Parameters: map[string]string{"drive": "/dev/nowhere"}})
	if err != nil || none.GetAvailableCapacity() != 0 || none.GetMaximumVolumeSize().GetValue() != 0 {
		t.Errorf("the capacity of no drive is %v, %v", none, err)
	}
	few := csi.New(csi.Config{NodeID: "node-1", MaxVolumes: 1, Client: w.client, Host: w.kernel})
	id := w.volume("one", block(writer))
	got, err := few.GetCapacity(t.Context(), &spec.GetCapacityRequest{})
	if err != nil || got.GetMaximumVolumeSize().GetValue() != 0 {
		t.Errorf("with as many volumes as there may be the capacity is %v, %v", got, err)
	}
	must(t, w.remove(id))
}

func TestListPages(t *testing.T) {
	w := newWorld(t)
	want := map[string]bool{}
	for i := range 5 {
		want[w.volume(fmt.Sprint("v", i), block(writer))] = true
	}
	first, err := w.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: 2})
	if err != nil || len(first.GetEntries()) != 2 || first.GetNextToken() == "" {
		t.Fatalf("the first page is %v, %v", first, err)
	}
	for _, e := range first.GetEntries() { // also the one that the token is of
		must(t, w.remove(e.GetVolume().GetVolumeId()))
		delete(want, e.GetVolume().GetVolumeId())
	}
	want[w.volume("new", block(writer))] = true
	token := first.GetNextToken()
	for token != "" {
		page, err := w.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: 2, StartingToken: token})
		if err != nil || len(page.GetEntries()) > 2 {
			t.Fatalf("a page is %v, %v", page, err)
		}
		for _, e := range page.GetEntries() {
			if !want[e.GetVolume().GetVolumeId()] {
				t.Errorf("%s was not expected, or came twice", e.GetVolume().GetVolumeId())
			}
			delete(want, e.GetVolume().GetVolumeId())
		}
		token = page.GetNextToken()
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	_, err = w.ListVolumes(t.Context(), &spec.ListVolumesRequest{MaxEntries: -1})
	wantCode(t, "a negative number of entries", err, codes.InvalidArgument)
}

func TestModify(t *testing.T) {
	w := newWorld(t)
	id := w.volume("m", block(writer))
	modify := func(p map[string]string) error {
		_, err := w.ControllerModifyVolume(t.Context(), &spec.ControllerModifyVolumeRequest{VolumeId: id, MutableParameters: p})
		return err
	}
	must(t, modify(map[string]string{"iops": "500", "bandwidth": "1Mi"}))
	must(t, modify(map[string]string{"iops": "600"}))
	if l := w.lease(id).GetLimits(); l.GetIops() != 600 || l.GetBandwidthBytes() != mib {
		t.Errorf("the limits are %v", l)
	}
	wantCode(t, "a parameter that is none", modify(map[string]string{"tenant": "x"}), codes.InvalidArgument)
	must(t, modify(map[string]string{"iops": "0", "bandwidth": "0"}))
	if l := w.lease(id).GetLimits(); l != nil {
		t.Errorf("the limits are %v, and none were wanted", l)
	}
}

// slowClose has a close wait for what drains, long after the key's end.
type slowClose struct {
	vacatev1connect.LeaseServiceClient
}

func (c slowClose) Close(ctx context.Context, req *vacatev1.LeaseServiceCloseRequest) (*vacatev1.LeaseServiceCloseResponse, error) {
	res, err := c.LeaseServiceClient.Close(ctx, req)
	if err == nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
		}
	}
	return res, err
}

// TestDeleteDoesNotWait: DeleteVolume returns when the key is destroyed.
func TestDeleteDoesNotWait(t *testing.T) {
	w := newWorld(t)
	id := w.volume("d", block(writer))
	w.client.Leases = slowClose{w.client.Leases}
	begin := time.Now()
	must(t, w.remove(id))
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	w.nothingLeft()
}
