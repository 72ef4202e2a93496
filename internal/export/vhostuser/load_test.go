package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/vhostclient"
)

// A ram is a volume in memory, for any number of queues.
type ram struct {
	mu   sync.Mutex
	data []byte
}

func (d *ram) Geometry() blk.Geometry {
	return blk.Geometry{Size: int64(len(d.data)), Logical: 512, Physical: 4096}
}

func (d *ram) NewQueue(int) (blk.Queue, error) { return &ramQueue{d: d}, nil }

// A ramQueue carries requests out when they are reaped: they are in flight before.
type ramQueue struct {
	d       *ram
	waiting []*blk.Request
}

func (q *ramQueue) Submit(batch []*blk.Request) { q.waiting = append(q.waiting, batch...) }

func (q *ramQueue) Reap(bool) int {
	batch := q.waiting
	q.waiting = nil
	for _, r := range batch {
		q.d.carryOut(r)
	}
	return len(batch)
}

func (q *ramQueue) Close() error { return nil }

func (d *ram) carryOut(r *blk.Request) {
	if !r.InRange(int64(len(d.data))) {
		r.Finish(0, syscall.EINVAL)
		return
	}
	d.mu.Lock()
	switch r.Op {
	case blk.OpRead:
		copy(r.Buf, d.data[r.Off:])
	case blk.OpWrite:
		copy(d.data[r.Off:], r.Buf)
	case blk.OpDiscard, blk.OpWriteZeroes:
		clear(d.data[r.Off : r.Off+r.Len])
	}
	d.mu.Unlock()
	r.Finish(r.Len, 0)
}

// real has a world serve a drive with workers that carry requests out.
func real(t *testing.T, queues int) *world {
	t.Helper()
	drive := &ram{data: make([]byte, 16<<20)}
	w := newWorld(t, func(c *Config) {
		c.Export, c.Queues, c.Cores, c.Lock = drive, queues, 2, mem.TryLock
	})
	w.server.Close()
	w.server.Wait()
	w.serveReal()
	return w
}

func (w *world) serveReal() {
	w.t.Helper()
	var err error
	if w.server, err = Serve(w.l, w.cfg); err != nil {
		w.t.Fatal(err)
	}
}

// TestL8HandOver puts a load that checks every byte on a session, in the order of
// messages of each frontend, and hands it over again and again. The frontend never
// connects twice, and talks to whoever is there meanwhile.
func TestL8HandOver(t *testing.T) {
	for i, seq := range vhostclient.Sequences {
		t.Run(strings.ReplaceAll(seq.Name, " ", "-"), func(t *testing.T) {
			queues := 3
			if seq.MaxQueues != 0 {
				queues = min(queues, seq.MaxQueues)
			}
			w := real(t, queues)
			v := &vhostclient.Verify{
				Target: w.path, Lease: fmt.Sprintf("lease-of-frontend-%d", i), Seed: uint64(i + 1), Depth: 4, MaxRequest: 64 << 10,
				Options:  vhostclient.Options{Queues: queues, Sequence: seq, Memory: 4 << 20, Inflight: i%2 == 0},
				Patience: 20 * time.Second, Talk: 5 * time.Millisecond,
			}
			load, enough := context.WithCancel(t.Context())
			defer enough()
			ended := make(chan error, 1)
			go func() {
				r, err := v.Run(load)
				ended <- errors.Join(err, r.Err())
			}()
			eventually(t, "the rings", func() bool { return w.server.Stats().Rings > 0 })
			overs, began := 0, time.Now()
			for {
				if overs >= 5 && time.Since(began) > 300*time.Millisecond {
					enough() // the last pass comes, and is handed over too
				}
				select {
				case err := <-ended:
					if err != nil || overs < 5 {
						t.Errorf("handed over %d times: %v", overs, err)
					}
					return
				case <-time.After(3 * time.Millisecond):
				}
				if err := w.server.Leave(context.Background()); err != nil {
					t.Fatal(err)
				}
				w.serveReal()
				if w.server.Stats().Adopted == 1 {
					overs++
				}
			}
		})
	}
}
