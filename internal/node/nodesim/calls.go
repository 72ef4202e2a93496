package nodesim

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/lease"
)

// This file is what control calls.

func refuse(code, format string, args ...any) error {
	return &ipc.RemoteError{Code: code, Text: fmt.Sprintf(format, args...)}
}

// call runs do under the lock, unless the engine is down or ctx is done.
func call[T any](ctx context.Context, e *Engine, name string, do func() (T, error)) (T, error) {
	var none T
	if err := ctx.Err(); err != nil {
		return none, err
	}
	return run(e.F, name, func() (T, error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.down {
			return none, ipc.ErrGone
		}
		return do()
	})
}

// Hello implements node.Engine, as do the methods below.
func (e *Engine) Hello(ctx context.Context) (ipc.Hello, error) {
	return call(ctx, e, "Hello", func() (ipc.Hello, error) {
		return ipc.Hello{EngineID: e.id(), KeeperID: fmt.Sprintf("keeper-%d", e.keeper), BootID: fmt.Sprintf("boot-%d", e.boot),
			Generation: uint64(e.engine), Emptied: uint64(e.emptied), Slots: 8, MaxConns: 128}, nil
	})
}

func (e *Engine) Inspect(ctx context.Context, req ipc.InspectRequest) (ipc.Inspection, error) {
	return call(ctx, e, "Inspect", func() (ipc.Inspection, error) {
		d := e.disks[req.Path]
		if d == nil || d.Missing {
			return ipc.Inspection{}, refuse(ipc.CodeNotFound, "there is nothing at %s", req.Path)
		}
		out := ipc.Inspection{Drive: d.Info, Findings: []ipc.Finding{{Code: "note", Text: "a simulated drive"}}}
		if d.UUID != "" {
			out.Findings = append(out.Findings, ipc.Finding{Code: "enrolled", Text: "it is enrolled", Refuse: true, Force: true})
		}
		return out, nil
	})
}

func (e *Engine) Enroll(ctx context.Context, req ipc.EnrollRequest) (ipc.DriveInfo, error) {
	return call(ctx, e, "Enroll", func() (ipc.DriveInfo, error) {
		d := e.disks[req.Path]
		switch {
		case d == nil || d.Missing:
			return ipc.DriveInfo{}, refuse(ipc.CodeNotFound, "there is nothing at %s", req.Path)
		case d.Held:
			return ipc.DriveInfo{}, refuse(ipc.CodeBusy, "%s is held by someone else", req.Path)
		case d.UUID != "" && (!req.Force || req.Confirm != d.Info.Serial):
			return ipc.DriveInfo{}, refuse(ipc.CodeRefused, "%s is enrolled already", req.Path)
		}
		d.UUID, d.Node, d.Epoch = req.UUID, req.Node, req.Epoch
		return d.info(), nil
	})
}

func (d *Disk) info() ipc.DriveInfo {
	info := d.Info
	info.UUID, info.Epoch = d.UUID, d.Epoch
	return info
}

func (e *Engine) OpenDrive(ctx context.Context, req ipc.DriveOpenRequest) (ipc.DriveInfo, error) {
	return call(ctx, e, "OpenDrive", func() (ipc.DriveInfo, error) {
		d := e.disks[req.Path]
		switch {
		case d == nil || d.Missing:
			return ipc.DriveInfo{}, refuse(ipc.CodeNotFound, "there is nothing at %s", req.Path)
		case d.Fails:
			return ipc.DriveInfo{}, refuse(ipc.CodeInternal, "reading %s: input/output error", req.Path)
		case d.Held || d.Late != "" && d.Late != e.id():
			return ipc.DriveInfo{}, refuse(ipc.CodeBusy, "%s is held by someone else", req.Path)
		case d.UUID != req.UUID || d.Node != req.Node:
			return ipc.DriveInfo{}, refuse(ipc.CodeMismatch, "%s is not drive %s", req.Path, req.UUID)
		case d.Epoch != req.Epoch && d.Epoch+1 != req.Epoch:
			return ipc.DriveInfo{}, refuse(ipc.CodeMismatch, "%s is at epoch %d, the journal at %d", req.Path, d.Epoch, req.Epoch)
		case req.NewEpoch != req.Epoch && req.NewEpoch != req.Epoch+1:
			return ipc.DriveInfo{}, refuse(ipc.CodeInvalid, "epoch %d after %d", req.NewEpoch, req.Epoch)
		}
		if d.Lost != "" {
			e.open[d.UUID], e.records[d.UUID] = d, d
			e.settle()
			return ipc.DriveInfo{}, refuse(ipc.CodeLost, "%s", d.Lost)
		}
		d.Epoch = req.NewEpoch
		e.open[d.UUID], e.records[d.UUID] = d, d
		e.settle()
		return d.info(), nil
	})
}

func (e *Engine) CloseDrive(ctx context.Context, req ipc.DriveCloseRequest) error {
	_, err := call(ctx, e, "CloseDrive", func() (struct{}, error) {
		for id, v := range e.leases {
			if slices.ContainsFunc(v.req.Pieces, func(p extent.Piece) bool { return p.Drive == req.UUID }) {
				return struct{}{}, refuse(ipc.CodeBusy, "drive %s is used by lease %s", req.UUID, id)
			}
		}
		if d := e.open[req.UUID]; d != nil {
			d.Lost = ""
		}
		delete(e.open, req.UUID)
		delete(e.records, req.UUID)
		return struct{}{}, nil
	})
	return err
}

func (e *Engine) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, listeners ...*os.File) (ipc.LeaseOpened, error) {
	return call(ctx, e, "engine OpenLease", func() (ipc.LeaseOpened, error) {
		if x := lease.Exports(req.Exports); x.Check() != nil || len(listeners) != len(x.Kinds()) || slices.Contains(listeners, nil) {
			e.violated("lease %s with the exports %+v (%v) came with %d listeners", req.Lease, x, x.Check(), len(listeners))
		}
		if !req.Hold {
			e.violated("N1: lease %s is to be served at once", req.Lease)
		}
		for _, p := range req.Pieces {
			d := e.open[p.Drive]
			if d == nil {
				return ipc.LeaseOpened{}, refuse(ipc.CodeNotFound, "drive %s is not open", p.Drive)
			}
			if d.Late != "" {
				e.violated("L1: drive %s is used, and engine %s still writes to it", p.Drive, d.Late)
			}
		}
		for id, v := range e.leases {
			if v.req.Slot == req.Slot {
				e.violated("N3: slot %d is given to lease %s, and lease %s has it", req.Slot, req.Lease, id)
			}
			for _, p := range req.Pieces {
				for _, q := range v.req.Pieces {
					if p.Drive == q.Drive && p.Overlaps(q.Range) {
						e.violated("N2: extents %v of drive %s are given to lease %s, and lease %s has them", p.Range, p.Drive, req.Lease, id)
					}
				}
			}
		}
		maps.DeleteFunc(e.ended, func(_ string, old ending) bool { return old.slot == req.Slot })
		e.clock = max(e.clock+1, e.Boottime())
		e.leases[req.Lease] = &volume{req: req, held: true, gone: make(chan struct{})}
		e.keys[req.Lease] = true
		return e.committed(req), nil
	})
}

func (e *Engine) LimitLease(ctx context.Context, req ipc.LeaseLimitRequest) error {
	_, err := call(ctx, e, "engine LimitLease", func() (struct{}, error) {
		v := e.leases[req.Lease]
		switch {
		case v == nil || v.erasure != nil:
			return struct{}{}, refuse(ipc.CodeNotFound, "the engine holds no open lease %s", req.Lease)
		case req.Limits.Check() != nil:
			e.violated("lease %s: limits %+v: %v", req.Lease, req.Limits, req.Limits.Check())
		}
		v.req.Limits = req.Limits
		return struct{}{}, nil
	})
	return err
}

func (e *Engine) CloseLease(ctx context.Context, id string) (ipc.Erasure, error) {
	return call(ctx, e, "engine CloseLease", func() (ipc.Erasure, error) {
		if old, ok := e.ended[id]; ok {
			return old.erasure, nil
		}
		v := e.leases[id]
		if v == nil {
			return ipc.Erasure{}, refuse(ipc.CodeNotFound, "the engine holds no lease %s", id)
		}
		if v.erasure == nil {
			if e.noReadBack > 0 {
				e.noReadBack--
				return ipc.Erasure{GateClosedNs: e.clock, KeyDestroyedNs: e.clock}, nil
			}
			e.clock = max(e.clock+3, e.Boottime())
			v.held, v.never = false, v.held
			v.erasure = &ipc.Erasure{GateClosedNs: e.clock - 2, CiphersDoneNs: e.clock - 1, KeyDestroyedNs: e.clock, ReadBack: true}
			delete(e.keys, id)
			if !e.busy(v) {
				e.leave(id, v)
			}
		}
		return *v.erasure, nil
	})
}

func (e *Engine) Drain(ctx context.Context, id string) error {
	gone, err := call(ctx, e, "Drain", func() (chan struct{}, error) {
		v := e.leases[id]
		if v == nil {
			if _, ok := e.ended[id]; !ok {
				return nil, refuse(ipc.CodeNotFound, "the engine holds no lease %s", id)
			}
			return nil, nil
		}
		return v.gone, nil
	})
	if err != nil || gone == nil {
		return err
	}
	select {
	case <-gone:
		e.mu.Lock()
		defer e.mu.Unlock()
		if _, ok := e.ended[id]; !ok {
			return ipc.ErrGone // the engine ended meanwhile
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *Engine) Leases(ctx context.Context) (ipc.LeaseList, error) {
	return call(ctx, e, "Leases", func() (ipc.LeaseList, error) {
		var list ipc.LeaseList
		for _, id := range slices.Sorted(maps.Keys(e.leases)) {
			v := e.leases[id]
			list.Leases = append(list.Leases, ipc.LeaseStatus{Lease: id, Slot: v.req.Slot, Erased: v.erasure != nil, Held: v.held, SizeBytes: v.req.SizeBytes, Limits: v.req.Limits})
		}
		return list, nil
	})
}

func (e *Engine) Stats(ctx context.Context) (ipc.Stats, error) {
	return call(ctx, e, "Stats", func() (ipc.Stats, error) {
		var s ipc.Stats
		for _, uuid := range slices.Sorted(maps.Keys(e.open)) {
			s.Drives = append(s.Drives, ipc.DriveStats{UUID: uuid, Errors: 3, LastError: "EIO"})
		}
		return s, nil
	})
}

// Losses has no faults of its own: it is asked all the time, and those of others
// would strike at random.
func (e *Engine) Losses(ctx context.Context, seen uint64) (ipc.Losses, error) {
	for {
		e.mu.Lock()
		l, news, down, id := ipc.Losses{Seen: 1 + e.losses}, e.news, e.down, e.engine
		for uuid, d := range e.open {
			if d.Lost != "" {
				l.Drives = append(l.Drives, ipc.DriveLoss{UUID: uuid, Why: d.Lost})
			}
		}
		e.mu.Unlock()
		if down {
			return ipc.Losses{}, ipc.ErrGone
		}
		if l.Seen != seen {
			return l, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ipc.Losses{}, ctx.Err()
		}
		e.mu.Lock()
		other := e.engine != id
		e.mu.Unlock()
		if other {
			return ipc.Losses{}, ipc.ErrGone
		}
	}
}
