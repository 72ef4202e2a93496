package engine

import (
	"fmt"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// A lease that is held (ipc.LeaseOpenRequest.Hold) has everything but its exports:
//
//	H1: its slot says opening, so an engine that takes over from here takes it back.
//	    Nobody has written a byte: its sockets are not accepted from.
//	H2: it is listed, as held, and closed as any other. It is neither limited nor
//	    resized, nor is its key released.
//	H3: it is served once its record is durable, which control says by lease.serve:
//	    no block is written, and no export exists, of a lease whose OPEN is not.

// serveLease lets clients into a lease that was held. Asked again, of this engine or
// of one that took over, it changes nothing.
//
// Where its exports do not start, it stays as it is, and unserved, until it is closed:
// what one export of two had let in would have to be waited for.
func (e *Engine) serveLease(id string) (*ipc.Empty, error) {
	t, ended, err := e.lease(id)
	if err != nil {
		return nil, err
	}
	if ended != nil {
		return nil, notFound("lease %s has ended", id)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.serving:
		return nil, busy("lease %s is about to be served", id)
	case t.rec.State == volatile.StateOpen: // it was served, taken over, or opened at once
		return &ipc.Empty{}, nil
	case t.rec.State != volatile.StateOpening:
		return nil, notFound("lease %s is being closed", id)
	case t.failed:
		return nil, busy("lease %s could not be served: close it, and open another", id)
	}
	t.serving = true
	err = e.letIn(t)
	t.serving, t.failed = false, err != nil
	if err != nil {
		return nil, fmt.Errorf("serving lease %s: %w", id, err)
	}
	return &ipc.Empty{}, nil
}

// letIn serves a lease that was held. REQUIRES: t.mu is held.
func (e *Engine) letIn(t *tenancy) error {
	if err := e.takeSockets(t); err != nil {
		return err
	}
	if err := e.note(t, volatile.StateOpen); err != nil {
		return err
	}
	e.at(fail.OpenWritten)
	open, err := e.launch(t)
	switch {
	case !open:
		return notFound("it is being closed")
	case err != nil:
		return e.unserve(t, err)
	}
	t.disinherit()
	e.resumeDevice(t)
	return nil
}

// unserve makes t, whose exports did not start, one that nobody reaches, and returns
// the error. It waits for nothing: a close does. REQUIRES: t.mu is held.
func (e *Engine) unserve(t *tenancy, err error) error {
	t.path.volume.Shut()
	if t.server != nil {
		t.server.Close()
	}
	t.disinherit()
	if again := e.note(t, volatile.StateOpening); again != nil {
		return fmt.Errorf("%w; and %w", err, again)
	}
	return err
}

// launch starts the exports of t on what t.waits has. Where t is closed meanwhile,
// they are ended again, and it reports false.
//
// REQUIRES: t.mu is held, t has a path and no server. It is let go in between: how
// long exports take to start is a matter of their guests and clients as well.
func (e *Engine) launch(t *tenancy) (open bool, err error) {
	p, rec, on := t.path, t.rec, t.waits.on
	t.counting.Add(1) // the map stays
	t.mu.Unlock()
	x, err := e.export(t, p, rec, on)
	t.mu.Lock()
	if t.shut.GateClosedNs != 0 { // t.path and t.server are finish's
		x.discard(&t.counting)
		return false, nil
	}
	t.counting.Done()
	t.server = x
	return true, err
}
