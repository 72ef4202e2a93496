package node

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/node/nodesim"
)

var (
	huntSeed  = flag.Uint64("hunt.seed", 0, "replay the random life of this seed, and no other")
	huntLives = flag.Int("hunt.lives", 60, "how many random lives TestRandomLives lives")
)

// randomLife does random things, with random faults, several at once, and leaves
// the world mended but not recovered.
func randomLife(w *world, r *rand.Rand) {
	path := func() string { return []string{"/a", "/b"}[r.IntN(2)] }
	up := func() { // it is started until it runs
		for w.start() != nil {
			w.stop()
		}
	}
	w.f.Strike(r.IntN(20), nodesim.Mode(r.IntN(2)), false)
	up()
	steps := []func(){
		func() { _, _ = w.n.Enroll(w.ctx, EnrollRequest{Path: path()}) },
		func() {
			req := OpenRequest{SizeBytes: (1 + r.Int64N(6)) * mib, Tenant: "t", TTL: time.Duration(r.IntN(2)) * time.Minute}
			if r.IntN(2) == 0 {
				req.Key = fmt.Sprint(r.IntN(5))
			}
			if r.IntN(3) == 0 {
				req.Drive = path()
			}
			if r.IntN(4) == 0 {
				req.EraseBy = w.clock.Now().Add(time.Duration(r.Int64N(int64(5 * time.Minute))))
			}
			_, _ = w.n.Open(w.ctx, req)
		},
		func() {
			if all := w.n.List(false); len(all) > 0 {
				_, _ = w.n.Close(w.ctx, all[r.IntN(len(all))].ID)
			}
		},
		func() { time.Sleep(time.Duration(r.Int64N(int64(20 * time.Second)))) },
		func() { w.e.With(path(), func(d *nodesim.Disk) { d.Hangs = !d.Hangs }) },
		func() { w.e.With(path(), func(d *nodesim.Disk) { d.Missing = !d.Missing }) },
		func() { w.stop(); up() },
		func() {
			w.e.CrashEngine()
			w.n.EngineGone()
			if w.n.Recover(w.ctx) != nil {
				w.stop()
				up()
			}
		},
		func() { // control is away meanwhile
			w.stop()
			w.e.CrashEngine()
			up()
		},
		func() {
			w.e.GiveUp()
			w.n.EngineGone()
			if w.n.Recover(w.ctx) != nil {
				w.stop()
				up()
			}
		},
		func() { w.clock.Jump(time.Duration(r.Int64N(int64(4*time.Minute))) - 2*time.Minute) },
		func() { w.stop(); w.e.CrashKeeper(); up() },
		func() { w.stop(); w.e.Reboot(); up() },
		func() { w.f.Strike(1+r.IntN(20), nodesim.Mode(r.IntN(2)), false) },
		func() { w.e.FailReadBack(r.IntN(3)) },
		func() { w.e.Lose(path(), "it was reset") },
		func() { // with what comes next, or before it
			all := slices.DeleteFunc(w.n.List(false), func(l lease.Lease) bool { return l.State != lease.Open })
			if len(all) == 0 {
				return
			}
			l, n, more, plan := all[r.IntN(len(all))], w.n, r.Int64N(5)*mib/2, r.IntN(8) == 0
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = n.Resize(w.ctx, l.ID, l.SizeBytes+more, plan)
			}()
			if r.IntN(2) == 0 {
				<-done
			}
		},
		func() {
			if all := w.n.List(false); len(all) > 0 {
				_, _ = w.n.Limit(w.ctx, all[r.IntN(len(all))].ID, limit.Limits{IOPS: uint64(r.IntN(3))})
			}
		},
		func() {
			if all := w.n.List(false); len(all) > 0 {
				_, _ = w.n.ReleaseKey(w.ctx, all[r.IntN(len(all))].ID, make([]byte, recipientLen))
			}
		},
	}
	weights := []int{2, 8, 6, 3, 2, 1, 2, 2, 1, 1, 1, 1, 1, 6, 1, 2, 8, 2, 2}
	for range 60 {
		n := r.IntN(52) // the sum of the weights
		for i, weight := range weights {
			if n -= weight; n < 0 {
				steps[i]()
				break
			}
		}
	}
	calm := r.IntN(2) == 0
	if !calm {
		w.stop()
	}
	for _, p := range []string{"/a", "/b"} {
		w.e.With(p, func(d *nodesim.Disk) { d.Hangs, d.Missing, d.Held = false, false, false })
	}
	if calm {
		w.f.Strike(0, nodesim.Lost, false)
		time.Sleep(5 * time.Minute)
		inStep(w)
		reckon(w)
		w.stop()
	}
}

// reckon checks that what is not free is what leases have.
func reckon(w *world) {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	held := map[string]uint32{}
	for _, e := range w.n.leases {
		for _, p := range e.l.Pieces {
			held[p.Drive] += p.Count
		}
	}
	for uuid, d := range w.n.drives {
		if taken := d.space.Size() - d.space.FreeCount(); taken != held[uuid] {
			w.t.Errorf("%d extents of drive %s are taken, and leases have %d", taken, d.j.Path, held[uuid])
		}
	}
}

// TestRandomLives lives lives that nobody thought of. A seed that failed is
// replayed with -hunt.seed.
func TestRandomLives(t *testing.T) {
	dir := t.TempDir()
	seeds := []uint64{*huntSeed}
	if *huntSeed == 0 {
		seeds = nil
		for range *huntLives {
			seeds = append(seeds, rand.Uint64())
		}
	}
	for _, seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, filepath.Join(dir, fmt.Sprint(seed)))
			defer w.stop()
			randomLife(w, rand.New(rand.NewPCG(seed, 0)))
			aftermath(w)
		})
		if t.Failed() {
			t.Fatalf("-hunt.seed=%d", seed)
		}
	}
}
