package engine

import (
	"fmt"

	"vacate/internal/ipc"
	"vacate/internal/limit"
	"vacate/internal/volatile"
	"vacate/internal/volume"
)

// limitLease holds the volume of an open lease to other limits. The lease table
// has them first, so that an engine which takes over from here knows no older
// ones than clients have seen.
func (e *Engine) limitLease(req *ipc.LeaseLimitRequest) (*ipc.Empty, error) {
	if err := req.Limits.Check(); err != nil {
		return nil, invalid("lease %s: %v", req.Lease, err)
	}
	t, ended, err := e.lease(req.Lease)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		return nil, notFound("lease %s has ended", req.Lease)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.standing(t); err != nil {
		return nil, err
	}
	before := t.rec.Limits
	t.rec.Limits = toRecord(req.Limits)
	if err := e.note(t, volatile.StateOpen); err != nil {
		t.rec.Limits = before
		return nil, fmt.Errorf("limiting lease %s: %w", t.id, err)
	}
	if t.path != nil && !t.parting { // else the next one is built with them
		t.path.volume.SetLimits(toVolume(t.rec.Limits))
	}
	return &ipc.Empty{}, nil
}

// toRecord is limits as the lease table has them. REQUIRES: they were checked.
func toRecord(l limit.Limits) volatile.Limits {
	return volatile.Limits{IOPS: uint32(l.IOPS), IOPSBurst: uint32(l.IOPSBurst), Bytes: l.Bytes, BytesBurst: l.BytesBurst}
}

func fromRecord(l volatile.Limits) limit.Limits {
	return limit.Limits{IOPS: uint64(l.IOPS), IOPSBurst: uint64(l.IOPSBurst), Bytes: l.Bytes, BytesBurst: l.BytesBurst}
}

func toVolume(l volatile.Limits) volume.Limits { return volume.Limits(fromRecord(l)) }
