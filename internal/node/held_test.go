package node

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
)

// unheard is an engine that serves a lease and ends before it has said so. The next
// one takes its time to answer.
type unheard struct {
	*nodesim.Engine
	once *atomic.Bool
}

func (e unheard) ServeLease(ctx context.Context, id string) error {
	if e.once.Load() {
		time.Sleep(time.Second)
	}
	err := e.Engine.ServeLease(ctx, id)
	if err == nil && e.once.CompareAndSwap(false, true) {
		return fmt.Errorf("%w: it has ended", ipc.ErrGone)
	}
	return err
}

// TestServedByAnotherEngine: control finds a lease held that its journal has, and the
// engine that it asks to serve it ends, once it does. The next one lists it as open,
// and is asked to serve it again.
func TestServedByAnotherEngine(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.up()
		w.f.Strike(4, nodesim.Lost, true) // ServeLease and all that follows
		if _, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, TTL: time.Hour}); err == nil {
			t.Fatal("opened")
		}
		id := w.e.Held()[0]
		w.stop()
		w.f.Strike(0, 0, false)
		var once atomic.Bool
		w.edit = func(c *Config) { c.Engine = unheard{w.e, &once} }
		w.mustStart()
		synctest.Wait()
		if !once.Load() || w.get(id).State != lease.Opening {
			t.Fatalf("served: %v; %+v", once.Load(), w.get(id))
		}
		w.next()
		time.Sleep(time.Minute)
		w.expect(id, lease.Open, "", lease.Held)
		w.close(id)
		w.expectFree(12)
	})
}

// given is an engine that serves a lease, after which its keeper gives up its engines
// and destroys every key, before control comes to read the answer.
type given struct {
	*nodesim.Engine
	meanwhile func()
}

func (e given) ServeLease(ctx context.Context, id string) error {
	err := e.Engine.ServeLease(ctx, id)
	if err == nil {
		e.meanwhile()
	}
	return err
}

// TestServedByAnEngineThatIsGone: the answer that a new lease is served is read when
// another engine has taken its place, which does not have it.
func TestServedByAnEngineThatIsGone(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.edit = func(c *Config) {
			c.Engine = given{w.e, sync.OnceFunc(func() {
				w.e.GiveUp()
				w.n.EngineGone()
				w.must(nil, w.n.Recover(w.ctx))
			})}
		}
		w.up()
		if l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k"}); err == nil {
			t.Errorf("opened, and no engine holds it: %+v", l)
		}
		time.Sleep(time.Minute)
		l, err := w.n.Open(w.ctx, OpenRequest{SizeBytes: mib, Key: "k"})
		if err != nil || l.State != lease.Open || len(w.e.Keys()) != 1 {
			t.Errorf("%+v, %v, keys %v", l, err, w.e.Keys())
		}
		w.close(l.ID)
		w.expectFree(12)
		w.audit("")
	})
}
