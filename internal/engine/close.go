package engine

import (
	"errors"
	"fmt"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// Close (law L5):
//
//  1. The slot says closing, so that the next engine goes on should this one die.
//     The volume's gate is shut: no request is admitted any more.
//  2. Cipher calls in progress end: processor time, never a device.
//  3. The keeper overwrites the key and reads it back: the erasure.
//  4. The export's sockets are shut down, which wakes its threads.
//  5. Apart from the caller: when the threads have ended and the fences of all
//     drives have been held, so that nothing is in flight, neither of this engine
//     nor of one before it, maps and buffers are given back. The slot says ended,
//     and is free.
//
// A drive that hangs, and a fence that is not had, delay step 5 only. A lease
// that has no path has no gate either: steps 1 and 2 take no time.

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
		if err := e.end(t); err != nil {
			return nil, err
		}
	}
	answer := *t.erasure
	answer.Drained = t.isGone()
	return &answer, nil
}

// end is steps 1 to 4, and the start of step 5. REQUIRES: t.mu is held.
func (e *Engine) end(t *tenancy) error {
	var er *ipc.Erasure
	var err, noted error
	e.erasing.Add(1)
	urgently(func() { er, noted, err = e.erase(t) })
	e.erasing.Add(-1)
	e.at(fail.CloseErased)
	if noted != nil {
		// The key comes first, and the answer tells of it all the same.
		e.cfg.Log.Error("noting a close in the lease table", "lease_id", t.id, "slot", t.slot, "error", noted)
	}
	if err != nil {
		return err
	}
	t.erasure = er
	if t.server != nil {
		t.server.Close()
	}
	closeDevice(t.device)
	t.disinherit()
	t.stopCounting()
	go e.finish(t)
	return nil
}

// erase is steps 1 to 3, on an urgent thread. noted is what kept the lease table
// from being written. REQUIRES: t.mu is held.
func (e *Engine) erase(t *tenancy) (er *ipc.Erasure, noted, err error) {
	if t.shut.CiphersDoneNs == 0 {
		noted = e.note(t, volatile.StateClosing)
		e.at(fail.CloseNoted)
		t.shut.GateClosedNs = sys.BoottimeNs()
		if t.path != nil {
			t.path.volume.Shut()
			e.at(fail.CloseShut)
			if t.server != nil {
				t.server.Hurry()
			}
			if t.device != nil {
				t.device.Hurry()
			}
			t.path.cipher.Revoke() // the key is of no use to this process any more
		}
		t.shut.CiphersDoneNs = sys.BoottimeNs()
		t.rec.GateClosedNs, t.rec.CiphersDoneNs = t.shut.GateClosedNs, t.shut.CiphersDoneNs
		noted = errors.Join(noted, e.note(t, volatile.StateClosing))
	}
	w, err := e.destroy(t)
	if err != nil {
		return nil, noted, err
	}
	e.at(fail.CloseWiped)
	t.shut.KeyDestroyedNs, t.shut.ReadBack = w.DoneNs, w.ReadBack
	t.rec.KeyDestroyedNs = w.DoneNs
	noted = errors.Join(noted, e.note(t, volatile.StateErased))
	answer := t.shut
	return &answer, noted, nil
}

// destroy has the key of t overwritten by the keeper, and read back.
func (e *Engine) destroy(t *tenancy) (volatile.Wiped, error) {
	w, err := e.keeper.Wipe(t.slot)
	if err != nil {
		return w, fmt.Errorf("destroying the key of lease %s: %w", t.id, err)
	}
	return w, nil
}

// finish is step 5. It ends when the last thread of the export has, which may be
// as long as a drive hangs.
func (e *Engine) finish(t *tenancy) {
	if t.server != nil {
		t.server.Wait()
	}
	if t.device != nil {
		t.device.Wait()
	}
	if t.path != nil {
		<-t.path.volume.Drained()
	}
	select {
	case <-t.fenced:
	case <-e.ctx.Done(): // the engine ends, and the next one waits for the fences
		return
	}
	t.counting.Wait()
	e.at(fail.CloseDrained)
	// The map goes first: an erased slot without a map has drained.
	err := e.dropMap(t)
	if err == nil {
		t.mu.Lock()
		err = e.note(t, volatile.StateEnded)
		t.mu.Unlock()
	}
	if err != nil {
		e.cfg.Log.Error("giving back a slot", "lease_id", t.id, "slot", t.slot, "error", err)
	}
	e.at(fail.CloseEnded)
	e.mu.Lock()
	delete(e.leases, t.id)
	delete(e.ready, t.id)
	e.ended.add(t.id, *t.erasure)
	e.mu.Unlock()
	close(t.gone)
	e.leftLitter()
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
