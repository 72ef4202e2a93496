package engine

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"vacate/internal/blk"
	"vacate/internal/drive"
	"vacate/internal/export/nbd"
	"vacate/internal/extent"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/plant"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// Take-over (law L8). An engine may have died within any step. Its successor
// reads from the lease table how far each lease had come, and goes on or back:
//
//	empty    a key that is there all the same is destroyed
//	opening  nobody was told of it: key destroyed, map given back, slot empty
//	open     taken over with its map, its socket and the connections that were
//	         passed; served when its drives are open (serve.go)
//	closing  the key is destroyed now; then as erased
//	erased   holds its space until this engine has held the fences of its drives:
//	         I/O of its predecessors may be in flight until then
//	ended    how it ended is remembered; the slot is free
//
// What lies in memory is taken as it is: nothing is read but the slots, and no
// work depends on the size of a volume.
//
// What this engine did not observe of a close stands in the record. Where a
// predecessor died before it could note that the gate was shut, its death shut
// it: the time of the take-over is reported, by which that was so for certain.

// TakeOver carries on what is in the volatile memory. It comes once, before any
// call of control's. An error is the keeper's: nothing can be served without it.
func (e *Engine) TakeOver() error {
	e.takeDrives() // fences are waited for while the slots are read
	found, err := e.takeSlots()
	if err != nil {
		return err
	}
	e.rememberEnded(found.ended)
	e.at(fail.EngineScanned)
	scanned := time.Since(e.started)
	if err := e.keeper.Up(); err != nil {
		return err
	}
	e.at(fail.EngineUp)
	close(e.up)
	if found.leases > 0 {
		e.cfg.Log.Info("took leases over", "leases", found.leases, "generation", e.cfg.Generation,
			"scanned", scanned, "up", time.Since(e.started))
	}
	return nil
}

// A census is what a take-over found.
type census struct {
	leases int
	ended  []volatile.Record
}

// scanners is how many slots are taken over at once: a lease takes three questions
// to the keeper, and their answers are on their way for longer than they take.
const scanners = 8

// takeSlots reads all slots and does what the table above says.
func (e *Engine) takeSlots() (found census, err error) {
	work := make(chan func() error)
	failed := make(chan error, scanners)
	for range scanners {
		go func() {
			var errs []error
			for do := range work {
				errs = append(errs, do())
			}
			failed <- errors.Join(errs...)
		}()
	}
	for slot := range volatile.Slots {
		rec, err := e.table.Get(slot)
		do := e.slotWork(slot, rec, &found)
		switch {
		case errors.Is(err, volatile.ErrFormat): // whole, and a newer engine's: it is not for this one to take over, nor to destroy
			do = func() error { return err }
		case err != nil:
			do = func() error { return e.lose(slot, "", err) }
		}
		if do == nil {
			continue
		}
		work <- func() error {
			if err := do(); err != nil {
				return fmt.Errorf("taking over slot %d: %w", slot, err)
			}
			return nil
		}
	}
	close(work)
	for range scanners {
		err = errors.Join(err, <-failed)
	}
	return found, err
}

// slotWork returns what is to be done about a slot, and nil for nothing.
func (e *Engine) slotWork(slot int, rec volatile.Record, found *census) func() error {
	switch rec.State {
	case volatile.StateEmpty:
		if e.keys.Empty(slot) {
			return nil
		}
		return func() error { return e.lose(slot, "", errors.New("a key without a lease")) }
	case volatile.StateOpening:
		return func() error { return e.giveBack(slot) }
	case volatile.StateEnded:
		found.ended = append(found.ended, rec)
		return nil
	}
	found.leases++
	return func() error { return e.inherit(slot, rec) }
}

// giveBack empties a slot of which nobody was told.
func (e *Engine) giveBack(slot int) error {
	if _, err := e.keeper.Wipe(slot); err != nil {
		return err
	}
	if err := e.keeper.Unmap(slot); err != nil {
		return err
	}
	return e.table.Put(slot, volatile.Record{})
}

// lose gives up what cannot be taken over: no crash causes that. Control finds
// that the lease is gone, and records it as lost. A host that is short of memory
// or descriptors is no damage: the next engine tries again.
func (e *Engine) lose(slot int, id string, why error) error {
	for _, passing := range []error{volatile.ErrLink, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE, syscall.EAGAIN} {
		if errors.Is(why, passing) {
			return why
		}
	}
	e.mu.Lock()
	e.cfg.Hello.Emptied = e.cfg.Generation // what earlier ones had may be gone
	e.mu.Unlock()
	e.cfg.Log.Error("the volatile memory is damaged: what a slot holds is destroyed", "slot", slot, "lease_id", id, "error", why)
	err := e.giveBack(slot)
	if errors.Is(err, volatile.ErrDamaged) {
		return nil // its record, which no opening will get past
	}
	return err
}

// inherit takes over a lease that is open, closing or erased.
func (e *Engine) inherit(slot int, rec volatile.Record) error {
	t := &tenancy{
		id: rec.Lease.String(), slot: slot, size: int64(rec.SizeBytes), rec: rec, gone: make(chan struct{}), fenced: make(chan struct{}),
		missing: map[string]bool{}, stopCounting: func() {},
	}
	t.shut = ipc.Erasure{GateClosedNs: rec.GateClosedNs, CiphersDoneNs: rec.CiphersDoneNs}
	if rec.State == volatile.StateClosing {
		if err := e.wipeClosing(t); err != nil {
			return err
		}
	}
	err := e.takeMap(t)
	switch {
	case errors.Is(err, syscall.ENOENT) && t.rec.State == volatile.StateErased:
		return e.noteEnded(t) // the map goes when a lease has drained
	case err == nil && rec.State == volatile.StateOpen:
		err = e.takeSockets(t)
	}
	if err != nil {
		return e.lose(slot, t.id, errors.Join(err, t.closeMap()))
	}
	if t.rec.State == volatile.StateErased {
		// ReadBack: the state is written when the key has read back as zeros, not before.
		t.shut.KeyDestroyedNs, t.shut.ReadBack = t.rec.KeyDestroyedNs, true
		er := t.shut
		t.erasure = &er
	}
	if !e.enter(t) {
		return e.lose(slot, t.id, errors.Join(errors.New("another slot holds the same lease"), t.closeMap()))
	}
	if t.erasure != nil {
		go e.finish(t)
	}
	return nil
}

// wipeClosing ends what a predecessor had begun: its gate and its ciphers are
// gone with it. A key that cannot be destroyed stays closing, for control to try
// again.
func (e *Engine) wipeClosing(t *tenancy) error {
	now := sys.BoottimeNs()
	t.shut.GateClosedNs = cmp.Or(t.shut.GateClosedNs, now)
	t.shut.CiphersDoneNs = cmp.Or(t.shut.CiphersDoneNs, now)
	t.rec.GateClosedNs, t.rec.CiphersDoneNs = t.shut.GateClosedNs, t.shut.CiphersDoneNs
	w, err := e.destroy(t)
	if errors.Is(err, volatile.ErrLink) {
		return err
	}
	if err != nil {
		e.cfg.Log.Error("taking over a lease that was being closed", "lease_id", t.id, "error", err)
		return nil
	}
	t.rec.KeyDestroyedNs = w.DoneNs
	return e.note(t, volatile.StateErased)
}

// takeMap fetches the map of t, and learns from it where t lies.
func (e *Engine) takeMap(t *tenancy) error {
	f, err := e.keeper.FetchMap(t.slot)
	if err != nil {
		return err
	}
	if t.bits, err = volatile.OpenMap(f); err != nil {
		return err
	}
	if t.bits.Lease() != t.rec.Lease || t.bits.Blocks()*blk.BlockSize < t.rec.SizeBytes {
		return fmt.Errorf("the map is of %d blocks of lease %v: %w", t.bits.Blocks(), t.bits.Lease(), volatile.ErrDamaged)
	}
	extents, err := t.bits.Extents()
	if err != nil {
		return err
	}
	t.pieces = toPieces(extents)
	if t.bits.Blocks()*blk.BlockSize > t.rec.SizeBytes {
		return e.mend(t)
	}
	return nil
}

// takeSockets fetches what the lease's clients reach it by.
func (e *Engine) takeSockets(t *tenancy) error {
	if e.keys.Empty(t.slot) {
		return fmt.Errorf("an open lease without a key: %w", volatile.ErrDamaged)
	}
	on, err := e.fetchSockets(t)
	if err != nil {
		return err
	}
	t.waits = &inheritance{on: on}
	for n := 0; ; n++ {
		f, terms, err := e.keeper.FetchConn(t.slot, n)
		if err != nil {
			t.disinherit()
			return err
		}
		if f == nil {
			return nil
		}
		t.waits.conns = append(t.waits.conns, nbd.Passed{File: f, Terms: terms})
	}
}

// enter makes t one of this engine's leases. It reports false for a lease that
// is one already.
func (e *Engine) enter(t *tenancy) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.leases[t.id] != nil {
		t.disinherit()
		return false
	}
	e.leases[t.id], e.ready[t.id] = t, t
	for _, p := range t.pieces {
		if d := e.drives[p.Drive]; d == nil || d.drive == nil {
			t.missing[p.Drive] = true
		}
	}
	if t.rec.State == volatile.StateErased && plant.Is(plant.TakeoverDrained) {
		clear(t.missing)
	}
	if len(t.missing) == 0 {
		e.comeBack(t)
	}
	return true
}

// noteEnded is for an erased lease that had drained when its engine died.
func (e *Engine) noteEnded(t *tenancy) error {
	if err := e.note(t, volatile.StateEnded); err != nil {
		return err
	}
	e.rememberEnded([]volatile.Record{t.rec})
	return nil
}

// rememberEnded rebuilds the endings of predecessors, oldest first.
func (e *Engine) rememberEnded(recs []volatile.Record) {
	slices.SortStableFunc(recs, func(a, b volatile.Record) int { return cmp.Compare(a.KeyDestroyedNs, b.KeyDestroyedNs) })
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range recs {
		e.ended.add(r.Lease.String(), ipc.Erasure{
			GateClosedNs: r.GateClosedNs, CiphersDoneNs: r.CiphersDoneNs, KeyDestroyedNs: r.KeyDestroyedNs, ReadBack: true,
		})
	}
}

func toExtents(pieces []extent.Piece) ([]volatile.Extent, error) {
	xs := make([]volatile.Extent, len(pieces))
	for i, p := range pieces {
		id, err := drive.ParseID(p.Drive)
		if err != nil {
			return nil, err
		}
		xs[i] = volatile.Extent{Drive: id, First: p.First, Count: p.Count}
	}
	return xs, nil
}

func toPieces(xs []volatile.Extent) []extent.Piece {
	pieces := make([]extent.Piece, len(xs))
	for i, x := range xs {
		pieces[i] = extent.Piece{Drive: drive.ID(x.Drive).String(), Range: extent.Range{First: x.First, Count: x.Count}}
	}
	return pieces
}

// An inheritance is what a lease that was taken over is served by, once its path
// is there.
type inheritance struct {
	on    sockets
	conns []nbd.Passed
}

// disinherit closes what is left of it: clients see their connections end.
//
// REQUIRES: t.mu is held, or t is not known yet.
func (t *tenancy) disinherit() {
	if t.waits == nil {
		return
	}
	t.waits.on.close()
	for _, c := range t.waits.conns {
		c.File.Close() //nolint:errcheck // a connection that is given up
	}
	t.waits = nil
}
