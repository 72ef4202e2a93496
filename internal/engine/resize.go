package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"vacate/internal/blk"
	"vacate/internal/extent"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/plant"
	"vacate/internal/volatile"
	"vacate/internal/volume"
)

// Resize: the volume of an open lease gets larger.
//
//  1. The extents that it gets are reserved in this engine, as for an opening.
//  2. The lease's exports leave: what is in flight is completed, and connections
//     stand between two messages. From here on the lease is as one that was taken
//     over, and has no path (park).
//  3. A larger map is made, with the old one's bits (package volatile, grow.go).
//  4. The keeper holds it instead of the old one. That is the resize: who takes
//     over from here finds the new size, before it the old one.
//  5. The slot has the new size.
//  6. The lease is served again, as after a take-over, connections going on.
//
// What fails before 4 brings the lease back with its old size. A drive that hangs
// holds up step 2, and nothing else: no lock is held, and a close comes in
// between any two steps.

// parkWithin is how long connections may take to come to a message boundary, from
// when nothing of the volume is in flight any more: a client is cut off for what it
// does, and not for its drive.
const parkWithin = time.Second

// resizeLease gives an open lease a new size. It is idempotent. After an error
// that is ctx's it goes on.
func (e *Engine) resizeLease(ctx context.Context, req *ipc.LeaseResizeRequest) (*ipc.Empty, error) {
	t, ended, err := e.lease(req.Lease)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		return nil, notFound("lease %s has ended", req.Lease)
	}
	if !t.resizing.CompareAndSwap(false, true) {
		return nil, busy("lease %s is being resized", t.id)
	}
	done := make(chan error, 1)
	e.mu.Lock()
	leaving := e.leaving
	if !leaving {
		e.returning.Go(func() {
			err := e.resize(t, req)
			t.resizing.Store(false) // before the answer, or the next call is refused
			done <- err
		})
	}
	e.mu.Unlock()
	if leaving {
		t.resizing.Store(false)
		return nil, busy("the engine leaves for its successor")
	}
	select {
	case err := <-done:
		if err != nil {
			return nil, fmt.Errorf("resizing lease %s: %w", t.id, err)
		}
		return &ipc.Empty{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// resize takes the steps. REQUIRES: t.resizing is the caller's.
func (e *Engine) resize(t *tenancy, req *ipc.LeaseResizeRequest) error {
	if err := e.upgraded(); err != nil {
		return err
	}
	was, err := e.stretch(t, req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	if was.size == req.SizeBytes {
		return e.resized(t)
	}
	if err := e.park(ctx, cancel, t); err != nil {
		e.shrink(t, was)
		return err
	}
	e.at(fail.ResizeParted)
	err = e.remap(ctx, t, req)
	t.counting.Done()
	if grown := (errGrown{}); err != nil && !errors.As(err, &grown) && !errors.Is(err, volatile.ErrLink) {
		e.shrink(t, was)
	}
	if e.ctx.Err() != nil {
		return err // the next engine serves it
	}
	err = errors.Join(err, e.resume(t))
	e.at(fail.ResizeDone)
	return err
}

// An extension is what a volume had before it got more.
type extension struct {
	size   int64
	pieces []extent.Piece
}

// stretch is step 1: t has the pieces of req, and returns what it had.
func (e *Engine) stretch(t *tenancy, req *ipc.LeaseResizeRequest) (was extension, err error) {
	select {
	case <-t.fenced:
	default:
		return was, busy("lease %s waits for its drives: it is resized when they are back", t.id)
	}
	if req.SizeBytes <= 0 || req.SizeBytes%blk.BlockSize != 0 || req.SizeBytes > blk.MaxVolume || len(req.Pieces) > volatile.MaxExtents {
		return was, invalid("lease %s: size %d is not a multiple of %d up to 2^62, or it lies in more than %d pieces",
			req.Lease, req.SizeBytes, blk.BlockSize, volatile.MaxExtents)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	was = extension{t.size, t.pieces}
	if req.SizeBytes == t.size && slices.Equal(req.Pieces, t.pieces) {
		return was, nil
	}
	more, err := extent.Beyond(t.pieces, req.Pieces)
	if err != nil || req.SizeBytes <= t.size {
		return was, invalid("lease %s has %d bytes, and cannot have %d, nor other pieces (%v): it can only get larger", t.id, t.size, req.SizeBytes, err)
	}
	for _, other := range e.leases {
		if what, both := overlap(more, other.pieces); both && other != t {
			return was, busy("lease %s: %s are held by lease %s", t.id, what, other.id)
		}
	}
	if _, err := place(req.Pieces, req.SizeBytes, e.rooms()); err != nil {
		return was, err
	}
	t.size, t.pieces = req.SizeBytes, req.Pieces
	return was, nil
}

// shrink takes step 1 back.
func (e *Engine) shrink(t *tenancy, was extension) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.size, t.pieces = was.size, was.pieces
}

// resized is for a lease that has its size already: an engine before this one has
// done it, or a step behind the fourth failed.
func (e *Engine) resized(t *tenancy) error {
	t.mu.Lock()
	err := e.standing(t)
	if err == nil && t.path == nil && t.waits == nil {
		err = e.takeSockets(t)
	}
	if err == nil {
		err = e.note(t, volatile.StateOpen)
	}
	t.mu.Unlock()
	if err != nil {
		return err
	}
	return e.resume(t)
}

// standing says that t is open. REQUIRES: t.mu is held.
func (e *Engine) standing(t *tenancy) error {
	if t.shut.GateClosedNs != 0 { // whatever the record says: it may not be to be written
		return closing(t)
	}
	switch t.rec.State {
	case volatile.StateOpen:
		return nil
	case volatile.StateOpening:
		return busy("lease %s is not served yet", t.id)
	}
	return closing(t)
}

func closing(t *tenancy) error { return notFound("lease %s is being closed", t.id) }

// park is step 2. When it has returned nil, t has no path, what it is served by is
// in t.waits, and its map stays until t.counting is done: the caller's to say. A
// close of the lease calls cancel.
func (e *Engine) park(ctx context.Context, cancel func(), t *tenancy) error {
	t.mu.Lock()
	err, stop := e.standing(t), t.stopCounting
	t.mu.Unlock()
	if err != nil {
		return err
	}
	stop()
	t.counting.Wait()
	s, err := e.claim(t, cancel)
	if err != nil || s.server == nil {
		return err
	}
	ended := s.leave(ctx, t)
	select {
	case <-ended:
	case <-ctx.Done(): // a close, or the engine leaves
		t.counting.Done()
		return fmt.Errorf("requests are in flight to its drive: %w", ctx.Err())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.standing(t); err != nil {
		t.counting.Done()
		return err
	}
	t.past = t.counters()
	t.server.count(&t.pastGuest)
	t.path, t.server = nil, nil
	return nil
}

// A service is what a lease is served by, and will be served by again.
type service struct {
	server *exports // nil: nothing
	device blockDevice
	path   *path
	next   *inheritance
}

// claim takes what t is served by, and t.counting. Where it fails, nothing has
// changed.
func (e *Engine) claim(t *tenancy, cancel func()) (s service, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := e.standing(t); err != nil {
		return s, err
	}
	if t.waits == nil { // else it could not be served, and waits for another try
		err = e.takeSockets(t)
	}
	if err != nil {
		if t.path != nil {
			e.count(t)
		}
		return s, err
	}
	if t.path != nil {
		s = service{t.server, t.device, t.path, t.waits}
		t.waits, t.parting = nil, true
	}
	t.stopCounting = cancel
	t.counting.Add(1)
	return s, nil
}

// leave ends the service of t, and keeps its connections for the next. The channel
// is closed when nothing is in flight any more.
func (s *service) leave(ctx context.Context, t *tenancy) (ended <-chan struct{}) {
	s.path.volume.SetLimits(volume.Limits{}) // else who waits for its share holds it up; the next path has them
	within, cancel := context.WithCancel(context.WithoutCancel(ctx))
	left := make(chan struct{})
	var watched sync.WaitGroup
	watched.Go(func() { defer cancel(); s.patience(ctx, left) })
	rested := make(chan struct{})
	go func() {
		defer close(rested)
		_ = pauseDevice(context.Background(), s.device) // as long as its drive takes
	}()
	s.next.conns = s.server.Leave(within)
	close(left)
	watched.Wait()
	t.mu.Lock()
	t.waits = s.next
	if t.rec.State != volatile.StateOpen || t.shut.GateClosedNs != 0 { // closed meanwhile
		t.disinherit()
	}
	t.mu.Unlock()
	over := make(chan struct{})
	go func() {
		defer close(over)
		s.server.Wait()
		<-rested
		s.path.volume.Shut()
		<-s.path.volume.Drained()
	}()
	return over
}

// patience returns when connections have had their time, or have left. An engine
// that leaves does not wait for a drive.
func (s *service) patience(ctx context.Context, left <-chan struct{}) {
	const often = parkWithin / 100
	begun := time.Now()
	for idle := begun; time.Since(idle) < parkWithin; {
		select {
		case <-left:
			return
		case <-time.After(often):
		}
		switch {
		case ctx.Err() != nil:
			idle = begun
		case !s.path.volume.Idle():
			idle = time.Now()
		}
	}
}

// remap is steps 3 to 5. REQUIRES: t is parked, and t.counting is the caller's.
func (e *Engine) remap(ctx context.Context, t *tenancy, req *ipc.LeaseResizeRequest) error {
	extents, err := toExtents(req.Pieces)
	if err != nil {
		return err
	}
	blocks := uint64(req.SizeBytes) / blk.BlockSize
	f, next, err := t.bits.Grow(ctx, blocks, extents)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // the keeper has it
	if plant.Is(plant.GrownWritten) {
		last := blocks - 1
		next.Summary()[last/32768/64].Or(1 << (last / 32768 % 64))
		next.Words()[last/64].Or(1 << (last % 64))
	}
	e.at(fail.ResizeCopied)
	old, err := e.swap(t, f, next, uint64(volatile.MapBytes(blocks, len(extents))))
	if old == nil {
		return errors.Join(err, next.Close())
	}
	// Not under t.mu: where much was written it takes time, and a close waits for t.mu.
	if err = errors.Join(err, old.Close()); err != nil {
		return errGrown{err}
	}
	return nil
}

// swap is steps 4 and 5. It returns the map that t had, or nil where it still has it.
func (e *Engine) swap(t *tenancy, f *os.File, next *volatile.Map, bytes uint64) (old *volatile.Map, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err = e.standing(t); err == nil {
		err = e.keeper.Remap(t.slot, f)
	}
	if err != nil {
		return nil, err
	}
	e.at(fail.ResizeMapped)
	old, t.bits = t.bits, next
	t.rec.SizeBytes, t.rec.MapBytes = next.Blocks()*blk.BlockSize, bytes
	if err = e.note(t, volatile.StateOpen); err == nil {
		e.at(fail.ResizeNoted)
	}
	return old, err
}

// errGrown is an error of what has its new size all the same.
type errGrown struct{ error }

func (e errGrown) Unwrap() error { return e.error }

// mend writes down that t has grown, which the engine before this one could not:
// the map decides.
func (e *Engine) mend(t *tenancy) error {
	t.rec.SizeBytes = t.bits.Blocks() * blk.BlockSize
	t.rec.MapBytes = uint64(volatile.MapBytes(t.bits.Blocks(), len(t.pieces)))
	t.size = int64(t.rec.SizeBytes)
	return e.note(t, t.rec.State)
}

// counters are what t.path has counted, and those before it. REQUIRES: t.mu is held.
func (t *tenancy) counters() volume.Stats {
	v := t.past
	if t.path == nil {
		return v
	}
	n := t.path.volume.Stats()
	v.Reads, v.Writes, v.Discards, v.Flushes = v.Reads+n.Reads, v.Writes+n.Writes, v.Discards+n.Discards, v.Flushes+n.Flushes
	v.ReadBytes, v.WriteBytes, v.Errors, v.SubBlock = v.ReadBytes+n.ReadBytes, v.WriteBytes+n.WriteBytes, v.Errors+n.Errors, v.SubBlock+n.SubBlock
	return v
}
