package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vacate/internal/drive"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// Calls about drives wait for devices, which may hang. They are carried out
// apart from the call, so that a control that gives up or dies is not held up;
// what is under way then goes on, and its drive is busy until it ends.

// inspect looks at what lies at a path.
func (e *Engine) inspect(ctx context.Context, req *ipc.InspectRequest) (*ipc.Inspection, error) {
	return apart(ctx, func() (*ipc.Inspection, error) {
		ins, err := drive.Inspect(req.Path)
		if err != nil {
			err = refused(barred(e.cfg.Sandbox, req.Path, err))
			if re := (*ipc.RemoteError)(nil); errors.As(err, &re) {
				return nil, err
			}
			return nil, invalid("%v", err)
		}
		return &ipc.Inspection{Drive: driveInfo(ins.Info), Findings: findings(ins.Findings)}, nil
	})
}

// enroll makes a drive one of this node's. It does not open it.
func (e *Engine) enroll(ctx context.Context, req *ipc.EnrollRequest) (*ipc.DriveInfo, error) {
	node, uuid, err := ids(req.Node, req.UUID)
	if err != nil {
		return nil, err
	}
	return apart(ctx, func() (*ipc.DriveInfo, error) {
		info, err := drive.Enroll(req.Path, drive.EnrollOptions{
			Node: node, UUID: uuid, Epoch: req.Epoch, Force: req.Force, Confirm: req.Confirm,
		})
		if err != nil {
			return nil, coded(refused(barred(e.cfg.Sandbox, req.Path, err)))
		}
		answer := driveInfo(info)
		return &answer, nil
	})
}

// openDrive takes a drive's fence and opens it, or brings the epoch of one that
// this engine has open up to date.
func (e *Engine) openDrive(ctx context.Context, req *ipc.DriveOpenRequest) (*ipc.DriveInfo, error) {
	node, uuid, err := ids(req.Node, req.UUID)
	if err != nil {
		return nil, err
	}
	if len(req.Path) > volatile.MaxDrivePath {
		return nil, invalid("drive %s: its path has %d bytes, and the engine can tell its successor of %d: give it a shorter one, as a symbolic link",
			uuid, len(req.Path), volatile.MaxDrivePath)
	}
	d, err := e.reserveDrive(ctx, uuid.String())
	if err != nil {
		return nil, err
	}
	return apart(ctx, func() (*ipc.DriveInfo, error) {
		opened, err := e.openRecorded(d, req.Path, drive.OpenOptions{
			Node: node, UUID: uuid, Epoch: req.Epoch, NewEpoch: req.NewEpoch, ForceForward: req.ForceForward,
			Engine: e.cfg.Drives, FenceWait: e.cfg.FenceWait,
		})
		opening := e.settleDrive(uuid.String(), d, opened)
		if err != nil {
			return nil, coded(barred(e.cfg.Sandbox, req.Path, err))
		}
		info := driveInfo(opened.Info())
		info.Epoch, info.Opening = req.NewEpoch, opening // Info is of when it was opened first
		return &info, nil
	})
}

// openRecorded writes the record of d, and opens or renews it. It returns the
// drive if it is open, whatever the error. REQUIRES: d is the caller's.
func (e *Engine) openRecorded(d *openDrive, path string, o drive.OpenOptions) (*drive.Drive, error) {
	opened, before := d.drive, d.rec
	if opened != nil {
		if why := opened.Loss(); why != "" {
			return opened, errLost(why) // its epoch stays as it is: the drive may have gone
		}
		path = opened.Info().Path // where it was found; the call's may lead elsewhere by now
	}
	rec := volatile.DriveRecord{UUID: o.UUID, Node: o.Node, Epoch: o.NewEpoch, ForceForward: o.ForceForward, Path: path, Watched: before.Watched}
	if err := e.record(d, rec); err != nil {
		return opened, err
	}
	e.at(fail.DriveNoted)
	var err error
	if opened != nil {
		err = opened.Renew(o)
	} else {
		o.Watched = before.Watched
		// Control may give up: what is under way goes on.
		opened, err = drive.Open(context.WithoutCancel(e.ctx), path, o)
		if err == nil {
			info := opened.Info()
			e.cfg.Log.Info("opening a drive: its fence is held", "drive", path, "fence_waited", info.FenceWaited, "fence_refused", info.FenceRefused)
			if err = e.noteWatched(d, opened); err != nil {
				opened = nil
			}
		}
	}
	if err == nil {
		if why := opened.Loss(); why != "" {
			err = errLost(why)
		}
		return opened, err
	}
	if !untouched(err) && before != (volatile.DriveRecord{}) && before.Epoch+1 == rec.Epoch {
		before.Epoch = rec.Epoch // a superblock may have it; one that has not is one behind, and that may be
	}
	return opened, errors.Join(err, e.record(d, before))
}

// closeDrive gives up a drive that no lease uses, or no longer looks for it.
// Closing a file may wait for what lies below it (close(2) on FUSE and NFS).
func (e *Engine) closeDrive(ctx context.Context, req *ipc.DriveCloseRequest) (*ipc.Empty, error) {
	d, err := e.reserveUnused(ctx, req.UUID)
	if err != nil {
		return nil, err
	}
	return apart(ctx, func() (*ipc.Empty, error) {
		still, before := d.drive, d.rec
		err := e.record(d, volatile.DriveRecord{})
		if err == nil && still != nil {
			if err = still.Close(); !errors.Is(err, drive.ErrQueues) {
				still = nil
			} else if again := e.record(d, before); again != nil {
				err = errors.Join(err, again)
			}
		}
		e.settleDrive(req.UUID, d, still)
		if err != nil {
			return nil, err
		}
		return &ipc.Empty{}, nil
	})
}

// reserveUnused marks a drive without leases as closing: none is admitted to it
// any more.
func (e *Engine) reserveUnused(ctx context.Context, uuid string) (*openDrive, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		d := e.drives[uuid]
		if d == nil || d.drive == nil && (d.place < 0 || d.busy && d.search == nil) {
			return nil, notFound("drive %s is not open", uuid)
		}
		for _, t := range e.leases {
			for _, p := range t.pieces {
				if p.Drive == uuid {
					return nil, busy("drive %s is used by lease %s", uuid, t.id)
				}
			}
		}
		if !d.busy {
			d.busy, d.closing = true, true
			return d, nil
		}
		if d.search == nil {
			return nil, busy("drive %s is being opened or closed: try again when that has ended", uuid)
		}
		if err := e.interrupt(ctx, uuid, d); err != nil {
			return nil, err
		}
	}
}

// rooms are the drives that leases may be placed on. REQUIRES: e.mu is held.
func (e *Engine) rooms() map[string]room {
	rooms := make(map[string]room, len(e.drives))
	for uuid, d := range e.drives {
		if d.drive != nil && !d.closing {
			info := d.drive.Info()
			rooms[uuid] = room{device: d.drive, extentBytes: info.ExtentSize, extents: info.Extents}
		}
	}
	return rooms
}

func (e *Engine) openDrives() map[string]*drive.Drive {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make(map[string]*drive.Drive, len(e.drives))
	for uuid, d := range e.drives {
		if d.drive != nil {
			all[uuid] = d.drive
		}
	}
	return all
}

// apart runs fn on a goroutine of its own and waits for it, or for ctx.
func apart[T any](ctx context.Context, fn func() (*T, error)) (*T, error) {
	type result struct {
		v   *T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := fn()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a drive: %w", ctx.Err())
	}
}

// coded gives the errors of enrolling and opening the code that control branches
// on.
func coded(err error) error {
	if re := (*ipc.RemoteError)(nil); errors.As(err, &re) {
		return err
	}
	return &ipc.RemoteError{Code: code(err), Text: err.Error()}
}

func code(err error) string {
	switch {
	case errors.Is(err, drive.ErrRefused):
		return ipc.CodeRefused
	case errors.Is(err, drive.ErrFenced):
		return ipc.CodeBusy
	case errors.Is(err, drive.ErrEpoch), errors.Is(err, drive.ErrForeign),
		errors.Is(err, drive.ErrDamaged), errors.Is(err, drive.ErrNotEnrolled), errors.Is(err, drive.ErrShrunk):
		return ipc.CodeMismatch
	case errors.Is(err, fs.ErrNotExist): // nothing is at its path
		return ipc.CodeNotFound
	}
	return ipc.CodeInternal
}

// untouched reports that the error of opening a drive came before anything was
// written to it.
func untouched(err error) bool {
	return code(err) != ipc.CodeInternal || errors.Is(err, fs.ErrPermission)
}

func ids(node, uuid string) (n, u drive.ID, err error) {
	n, err1 := drive.ParseID(node)
	u, err2 := drive.ParseID(uuid)
	if err := errors.Join(err1, err2); err != nil {
		return n, u, invalid("%v", err)
	}
	return n, u, nil
}

func driveInfo(i drive.Info) ipc.DriveInfo {
	info := ipc.DriveInfo{
		Path: i.Path, Kind: i.Kind, Model: i.Model, Serial: i.Serial, Engine: i.Engine, EngineWhy: i.EngineWhy, Direct: i.Direct,
		Flush: string(i.Flush), FlushWhy: i.FlushWhy, SizeBytes: i.Size,
		LogicalBlock: i.LogicalBlock, PhysicalBlock: i.PhysicalBlock,
		DataOffset: i.DataOffset, ExtentBytes: i.ExtentSize, Extents: i.Extents, Epoch: i.Epoch, Repaired: i.Repaired,
	}
	if i.UUID != (drive.ID{}) {
		info.UUID = i.UUID.String()
	}
	return info
}

func findings(in []drive.Finding) []ipc.Finding {
	out := make([]ipc.Finding, 0, len(in))
	for _, f := range in {
		out = append(out, ipc.Finding{Code: f.Code, Text: f.Text, Refuse: f.Refuse, Force: f.Force})
	}
	return out
}
