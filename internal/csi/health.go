package csi

import (
	"context"
	"fmt"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	vacatev1 "vacate/api/vacate/v1"
)

// driveReady is the state of a drive that is used.
const driveReady = "ready"

// lost reports whether a lease ended without anybody having closed it.
func lost(l *vacatev1.Lease) bool { return len(l.GetResult()) > 5 && l.GetResult()[:5] == "lost_" }

// entries are what is wrong with a volume, as far as the daemon knows.
func entries(l *vacatev1.Lease, drives map[string]*vacatev1.Drive) []*spec.VolumeHealth_VolumeHealthEntry {
	if over(l) {
		return []*spec.VolumeHealth_VolumeHealthEntry{{Status: spec.VolumeHealthErrorType_DATA_LOSS, Reason: "LeaseEnded", Message: endText(l)}}
	}
	var all []*spec.VolumeHealth_VolumeHealthEntry
	seen := map[string]bool{}
	for _, p := range l.GetPieces() {
		if v := drives[p.GetDriveUuid()]; v != nil && v.GetState() != driveReady && !seen[v.GetUuid()] {
			seen[v.GetUuid()] = true
			text := fmt.Sprintf("drive %s is %s: %s", v.GetPath(), v.GetState(), v.GetStateWhy())
			all = append(all, &spec.VolumeHealth_VolumeHealthEntry{Status: spec.VolumeHealthErrorType_INACCESSIBLE, Reason: "DriveNotReady", Message: text})
			break // one for each reason
		}
	}
	if n := l.GetStats().GetErrors(); n > 0 {
		all = append(all, &spec.VolumeHealth_VolumeHealthEntry{Status: spec.VolumeHealthErrorType_DEGRADED, Reason: "RequestErrors",
			Message: fmt.Sprintf("%d requests of lease %s ended with an error", n, l.GetId())})
	}
	return all
}

// drives are the drives of the node, by UUID.
func (d *Driver) drives(ctx context.Context) (map[string]*vacatev1.Drive, error) {
	res, err := d.cfg.Client.Drives.List(ctx, &vacatev1.DriveServiceListRequest{})
	if err != nil {
		return nil, failure("asking for the drives", err)
	}
	all := make(map[string]*vacatev1.Drive)
	for _, v := range res.GetDrives() {
		all[v.GetUuid()] = v
	}
	return all, nil
}

// health is the health of one volume. One that was lost is still known; one that was
// closed does not exist.
func (d *Driver) health(ctx context.Context, id string) (*vacatev1.Lease, *spec.VolumeHealth, error) {
	if id == "" {
		return nil, nil, missing("volume_id")
	}
	l, err := d.found(ctx, id)
	if err == nil && !lost(l) {
		l, err = d.volume(ctx, id)
	}
	if err != nil {
		return nil, nil, err
	}
	drives, err := d.drives(ctx)
	if err != nil {
		return nil, nil, err
	}
	return l, &spec.VolumeHealth{VolumeId: id, HealthStatuses: entries(l, drives)}, nil
}

// ControllerGetVolumeHealth implements Controller.
func (d *Driver) ControllerGetVolumeHealth(ctx context.Context, req *spec.ControllerGetVolumeHealthRequest) (*spec.ControllerGetVolumeHealthResponse, error) {
	_, h, err := d.health(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &spec.ControllerGetVolumeHealthResponse{VolumeHealth: h}, nil
}

// ControllerListVolumeHealth implements Controller. It names what has a fault alone,
// and lost volumes for as long as the daemon remembers them.
func (d *Driver) ControllerListVolumeHealth(ctx context.Context, req *spec.ControllerListVolumeHealthRequest) (*spec.ControllerListVolumeHealthResponse, error) {
	drives, err := d.drives(ctx)
	if err != nil {
		return nil, err
	}
	page, next, err := d.page(ctx, req.GetStartingToken(), req.GetMaxEntries(), func(l *vacatev1.Lease) bool {
		return (lost(l) || !over(l)) && len(entries(l, drives)) > 0
	})
	if err != nil {
		return nil, err
	}
	res := &spec.ControllerListVolumeHealthResponse{NextToken: next}
	for _, l := range page {
		res.Entries = append(res.Entries, &spec.VolumeHealth{VolumeId: d.volumeID(l.GetId()), HealthStatuses: entries(l, drives)})
	}
	return res, nil
}

// NodeGetVolumeHealth implements Node. Beside what the daemon knows it tells of a file
// system that the kernel has made read-only after an error.
func (d *Driver) NodeGetVolumeHealth(ctx context.Context, req *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	l, h, err := d.health(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	mounts, err := d.mountsOf(l)
	if err != nil {
		return nil, failure("volume "+req.GetVolumeId(), err)
	}
	for _, m := range mounts {
		if slices.Contains(m.SuperOptions, "ro") && slices.Contains(m.MountOptions, "rw") {
			h.HealthStatuses = append(h.HealthStatuses, &spec.VolumeHealth_VolumeHealthEntry{Status: spec.VolumeHealthErrorType_DEGRADED,
				Reason: "FileSystemReadOnly", Message: fmt.Sprintf("the kernel has made the file system at %s read-only, as it does after an error", m.MountPoint)})
			break
		}
	}
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
}

// NodeGetStorageHealth implements Node.
func (d *Driver) NodeGetStorageHealth(ctx context.Context, _ *spec.NodeGetStorageHealthRequest) (*spec.NodeGetStorageHealthResponse, error) {
	res := &spec.NodeGetStorageHealthResponse{}
	add := func(s spec.StorageHealthErrorType, reason, text string) {
		res.BackendHealth = append(res.BackendHealth, &spec.NodeGetStorageHealthResponse_StorageBackendHealth{Status: s, Reason: reason, Message: text})
	}
	st, err := d.cfg.Client.Node.Status(ctx, &vacatev1.NodeServiceStatusRequest{})
	if err != nil {
		add(spec.StorageHealthErrorType_STORAGE_UNREACHABLE, "DaemonAway", err.Error())
		return res, nil
	}
	if !st.GetReady() {
		add(spec.StorageHealthErrorType_STORAGE_DEGRADED, "NotReady", st.GetReadyWhy())
	}
	drives, err := d.drives(ctx)
	if err != nil {
		return nil, err
	}
	text := ""
	for _, v := range drives {
		if v.GetState() != driveReady {
			text += fmt.Sprintf("drive %s is %s: %s. ", v.GetPath(), v.GetState(), v.GetStateWhy())
		}
	}
	if text != "" {
		add(spec.StorageHealthErrorType_STORAGE_DEGRADED, "DriveNotReady", text)
	}
	return res, nil
}
