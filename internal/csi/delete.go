package csi

import (
	"context"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	vacatev1 "vacate/api/vacate/v1"
)

// Erasing takes no time, and what comes after it may: requests that hang in a drive
// are waited for before the space is another's. DeleteVolume returns when the key is
// destroyed.
const (
	closeWithin = time.Minute           // that a close may take, when nobody waits for it any more
	askEvery    = 20 * time.Millisecond // whether it is erased, or not held any more
	heldFor     = 2 * time.Second       // that a device may be by who only looks at it
)

// DeleteVolume implements Controller. A volume that is mounted, or whose device
// something holds open, is in use; one that nobody uses loses its device first.
func (d *Driver) DeleteVolume(ctx context.Context, req *spec.DeleteVolumeRequest) (*spec.DeleteVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, missing("volume_id")
	}
	leaseID, of := d.parseID(id)
	switch of {
	case nobodys:
		return &spec.DeleteVolumeResponse{}, nil
	case anothers: // to say that it is gone would leave a tenant's data where they are
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not of this node, %s: only its own node can erase it", id, d.cfg.NodeID)
	}
	release, err := d.locks.take("volume " + id)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := d.found(ctx, id)
	switch {
	case status.Code(err) == codes.NotFound:
		return &spec.DeleteVolumeResponse{}, nil
	case err != nil:
		return nil, err
	case erased(l):
		return &spec.DeleteVolumeResponse{}, nil
	}
	if l.GetDevice() != "" {
		if err := d.detach(ctx, id, l); err != nil {
			return nil, err
		}
	}
	if l, err = d.erase(ctx, leaseID); err != nil {
		return nil, failure("deleting volume "+id, err)
	}
	d.cfg.Events.erased(l, d.cfg.NodeID)
	return &spec.DeleteVolumeResponse{}, nil
}

// erased reports whether a lease's key is gone.
func erased(l *vacatev1.Lease) bool { return l.GetState() > vacatev1.LeaseState_LEASE_STATE_CLOSING }

// erase closes a lease, and returns when its key is destroyed.
func (d *Driver) erase(ctx context.Context, leaseID string) (*vacatev1.Lease, error) {
	type outcome struct {
		lease *vacatev1.Lease
		err   error
	}
	closed := make(chan outcome, 1)
	go func() { // ends when the daemon has answered, or after closeWithin
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
		defer cancel()
		res, err := d.cfg.Client.Leases.Close(ctx, &vacatev1.LeaseServiceCloseRequest{Id: leaseID})
		closed <- outcome{res.GetLease(), err}
	}()
	for {
		select {
		case o := <-closed:
			return o.lease, o.err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(askEvery):
		}
		res, err := d.cfg.Client.Leases.Get(ctx, &vacatev1.LeaseServiceGetRequest{Id: leaseID})
		if err == nil && erased(res.GetLease()) {
			return res.GetLease(), nil
		}
	}
}

// detach takes a volume's device away. One that is in use is FAILED_PRECONDITION. What
// looks at devices when something has changed, as udev does, holds one for a moment.
func (d *Driver) detach(ctx context.Context, id string, l *vacatev1.Lease) error {
	for begin := time.Now(); ; {
		_, err := d.cfg.Client.Leases.Detach(ctx, &vacatev1.LeaseServiceDetachRequest{Id: l.GetId()})
		if kindOf(err) == "refused" && time.Since(begin) < heldFor {
			if mounts, merr := d.mountsOf(l); merr == nil && len(mounts) == 0 {
				select {
				case <-time.After(askEvery):
					continue
				case <-ctx.Done():
				}
			}
		}
		return failure("taking the device of volume "+id+" away", err)
	}
}
