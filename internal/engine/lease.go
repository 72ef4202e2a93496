package engine

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"

	"vacate/internal/blk"
	"vacate/internal/blockmap"
	"vacate/internal/drive"
	"vacate/internal/export/nbd"
	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/sys"
	"vacate/internal/volatile"
	"vacate/internal/xts"
)

// A tenancy is a lease that this engine holds.
//
// # Close (law L5)
//
//  1. The volume's gate is shut: no request is admitted any more.
//  2. Cipher calls in progress end: processor time, never a device.
//  3. The keeper overwrites the key and reads it back: the erasure.
//  4. The export's sockets are shut down, which wakes its threads.
//  5. Apart from the caller: when the threads have ended, so that nothing is in
//     flight, maps and buffers are given back, and the slot is free.
//
// A drive that hangs delays step 5 only.
type tenancy struct {
	id     string
	slot   int
	pieces []extent.Piece
	path   *path
	bits   *volatile.Map
	server *nbd.Server
	gone   chan struct{} // closed after step 5

	mu      sync.Mutex      // held through steps 1 to 4; never together with Engine.mu
	rec     volatile.Record // as it stands in the lease table
	shut    ipc.Erasure     // when steps 1 and 2 were done, by the first close that came
	erasure *ipc.Erasure    // nil until step 3 has succeeded
}

// openLease makes volatile memory, key, layers and export of a lease, in this
// order, and takes them back in the reverse order where one fails.
func (e *Engine) openLease(req *ipc.LeaseOpenRequest, listener *os.File) (*ipc.LeaseOpened, error) {
	if err := checkLease(req, listener); err != nil {
		return nil, err
	}
	lease, err := volatile.ParseLeaseID(req.Lease)
	if err != nil {
		return nil, invalid("%v", err)
	}
	t := &tenancy{
		id: req.Lease, slot: req.Slot, pieces: req.Pieces, gone: make(chan struct{}),
		rec: volatile.Record{
			Lease: lease, State: volatile.StateOpening, LogicalBlock: uint32(req.LogicalBlock),
			SizeBytes: uint64(req.SizeBytes), MapBytes: uint64(volatile.MapBytes(uint64(req.SizeBytes) / blk.BlockSize)),
			Generation: e.cfg.Generation, UID: req.UID,
		},
	}
	space, err := e.admit(t, req)
	if err != nil {
		return nil, err
	}
	undo := []func() error{func() error { e.forget(t); return nil }}
	fail := func(err error) (*ipc.LeaseOpened, error) {
		errs := []error{err}
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return nil, fmt.Errorf("opening lease %s: %w", req.Lease, errors.Join(errs...))
	}

	if t.bits, err = e.newMap(t, req.SizeBytes); err != nil {
		return fail(err)
	}
	undo = append(undo, func() error { return e.dropMap(t) })
	if err := e.table.Put(t.slot, t.rec); err != nil {
		return fail(err)
	}
	undo = append(undo, func() error { return e.clearRecord(t) }, func() error { _, err := e.destroy(t); return err })
	sched, err := e.newKey(t)
	if err != nil {
		return fail(err)
	}
	t.path, err = build(layers{
		size: req.SizeBytes, logical: req.LogicalBlock, space: space, key: sched, lock: e.cfg.Lock,
		bits: blockmap.Bits{Words: t.bits.Words(), Summary: t.bits.Summary(), Blocks: t.bits.Blocks()},
	})
	if err != nil {
		return fail(err)
	}
	t.rec.State = volatile.StateOpen
	if err := e.table.Put(t.slot, t.rec); err != nil {
		return fail(err)
	}
	// Last: what fails from here on would have a client's requests in flight.
	t.server, err = nbd.Serve(listener, nbd.Config{
		Export: t.path.volume,
		Map:    t.path.blocks.Extents,
		Admit:  e.conns.lease(),
		Allow:  e.allow(req.UID),
		Lock:   e.cfg.Lock,
		Log:    e.cfg.Log.With("lease_id", t.id),

		MaxHandshakes: maxHandshakes,
	})
	if err != nil {
		return fail(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ready[t.id] = t
	return &ipc.LeaseOpened{KeyGeneratedNs: t.rec.KeyGeneratedNs}, nil
}

// maxHandshakes is how many clients of one lease may be in the handshake at once.
// Each has a thread, and Go ends a program that has more than 10,000: with all
// slots' leases attacked by clients that connect and say nothing, at most 4,096.
const maxHandshakes = 4

func checkLease(req *ipc.LeaseOpenRequest, listener *os.File) error {
	switch {
	case listener == nil:
		return invalid("lease %s came without its listening socket", req.Lease)
	case req.Slot < 0 || req.Slot >= volatile.Slots:
		return invalid("lease %s: slot %d, there are %d", req.Lease, req.Slot, volatile.Slots)
	case req.SizeBytes <= 0 || req.SizeBytes%blk.BlockSize != 0 || req.SizeBytes > blk.MaxVolume:
		return invalid("lease %s: size %d is not a multiple of %d up to 2^62", req.Lease, req.SizeBytes, blk.BlockSize)
	case req.LogicalBlock != 512 && req.LogicalBlock != 4096:
		return invalid("lease %s: logical blocks of %d bytes, want 512 or 4096", req.Lease, req.LogicalBlock)
	}
	return nil
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

func (e *Engine) newMap(t *tenancy, size int64) (*volatile.Map, error) {
	f, err := e.keeper.Map(t.slot, uint64(size)/blk.BlockSize, len(t.pieces), t.rec.Lease)
	if err != nil {
		return nil, err
	}
	m, err := volatile.OpenMap(f)
	if err != nil {
		return nil, errors.Join(err, e.keeper.Unmap(t.slot))
	}
	return m, nil
}

// dropMap and clearRecord take back what an opening made, or a close has done
// with. Where that fails the slot is free all the same: the keeper makes no map
// in one that still has a key or a map.
func (e *Engine) dropMap(t *tenancy) error {
	if err := errors.Join(t.bits.Close(), e.keeper.Unmap(t.slot)); err != nil {
		return fmt.Errorf("giving back the block map of slot %d: %w", t.slot, err)
	}
	return nil
}

func (e *Engine) clearRecord(t *tenancy) error { return e.table.Put(t.slot, volatile.Record{}) }

// newKey fills t's key slot: a fresh key, straight from the generator into
// volatile memory, and its schedule behind it.
func (e *Engine) newKey(t *tenancy) (*xts.Schedule, error) {
	slot := e.keys.Slot(t.slot)
	key := (*[xts.KeySize]byte)(slot)
	sched := (*xts.Schedule)(slot[xts.KeySize:])
	for {
		if _, err := rand.Read(key[:]); err != nil {
			return nil, err
		}
		err := sched.Expand(key)
		if err == nil {
			break
		}
		if !errors.Is(err, xts.ErrWeakKey) { // equal halves: once in 2^256
			return nil, err
		}
	}
	t.rec.KeyGeneratedNs = sys.BoottimeNs()
	return sched, nil
}

// destroy has the key of t overwritten by the keeper, and read back.
func (e *Engine) destroy(t *tenancy) (volatile.Wiped, error) {
	w, err := e.keeper.Wipe(t.slot)
	if err != nil {
		return w, fmt.Errorf("destroying the key of lease %s: %w", t.id, err)
	}
	return w, nil
}

// closeLease carries out steps 1 to 4 of a close. It is idempotent; after an
// error it can be called again, and the gates stay shut meanwhile. Of a lease
// that has gone lately it returns how it went.
func (e *Engine) closeLease(id string) (*ipc.Erasure, error) {
	t, ended, err := e.lease(id)
	if err != nil || t == nil {
		return ended, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.erasure == nil {
		var er *ipc.Erasure
		urgently(func() { er, err = e.erase(t) })
		if err != nil {
			return nil, err
		}
		t.erasure = er
		t.server.Close()
		go e.leave(t)
	}
	answer := *t.erasure
	answer.Drained = t.isGone()
	return &answer, nil
}

// erase is steps 1 to 3, on an urgent thread. REQUIRES: t.mu is held.
func (e *Engine) erase(t *tenancy) (*ipc.Erasure, error) {
	if t.shut.CiphersDoneNs == 0 {
		t.shut.GateClosedNs = sys.BoottimeNs()
		t.path.volume.Shut()
		t.server.Hurry()
		t.path.cipher.Revoke() // the key is of no use to this process any more
		t.shut.CiphersDoneNs = sys.BoottimeNs()
	}
	w, err := e.destroy(t)
	if err != nil {
		return nil, err
	}
	er := t.shut
	er.KeyDestroyedNs, er.ReadBack = w.DoneNs, w.ReadBack
	t.rec.State, t.rec.GateClosedNs, t.rec.KeyDestroyedNs = volatile.StateErased, er.GateClosedNs, er.KeyDestroyedNs
	if err := e.table.Put(t.slot, t.rec); err != nil {
		// The key is gone, and that is what was asked: the answer says so.
		e.cfg.Log.Error("noting an erasure in the lease table", "lease_id", t.id, "slot", t.slot, "error", err)
	}
	return &er, nil
}

// leave is step 5. It ends when the last thread of the export has, which may be
// as long as a drive hangs.
func (e *Engine) leave(t *tenancy) {
	t.server.Wait()
	<-t.path.volume.Drained()
	if err := errors.Join(e.dropMap(t), e.clearRecord(t)); err != nil {
		e.cfg.Log.Error("giving back a slot", "lease_id", t.id, "slot", t.slot, "error", err)
	}
	e.mu.Lock()
	delete(e.leases, t.id)
	delete(e.ready, t.id)
	e.ended.add(t.id, *t.erasure)
	e.mu.Unlock()
	close(t.gone)
}

func (t *tenancy) isGone() bool {
	select {
	case <-t.gone:
		return true
	default:
		return false
	}
}

// lease returns a lease that is open or being closed, or how one ended that is
// still remembered.
func (e *Engine) lease(id string) (*tenancy, *ipc.Erasure, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.ready[id]; t != nil {
		return t, nil, nil
	}
	if er, ok := e.ended.byID[id]; ok {
		return nil, &er, nil
	}
	return nil, nil, notFound("the engine holds no lease %s", id)
}
