package engine

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"vacate/internal/drive"
	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// A drive whose flushes are skipped may lose what it has completed (package drive,
// watch.go).
//
//  1. What identifies the drive is noted in its record before a lease uses it, so
//     that the next engine looks whether it is still the same.
//  2. The drive, once it has seen the loss, fails every request.
//  3. Control is told by the call that waits for losses, and by any attempt to open
//     the drive again. It closes the leases, and then the drive.
//  4. Then the drive can be opened anew, and starts from what it is then.
//
// Nothing here ends a lease: that is control's, and until it does the lease's
// requests fail.

// losses counts the drives that were found lost, from a number on that no engine
// before this one has reached.
type losses struct {
	seen uint64
	news chan struct{} // closed and replaced with each
}

// errLost answers who wants to open a drive that is open and lost.
func errLost(why string) error {
	return &ipc.RemoteError{Code: ipc.CodeLost, Text: "completed writes may be lost: " + why}
}

// noteWatched writes into the record of d what is watched of the drive that was
// opened. If that cannot be, the drive is closed again. REQUIRES: d is the
// caller's, and has a record; nobody uses opened yet.
func (e *Engine) noteWatched(d *openDrive, opened *drive.Drive) error {
	rec := d.rec
	if rec.Watched = opened.Watched(); rec == d.rec {
		return nil
	}
	if err := e.record(d, rec); err != nil {
		return errors.Join(err, opened.Close())
	}
	return nil
}

// watchFor waits for the loss of a drive. REQUIRES: e.mu is held.
func (e *Engine) watchFor(uuid string, d *drive.Drive) {
	if e.ctx.Err() != nil || d.Watched() == (drive.Watched{}) {
		return
	}
	e.watching.Go(func() {
		why := d.AwaitLoss(e.ctx)
		if why == "" {
			return
		}
		e.cfg.Log.Error("a drive may have lost completed writes: requests to it fail, and its leases are to be closed",
			"drive", d.Info().Path, "uuid", uuid, "error", why)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.losses.seen++
		close(e.losses.news)
		e.losses.news = make(chan struct{})
	})
}

// awaitLosses returns the drives that are lost when there are others than when seen
// was said.
func (e *Engine) awaitLosses(ctx context.Context, seen uint64) (*ipc.Losses, error) {
	for {
		e.mu.Lock()
		now, news := e.losses.seen, e.losses.news
		lost := []ipc.DriveLoss{}
		for uuid, d := range e.drives {
			if d.drive != nil && d.drive.Loss() != "" {
				lost = append(lost, ipc.DriveLoss{UUID: uuid, Opening: d.opening, Why: d.drive.Loss()})
			}
		}
		e.mu.Unlock()
		if now != seen {
			slices.SortFunc(lost, func(a, b ipc.DriveLoss) int { return cmp.Compare(a.UUID, b.UUID) })
			return &ipc.Losses{Seen: now, Drives: lost}, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-e.ctx.Done():
			return nil, busy("this engine is leaving")
		}
	}
}

// lookFor opens a drive of the table and notes what is watched of it.
func (e *Engine) lookFor(ctx context.Context, d *openDrive, rec volatile.DriveRecord) (*drive.Drive, error) {
	opened, err := drive.Open(ctx, rec.Path, drive.OpenOptions{
		Node: rec.Node, UUID: rec.UUID, Epoch: rec.Epoch, NewEpoch: rec.Epoch,
		ForceForward: rec.ForceForward, Engine: e.cfg.Drives, Watched: rec.Watched, FenceWait: forever,
	})
	if err != nil {
		return nil, err
	}
	if err := e.noteWatched(d, opened); err != nil {
		return nil, err
	}
	return opened, nil
}
