package csi

import (
	"cmp"
	"context"
	"slices"
	"strconv"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/lease"
)

// ControllerGetCapabilities implements Controller.
func (d *Driver) ControllerGetCapabilities(context.Context, *spec.ControllerGetCapabilitiesRequest) (*spec.ControllerGetCapabilitiesResponse, error) {
	res := &spec.ControllerGetCapabilitiesResponse{}
	for _, t := range []spec.ControllerServiceCapability_RPC_Type{
		spec.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, spec.ControllerServiceCapability_RPC_LIST_VOLUMES,
		spec.ControllerServiceCapability_RPC_GET_CAPACITY, spec.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		spec.ControllerServiceCapability_RPC_GET_VOLUME, spec.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		spec.ControllerServiceCapability_RPC_MODIFY_VOLUME, spec.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		spec.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	} {
		res.Capabilities = append(res.Capabilities, &spec.ControllerServiceCapability{
			Type: &spec.ControllerServiceCapability_Rpc{Rpc: &spec.ControllerServiceCapability_RPC{Type: t}}})
	}
	return res, nil
}

// GetCapacity implements Controller. The largest volume is never over what one call of
// CreateVolume would get now: schedulers take an unset one for no bound at all.
func (d *Driver) GetCapacity(ctx context.Context, req *spec.GetCapacityRequest) (*spec.GetCapacityResponse, error) {
	p, err := parseParams(req.GetParameters())
	if err != nil {
		return nil, err
	}
	least := minBytes(req.GetVolumeCapabilities())
	var free int64
	if d.here(req.GetAccessibleTopology()) && !slices.ContainsFunc(req.GetVolumeCapabilities(), func(c *spec.VolumeCapability) bool { return checkCap(c) != nil }) {
		if free, err = d.free(ctx, p); err != nil {
			return nil, failure("asking for the capacity", err)
		}
	}
	if free < least {
		free = 0
	}
	return &spec.GetCapacityResponse{AvailableCapacity: free, MaximumVolumeSize: wrapperspb.Int64(min(free, lease.MaxBytes)),
		MinimumVolumeSize: wrapperspb.Int64(least)}, nil
}

// free is how many bytes a new lease could take now.
func (d *Driver) free(ctx context.Context, p params) (int64, error) {
	st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		return 0, err
	}
	var held int64 // leases, which are what is bounded
	for _, n := range st.GetLeases() {
		held += int64(n)
	}
	most := d.cfg.MaxVolumes
	if slots := int64(st.GetEngine().GetMaxLeases()); most == 0 || slots < most {
		most = slots
	}
	if !st.GetReady() || held >= most {
		return 0, nil
	}
	if p.drive == "" {
		return st.GetFreeBytes(), nil
	}
	res, err := d.cfg.Client.Drives.Get(ctx, &vacatev1.DriveServiceGetRequest{Drive: p.drive})
	switch {
	case kindOf(err) == "not-found":
		return 0, nil
	case err != nil:
		return 0, err
	case res.GetDrive().GetState() != driveReady:
		return 0, nil
	}
	return res.GetDrive().GetFreeBytes(), nil
}

// ListVolumes implements Controller. Volumes are the open leases of this node, oldest
// first; a token is the number of the last one's OPEN record.
func (d *Driver) ListVolumes(ctx context.Context, req *spec.ListVolumesRequest) (*spec.ListVolumesResponse, error) {
	st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		return nil, failure("listing volumes", err)
	}
	page, next, err := d.page(ctx, req.GetStartingToken(), req.GetMaxEntries(), func(l *vacatev1.Lease) bool {
		return l.GetState() == vacatev1.LeaseState_LEASE_STATE_OPEN
	})
	if err != nil {
		return nil, err
	}
	res := &spec.ListVolumesResponse{NextToken: next}
	for _, l := range page {
		res.Entries = append(res.Entries, &spec.ListVolumesResponse_Entry{
			Volume: d.volumeMessage(l, st.GetNodeId()), Status: &spec.ListVolumesResponse_VolumeStatus{}})
	}
	return res, nil
}

// page is the leases that keep admits, after a token and at most as many as most,
// which may be 0 for all. Ended ones are among them.
func (d *Driver) page(ctx context.Context, token string, most int32, keep func(*vacatev1.Lease) bool) (page []*vacatev1.Lease, next string, err error) {
	var after uint64
	if token != "" {
		if after, err = strconv.ParseUint(token, 10, 64); err != nil {
			return nil, "", status.Errorf(codes.Aborted, "starting_token %q is none that was given out: start with an empty one", token)
		}
	}
	if most < 0 {
		return nil, "", invalid("max_entries is %d", most)
	}
	res, err := d.cfg.Client.Leases.List(ctx, &vacatev1.LeaseServiceListRequest{IncludeEnded: true})
	if err != nil {
		return nil, "", failure("listing volumes", err)
	}
	page = slices.DeleteFunc(res.GetLeases(), func(l *vacatev1.Lease) bool { return l.GetOpenSeq() <= after || !keep(l) })
	slices.SortFunc(page, func(a, b *vacatev1.Lease) int { return cmp.Compare(a.GetOpenSeq(), b.GetOpenSeq()) })
	if most > 0 && len(page) > int(most) {
		page = page[:most]
		next = strconv.FormatUint(page[most-1].GetOpenSeq(), 10)
	}
	return page, next, nil
}

// ControllerGetVolume implements Controller.
func (d *Driver) ControllerGetVolume(ctx context.Context, req *spec.ControllerGetVolumeRequest) (*spec.ControllerGetVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume_id")
	}
	l, err := d.volume(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		return nil, failure("volume "+req.GetVolumeId(), err)
	}
	return &spec.ControllerGetVolumeResponse{Volume: d.volumeMessage(l, st.GetNodeId()), Status: &spec.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// ValidateVolumeCapabilities implements Controller.
func (d *Driver) ValidateVolumeCapabilities(ctx context.Context, req *spec.ValidateVolumeCapabilitiesRequest) (*spec.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume_id")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, missing("volume_capabilities")
	}
	l, err := d.volume(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	why := checkCaps(req.GetVolumeCapabilities())
	if _, perr := parseParams(req.GetParameters()); why == nil {
		why = perr
	}
	if _, merr := parseLimits(nil, req.GetMutableParameters()); why == nil {
		why = merr
	}
	if least := minBytes(req.GetVolumeCapabilities()); why == nil && l.GetSizeBytes() < least {
		why = invalid("a volume of %d bytes is too small: %d are needed", l.GetSizeBytes(), least)
	}
	if why != nil {
		return &spec.ValidateVolumeCapabilitiesResponse{Message: status.Convert(why).Message()}, nil
	}
	return &spec.ValidateVolumeCapabilitiesResponse{Confirmed: &spec.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters(),
		MutableParameters: req.GetMutableParameters()}}, nil
}
