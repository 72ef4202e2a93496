package engine

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/drive"
	"vacate/internal/extent"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/volatile"
	"vacate/internal/volume"
	"vacate/internal/xts"
)

// A tenancy is a lease that this engine holds: one that it opened, or one that
// it took over (takeover.go). The latter has no path until its drives are open.
type tenancy struct {
	id     string
	slot   int
	size   int64          // bytes; under Engine.mu, as pieces are
	pieces []extent.Piece //
	bits   *volatile.Map
	gone   chan struct{} // closed when the slot is free (close.go)

	fenced  chan struct{}   // closed when this engine has held the fences of all its drives
	missing map[string]bool // drives whose fences are not held yet; under Engine.mu

	mu      sync.Mutex      // held through steps 1 to 4 of a close; never together with Engine.mu
	path    *path           // nil: nothing of this lease is served
	server  *exports        // nil likewise, and while the path's exports start
	device  blockDevice     // nil: it has no block device that this engine serves (device.go)
	waits   *inheritance    // nil: nothing waits for the path
	rec     volatile.Record // as it stands in the lease table
	shut    ipc.Erasure     // when steps 1 and 2 of a close were done, by the first that came
	erasure *ipc.Erasure    // nil until step 3 has succeeded
	serving bool            // lease.serve is under way (hold.go); under mu, as failed is
	failed  bool            // it did not succeed

	stopCounting func()         // of the blocks that are written (serve.go), or of a resize
	counting     sync.WaitGroup // what uses the map, beside server

	resizing atomic.Bool  // somebody does (resize.go)
	parting  bool         // and brings its path to rest, which nothing is to slow down; under mu
	past     volume.Stats // of paths before this one; under mu

	pastGuest ipc.LeaseStats // of their exports, what count adds; under mu
}

// openLease makes volatile memory, key and layers of a lease, and its exports, unless
// they are to be held (hold.go). Where that fails, everything is taken back. An
// engine that dies on the way leaves a slot that says opening, which the next one
// takes back.
func (e *Engine) openLease(req *ipc.LeaseOpenRequest, listeners []*os.File) (*ipc.LeaseOpened, error) {
	err := checkLease(req, listeners)
	if err == nil && req.Exports.VhostUser {
		err = e.upgraded()
	}
	if err != nil {
		return nil, err
	}
	lease, err := volatile.ParseLeaseID(req.Lease)
	if err != nil {
		return nil, invalid("%v", err)
	}
	t := &tenancy{
		id: req.Lease, slot: req.Slot, size: req.SizeBytes, pieces: req.Pieces,
		gone: make(chan struct{}), fenced: make(chan struct{}), stopCounting: func() {},
		rec: volatile.Record{
			Lease: lease, LogicalBlock: uint32(req.LogicalBlock),
			SizeBytes: uint64(req.SizeBytes), MapBytes: uint64(volatile.MapBytes(uint64(req.SizeBytes)/blk.BlockSize, len(req.Pieces))),
			UID: req.UID, Limits: toRecord(req.Limits), Exports: toExports(req.Exports),
		},
	}
	close(t.fenced) // its drives are open
	space, err := e.admit(t, req)
	if err != nil {
		return nil, err
	}
	opened, err := e.furnish(t, req, space, sortSockets(req.Exports, listeners))
	if err != nil {
		e.forget(t)
		return nil, fmt.Errorf("opening lease %s: %w", req.Lease, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ready[t.id] = t
	return opened, nil
}

// upgraded says whether the keeper holds what leases are made of today. Until an upgrade
// is done, it may be an older program.
func (e *Engine) upgraded() error {
	err := e.keeper.Knows(volatile.Layout)
	if errors.Is(err, volatile.ErrVersion) {
		return busy("an upgrade is under way: %v", err)
	}
	return err
}

// furnish makes everything of t, or nothing.
func (e *Engine) furnish(t *tenancy, req *ipc.LeaseOpenRequest, space []drive.SpanPiece, on sockets) (*ipc.LeaseOpened, error) {
	before, err := e.table.Get(t.slot)
	if err != nil {
		return nil, err
	}
	opened, err := e.make(t, req, space, on)
	if err == nil && !req.Hold {
		err = e.serveNow(t, on)
	}
	if err == nil {
		return opened, nil
	}
	return nil, e.unmake(t, before, err)
}

// unmake takes back what there is of t, for which there was an error, and returns
// that.
func (e *Engine) unmake(t *tenancy, before volatile.Record, err error) error {
	// In the reverse order, and no further than it goes: whatever stays, the slot
	// says so to the next engine.
	if t.rec.State == volatile.StateOpen {
		if again := e.note(t, volatile.StateOpening); again != nil {
			return errors.Join(err, again)
		}
	}
	if _, again := e.destroy(t); again != nil {
		return errors.Join(err, again, t.closeMap())
	}
	if again := e.dropMap(t); again != nil {
		return errors.Join(err, again)
	}
	if again := e.table.Put(t.slot, before); again != nil { // how the last lease of this slot ended
		return errors.Join(err, again)
	}
	return err
}

// make takes the steps of an opening up to where t can be served.
func (e *Engine) make(t *tenancy, req *ipc.LeaseOpenRequest, space []drive.SpanPiece, on sockets) (*ipc.LeaseOpened, error) {
	if err := e.note(t, volatile.StateOpening); err != nil {
		return nil, err
	}
	if err := e.newMap(t); err != nil {
		return nil, err
	}
	e.at(fail.OpenMapped)
	opened, err := e.newKey(t, req.Share)
	if err != nil {
		return nil, err
	}
	e.at(fail.OpenKeyed)
	if t.path, err = e.build(t, space, e.schedule(t)); err != nil {
		return nil, err
	}
	if err := e.hold(t, on); err != nil {
		return nil, err
	}
	e.at(fail.OpenHeld)
	return opened, nil
}

// serveNow takes the last steps, of a lease that is not held.
func (e *Engine) serveNow(t *tenancy, on sockets) (err error) {
	if err := e.note(t, volatile.StateOpen); err != nil {
		return err
	}
	e.at(fail.OpenWritten)
	// Last: what fails from here on may have a client's requests in flight.
	t.server, err = e.export(t, t.path, t.rec, on)
	if err != nil && t.server != nil {
		t.path.volume.Shut()
		t.path.cipher.Revoke()
		t.server.Close()
		t.server.Wait()
		<-t.path.volume.Drained()
	}
	return err
}

// note writes the record of t with a new state. REQUIRES: t.mu is held, or t is
// not known yet.
func (e *Engine) note(t *tenancy, s volatile.State) error {
	rec := t.rec
	rec.State, rec.Generation = s, e.cfg.Generation
	if err := e.table.Put(t.slot, rec); err != nil {
		return fmt.Errorf("noting that lease %s is %v: %w", t.id, s, err)
	}
	t.rec = rec
	return nil
}

// build stacks the layers of t.
func (e *Engine) build(t *tenancy, space []drive.SpanPiece, sched *xts.Schedule) (*path, error) {
	return build(layers{
		size: int64(t.rec.SizeBytes), logical: int(t.rec.LogicalBlock), limits: toVolume(t.rec.Limits), space: space, key: sched, lock: e.cfg.Lock,
		bits: blockmap.Bits{Words: t.bits.Words(), Summary: t.bits.Summary(), Blocks: t.bits.Blocks()},
	})
}

func checkLease(req *ipc.LeaseOpenRequest, listeners []*os.File) error {
	switch {
	case req.Slot < 0 || req.Slot >= volatile.Slots:
		return invalid("lease %s: slot %d, there are %d", req.Lease, req.Slot, volatile.Slots)
	case req.SizeBytes <= 0 || req.SizeBytes%blk.BlockSize != 0 || req.SizeBytes > blk.MaxVolume:
		return invalid("lease %s: size %d is not a multiple of %d up to 2^62", req.Lease, req.SizeBytes, blk.BlockSize)
	case req.LogicalBlock != 512 && req.LogicalBlock != 4096:
		return invalid("lease %s: logical blocks of %d bytes, want 512 or 4096", req.Lease, req.LogicalBlock)
	case req.Limits.Check() != nil:
		return invalid("lease %s: %v", req.Lease, req.Limits.Check())
	case len(req.Pieces) > volatile.MaxExtents:
		return invalid("lease %s: %d pieces, at most %d can be remembered: free larger runs of extents first", req.Lease, len(req.Pieces), volatile.MaxExtents)
	}
	return checkExports(req, listeners)
}

// admit reserves id, slot and space of t in this engine: whatever control
// believes, no extent is ever held by two leases here.
func (e *Engine) admit(t *tenancy, req *ipc.LeaseOpenRequest) ([]drive.SpanPiece, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, other := range e.leases {
		if other.id == t.id {
			return nil, busy("lease %s is open already", t.id)
		}
		if other.slot == t.slot {
			return nil, busy("lease %s: slot %d still holds lease %s", t.id, t.slot, other.id)
		}
		if what, both := overlap(t.pieces, other.pieces); both {
			return nil, busy("lease %s: %s are still held by lease %s", t.id, what, other.id)
		}
	}
	space, err := place(req.Pieces, req.SizeBytes, e.rooms())
	if err != nil {
		return nil, err
	}
	e.leases[t.id] = t
	return space, nil
}

func (e *Engine) forget(t *tenancy) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.leases, t.id)
	delete(e.ready, t.id)
}

// newMap has the keeper make t's map, and writes t's extents into it.
func (e *Engine) newMap(t *tenancy) error {
	extents, err := toExtents(t.pieces)
	if err != nil {
		return err
	}
	f, err := e.keeper.Map(t.slot, uint64(t.size)/blk.BlockSize, len(extents), t.rec.Lease)
	if err != nil {
		return err
	}
	if t.bits, err = volatile.OpenMap(f); err != nil {
		return err
	}
	return t.bits.SetExtents(extents)
}

// dropMap gives back what the keeper holds for t beside its key.
func (e *Engine) dropMap(t *tenancy) error {
	if err := errors.Join(t.closeMap(), e.keeper.Unmap(t.slot)); err != nil {
		return fmt.Errorf("giving back the block map of slot %d: %w", t.slot, err)
	}
	return nil
}

// closeMap unmaps the map of t, if it has one.
func (t *tenancy) closeMap() error {
	if t.bits == nil {
		return nil
	}
	err := t.bits.Close()
	t.bits = nil
	return err
}
