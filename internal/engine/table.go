package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"vacate/internal/drive"
	"vacate/internal/fail"
	"vacate/internal/volatile"
)

// The drive table names the drives that this engine has open, so that the next
// one can open them without being told.
//
//	T1: a record is written before the superblocks get the epoch that it names,
//	    and cleared before the fence is given up.
//	T2: a drive with a record is open, or the engine looks for it: for as long as
//	    it takes, since leases may wait for it. A call of control's about such a
//	    drive has precedence, and may bring another path.

// A search opens a drive of the table. It gives way to calls of control's.
type search struct {
	cancel context.CancelFunc // ends the attempt that is under way, as soon as that can be
	ended  chan struct{}
}

// Pauses of a search, between attempts that failed for another reason than the
// fence, which is waited for in one attempt.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 2 * time.Second
)

// forever is longer than any fence is held.
const forever = time.Duration(math.MaxInt64)

// takeDrives reads the drive table and looks for all that is in it.
func (e *Engine) takeDrives() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.places {
		rec, err := e.table.GetDrive(i)
		if err != nil {
			// Its leases wait until control opens it.
			e.cfg.Log.Error("reading the drive table", "slot", i, "error", err)
			e.places[i] = true
			continue
		}
		if rec == (volatile.DriveRecord{}) {
			continue
		}
		e.places[i] = true
		uuid := drive.ID(rec.UUID).String()
		d := &openDrive{place: i, rec: rec}
		e.drives[uuid] = d
		e.look(uuid, d)
	}
}

// look starts the search for a drive. REQUIRES: e.mu is held; d has a record, is
// not open and not busy.
func (e *Engine) look(uuid string, d *openDrive) {
	ctx, cancel := context.WithCancel(e.ctx)
	s := &search{cancel: cancel, ended: make(chan struct{})}
	d.busy, d.search = true, s
	rec := d.rec
	e.searching.Go(func() {
		opened := e.find(ctx, d, rec)
		if opened != nil {
			e.at(fail.EngineFenced)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		d.search = nil
		close(s.ended)
		e.settle(uuid, d, opened)
	})
}

// find opens the drive of a record. It returns nil when ctx has ended. REQUIRES: d
// is the caller's.
func (e *Engine) find(ctx context.Context, d *openDrive, rec volatile.DriveRecord) *drive.Drive {
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		opened, err := e.lookFor(ctx, d, rec)
		if err == nil {
			e.cfg.Log.Info("taking over: a fence is held", "drive", rec.Path, "after", time.Since(e.started), "fence_waited", opened.Info().FenceWaited, "fence_refused", opened.Info().FenceRefused)
			return opened
		}
		err = barred(e.cfg.Sandbox, rec.Path, err)
		if ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			e.cfg.Log.Error("a drive of open leases cannot be opened, their requests wait: bring it back, or close them; it is tried again", "drive", rec.Path, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// reserveDrive marks a drive as busy, a new one if need be. A search gives way:
// that is waited for, until ctx ends.
func (e *Engine) reserveDrive(ctx context.Context, uuid string) (*openDrive, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		d := e.drives[uuid]
		if d == nil {
			d = &openDrive{place: -1}
			e.drives[uuid] = d
		}
		if !d.busy {
			d.busy = true
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

// interrupt ends the search for d, and waits for that without e.mu.
//
// REQUIRES: e.mu is held, and d is being searched for.
func (e *Engine) interrupt(ctx context.Context, uuid string, d *openDrive) error {
	s := d.search
	s.cancel()
	d.waiting++
	e.mu.Unlock()
	var err error
	select {
	case <-s.ended:
	case <-ctx.Done():
		err = fmt.Errorf("waiting for drive %s, which this engine takes over: %w", uuid, ctx.Err())
	}
	e.mu.Lock()
	if d.waiting--; err != nil && !d.busy {
		e.settle(uuid, d, d.drive) // nobody else goes on
	}
	return err
}

// settleDrive ends what reserveDrive began, and returns the number of the opening.
func (e *Engine) settleDrive(uuid string, d *openDrive, now *drive.Drive) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.settle(uuid, d, now)
	return d.opening
}

// settle makes d what it is now: an open drive, of which its leases are told; or
// one that somebody waits for, or that is looked for (T2); or forgotten.
//
// REQUIRES: e.mu is held, and d is the caller's.
func (e *Engine) settle(uuid string, d *openDrive, now *drive.Drive) {
	news := d.drive == nil && now != nil
	d.busy, d.closing, d.drive = false, false, now
	switch {
	case news:
		e.opened++
		d.opening = e.opened
		e.watchFor(uuid, now)
		e.hasFence(uuid)
	case now != nil, d.waiting > 0, e.ctx.Err() != nil:
	case d.place >= 0:
		e.look(uuid, d)
	default:
		delete(e.drives, uuid)
	}
}

// record writes the record of a drive; the zero record clears it.
//
// REQUIRES: d is the caller's.
func (e *Engine) record(d *openDrive, rec volatile.DriveRecord) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	empty := rec == volatile.DriveRecord{}
	if d.place < 0 {
		if empty {
			return nil
		}
		if d.place = e.freePlace(); d.place < 0 {
			return busy("this engine has %d drives open, and cannot tell its successor of more: close one of them first", volatile.DriveSlots)
		}
	}
	if err := e.table.PutDrive(d.place, rec); err != nil {
		if d.rec == (volatile.DriveRecord{}) { // its place holds nothing, or is damaged
			e.places[d.place] = errors.Is(err, volatile.ErrDamaged)
			d.place = -1
		}
		return fmt.Errorf("noting drive %s in the drive table: %w", rec.Path, err)
	}
	d.rec = rec
	if empty {
		e.places[d.place] = false
		d.place = -1
	}
	return nil
}

// freePlace takes a place in the drive table, or returns -1.
//
// REQUIRES: e.mu is held.
func (e *Engine) freePlace() int {
	for i, taken := range e.places {
		if !taken {
			e.places[i] = true
			return i
		}
	}
	return -1
}
