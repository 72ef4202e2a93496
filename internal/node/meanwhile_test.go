package node

import (
	"context"
	"os"
	"testing"
	"testing/synctest"

	"vacate/internal/ipc"
	"vacate/internal/lease"
)

// A slowEngine lets a test act between what an engine does and its answer.
type slowEngine struct {
	Engine
	listed  func() // after the list of leases was made
	opening func() // before a lease is opened
}

func (e *slowEngine) Leases(ctx context.Context) (ipc.LeaseList, error) {
	list, err := e.Engine.Leases(ctx)
	if f := e.listed; f != nil {
		e.listed = nil
		f()
	}
	return list, err
}

func (e *slowEngine) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, l ...*os.File) (ipc.LeaseOpened, error) {
	if e.opening != nil {
		e.opening()
	}
	return e.Engine.OpenLease(ctx, req, l...)
}

// TestOpenedDuringRecovery: a lease that a new engine opened after it had listed
// its leases is open, and not taken for one that it does not have.
func TestOpenedDuringRecovery(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		slow := &slowEngine{Engine: w.e}
		w.edit = func(c *Config) { c.Engine = slow }
		w.up()
		goOn := make(chan struct{})
		slow.opening = func() { <-goOn }
		opened := make(chan lease.Lease, 1)
		go func() { opened <- w.open(3) }()
		synctest.Wait()
		slow.listed = func() {
			close(goOn)
			synctest.Wait()
		}
		w.next()
		synctest.Wait()
		l := <-opened
		w.expect(l.ID, lease.Open, "", lease.Held)
		if keys := w.e.Keys(); len(keys) != 1 {
			t.Errorf("keys %v", keys)
		}
		w.close(l.ID)
		w.expectFree(12)
	})
}

// TestClosedDuringRecovery: a lease that was closed after the new engine had
// listed it is no stranger, which would keep others from being opened.
func TestClosedDuringRecovery(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		slow := &slowEngine{Engine: w.e}
		w.edit = func(c *Config) { c.Engine = slow }
		w.up()
		l := w.open(3)
		slow.listed = func() {
			w.close(l.ID)
			synctest.Wait()
		}
		w.next()
		w.expect(l.ID, lease.Closed, lease.OK, lease.Free)
		w.open(12)
	})
}
