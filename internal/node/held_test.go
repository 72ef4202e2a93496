package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/node/nodesim"
	"vacate/proof"
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

// meanwhile is a journal in which a resize, or a release, becomes durable between the
// annex of a lease and its CLOSE.
type meanwhile struct {
	journal.Store
	annexed, written chan struct{}
}

func (s meanwhile) ResizeLease(id string, size int64, pieces []extent.Piece) (lease.Lease, error) {
	<-s.annexed
	defer close(s.written)
	return s.Store.ResizeLease(id, size, pieces)
}

func (s meanwhile) ReleaseLease(id string, ev proof.Event, te journal.Testimony) (lease.Lease, error) {
	<-s.annexed
	defer close(s.written)
	return s.Store.ReleaseLease(id, ev, te)
}

func (s meanwhile) CloseLease(l lease.Lease, free bool, te journal.Testimony) (lease.Lease, error) {
	<-s.written
	return s.Store.CloseLease(l, free, te)
}

// TestL6CloseSaysWhatIs: a release, or a resize, that was begun before a close becomes
// durable after the annex was made: it is made again, and says what is so.
func TestL6CloseSaysWhatIs(t *testing.T) {
	for name, change := range map[string]func(*world, string) error{
		"release": func(w *world, id string) error {
			_, err := w.n.ReleaseKey(w.ctx, id, make([]byte, recipientLen))
			return err
		},
		"resize": func(w *world, id string) error {
			_, err := w.n.Resize(w.ctx, id, 2*mib, false)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				m := meanwhile{annexed: make(chan struct{}), written: make(chan struct{})}
				annexed := sync.OnceFunc(func() { close(m.annexed) })
				w.edit = func(c *Config) {
					m.Store = c.Store
					c.Store = m
					c.Annex = func(l lease.Lease, _ []DriveFacts) ([]byte, error) {
						annexed()
						return fmt.Appendf(nil, "%d bytes, released: %v", l.SizeBytes, l.Proof.Released), nil
					}
				}
				w.up()
				l := w.open(1)
				changed := make(chan error)
				go func() { changed <- change(w, l.ID) }()
				synctest.Wait()
				c := w.close(l.ID)
				if err := <-changed; err == nil {
					t.Error("the lease was closed before")
				}
				_, own := w.audit(l.ID)
				annex, err := w.bolt.Annex(l.ID)
				if want := fmt.Sprintf("%d bytes, released: %v", c.SizeBytes, c.Proof.Released); err != nil || string(annex) != want {
					t.Errorf("the annex says %q, %v; the lease ended with %q", annex, err, want)
				}
				end := own[len(own)-1]
				if claimed := slices.Contains(end.Claims, proof.ClaimKeyCommitted); claimed == c.Proof.Released ||
					slices.Contains(end.NotClaimed, proof.ClaimKeyCommitted) == claimed || end.Bytes != c.SizeBytes || len(own) != 3 {
					t.Errorf("%+v", own)
				}
				w.expectFree(12)
			})
		})
	}
}
