package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/sys"
	"vacate/internal/volatile"
)

// loaded runs a load that checks every byte of a lease, through breaks of its
// connections, until stop is called.
func loaded(t *testing.T, socket, lease string, seed uint64) (stop func() nbdclient.Report) {
	t.Helper()
	v := nbdclient.Verify{Target: socket, Lease: lease, Seed: seed, Connections: 2, Depth: 8, MaxRequest: 300 << 10, Patience: 20 * time.Second}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan nbdclient.Report, 1)
	go func() {
		report, err := v.Run(ctx)
		if err = errors.Join(err, report.Err()); err != nil {
			t.Errorf("L8: lease %s, seed %d: %v", lease, seed, err)
		}
		ended <- report
	}()
	return func() nbdclient.Report { cancel(); return <-ended }
}

// TestL8EveryByte kills engine after engine under load: no client reads a byte
// that it did not write, none is lost, no lease ends. One of the leases lies on
// two drives.
func TestL8EveryByte(t *testing.T) {
	h := newHost(t)
	_, a := h.drive(h.dir)
	_, b := h.drive(folder(t, os.TempDir()))
	both := request(3, a, 2)
	both.Pieces = []extent.Piece{{Drive: a, Range: extent.Range{First: 16, Count: 3}}, {Drive: b, Range: extent.Range{First: 9, Count: 5}}}
	reqs := []ipc.LeaseOpenRequest{request(1, a, 0), request(2, b, 0), both}
	reqs[1].LogicalBlock = 4096
	var stops []func() nbdclient.Report
	for i, req := range reqs {
		stops = append(stops, loaded(t, h.open(req), req.Lease, uint64(i)))
	}
	kills := 12
	if testing.Short() {
		kills = 4
	}
	for range kills {
		eventually(t, "all leases to be served", func() bool { return len(h.stats().Leases) == len(reqs) })
		time.Sleep(50 * time.Millisecond)
		h.restart()
		if n := len(h.list().Leases); n != len(reqs) {
			t.Fatalf("L8: %d leases are left of %d", n, len(reqs))
		}
	}
	for _, stop := range stops {
		report := stop()
		if t.Log(report.String()); report.Reconnects == 0 || report.Requests < 20 {
			t.Errorf("this load has seen nothing: %v", report.String())
		}
	}
	if h.keeper.ups != kills+1 {
		t.Errorf("the keeper was told %d times, want %d", h.keeper.ups, kills+1)
	}
	for _, req := range reqs {
		er, err := h.close(req.Lease)
		if err != nil || !er.ReadBack {
			t.Errorf("closing lease %s: %+v, %v", req.Lease, er, err)
		}
		h.drained(req.Lease)
	}
	h.wantNothing(1, 0)
}

// TestL8Written: after a take-over what was written is written, the rest reads
// as zeros, and what a successor writes is not lost either.
func TestL8Written(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa7}, driveSize-3<<20), 1<<20) // what the drive holds from before
	check(t, errors.Join(err, f.Close()))
	req := request(0, uuid, 0)
	socket := h.open(req)
	want := make([]byte, req.SizeBytes)
	for round := range 4 {
		c, _ := dial(t, socket, nbdclient.Options{NoBlockSize: true})
		part := bytes.Repeat([]byte{byte(round + 1)}, 100_000)
		at := int64(round) * 1_500_000
		_, err := c.WriteAt(part, at)
		check(t, errors.Join(err, c.Trim(at+5000, 40_000, 0)))
		copy(want[at:], part)
		clear(want[at+5000 : at+45_000])
		written := h.stats().Leases[0].Written
		h.restart()
		c, _ = dial(t, socket, nbdclient.Options{})
		got := make([]byte, len(want))
		_, err = c.ReadAt(got, 0)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Fatalf("L8: after take-over %d the lease reads other bytes", round+1)
		}
		check(t, c.Close())
		in := h.tenancy(req.Lease)
		in.mu.Lock()
		in.path.blocks.Count(t.Context())
		in.mu.Unlock()
		if n := h.stats().Leases[0].Written; n != written {
			t.Errorf("%d bytes are written, before the take-over %d", n, written)
		}
	}
}

// lockedBy takes the fence of a drive, as I/O in flight of an engine that died
// does.
func lockedBy(t *testing.T, path string) (release func()) {
	t.Helper()
	fd, err := sys.OpenStorage(path, 0)
	check(t, err)
	if errno := sys.LockExclusive(fd); errno != 0 {
		t.Fatal(errno)
	}
	return func() { check(t, sys.CloseFD(fd)) }
}

// TestL8FenceFirst: until the fence of a lease's drives is held, nothing of it is
// served and its drive is neither read nor written; a lease on another drive is
// served meanwhile. The bug plant.FenceOff makes this fail.
func TestL8FenceFirst(t *testing.T) {
	h := newHost(t)
	path, held := h.drive(h.dir)
	_, free := h.drive(h.dir)
	waits, goesOn := request(0, held, 0), request(1, free, 0)
	s0, s1 := h.open(waits), h.open(goesOn)
	want := bytes.Repeat([]byte{7}, 4096)
	for _, s := range []string{s0, s1} {
		c, _ := dial(t, s, nbdclient.Options{})
		check(t, c.WriteFlags(want, 8192, 0))
	}
	h.crash()()
	release := lockedBy(t, path)
	w := watch(t, path)
	h.takeOver()
	if n := len(h.list().Leases); n != 2 {
		t.Errorf("%d leases, want both", n)
	}
	got := make([]byte, 4096)
	c, _ := dial(t, s1, nbdclient.Options{})
	check(t, c.ReadFlags(got, 8192, 0))
	if !bytes.Equal(got, want) {
		t.Error("L8: the lease that is served reads other bytes")
	}
	type answer struct {
		err error
		at  time.Time
	}
	answered := make(chan answer, 1)
	go func() { // its connection waits in the backlog
		c, err := nbdclient.Dial(s0, nbdclient.Options{})
		if err == nil {
			err = errors.Join(c.ReadFlags(got, 8192, 0), c.Close())
		}
		answered <- answer{err, time.Now()}
	}()
	eventually(t, "the engine to try", func() bool { opened, _, _ := w.counts(); return opened > 0 })
	time.Sleep(50 * time.Millisecond)
	if _, read, written := w.counts(); read+written > 0 {
		t.Errorf("L8: %d reads and %d writes before the fence is held", read, written)
	}
	if len(h.stats().Leases) != 1 {
		t.Errorf("L8: served before the fence is held: %+v", h.stats().Leases)
	}
	released := time.Now()
	release()
	if a := <-answered; a.err != nil || a.at.Before(released) {
		t.Errorf("L8: answered %v after the fence was had, %v", a.at.Sub(released), a.err)
	}
	if !bytes.Equal(got, want) {
		t.Error("L8: the lease that waited reads other bytes")
	}
}

// TestL8CloseBeforeTheFence: a lease that waits for its drives is closed at once;
// it has drained only when their fences have been held.
func TestL8CloseBeforeTheFence(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	req := request(5, uuid, 0)
	socket := h.open(req)
	h.crash()()
	release := lockedBy(t, path)
	h.takeOver()
	first, err := h.close(req.Lease)
	check(t, err)
	if !first.ReadBack || first.Drained || !h.keeper.keys.Empty(req.Slot) ||
		first.GateClosedNs == 0 || first.KeyDestroyedNs < first.GateClosedNs {
		t.Errorf("close before the fence: %+v", first)
	}
	h.wantErased(req)
	h.crash()()
	h.takeOver() // erased, and the fence is not held yet
	h.wantErased(req)
	if _, err := nbdclient.Dial(socket, nbdclient.Options{Timeout: 50 * time.Millisecond}); err == nil {
		t.Error("a client is served by a lease that was closed")
	}
	release()
	h.drained(req.Lease)
	h.wantNothing(req.Slot, 0)
	again, err := h.close(req.Lease)
	check(t, err)
	if first.Drained = true; *again != *first {
		t.Errorf("closed again: %+v, first %+v", again, first)
	}
}

// TestL8ErasedHoldsItsSpace: an engine dies while requests of an erased lease are
// in flight. Its successor lends the space to nobody, and says that the lease has
// drained, only when it has held the fence. The bug plant.TakeoverDrained makes
// this fail.
func TestL8ErasedHoldsItsSpace(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	h.open(req)
	answer := h.hang(req.Lease)
	first, err := h.close(req.Lease)
	check(t, err)
	release := h.crash()
	h.takeOver()
	time.Sleep(30 * time.Millisecond)
	if list := h.list().Leases; !reflect.DeepEqual(list, []ipc.LeaseStatus{{Lease: req.Lease, Slot: req.Slot, Erased: true, SizeBytes: req.SizeBytes}}) {
		t.Fatalf("L8: I/O of the dead engine is in flight, and its successor holds %+v", list)
	}
	h.wantErased(req)
	answer()
	release()
	h.drained(req.Lease)
	again, err := h.close(req.Lease)
	check(t, err)
	if first.Drained = true; *again != *first {
		t.Errorf("closed by the successor: %+v, by the one that died %+v", again, first)
	}
	req.Lease = leaseID(9)
	h.open(req)
}

// TestL8Slots puts the lease table into each state by hand, as an engine leaves
// it that dies there.
func TestL8Slots(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	reqs := make([]ipc.LeaseOpenRequest, 4)
	for slot := range reqs {
		reqs[slot] = request(slot, uuid, uint32(slot))
		h.open(reqs[slot])
	}
	put := func(slot int, change func(*volatile.Record)) {
		t.Helper()
		rec, err := h.table.Get(slot)
		check(t, err)
		change(&rec)
		check(t, h.table.Put(slot, rec))
	}
	h.crash()()
	before := sys.BoottimeNs()
	put(0, func(r *volatile.Record) { r.State = volatile.StateOpening })
	put(1, func(r *volatile.Record) { r.State = volatile.StateClosing })
	put(2, func(r *volatile.Record) { r.State, r.GateClosedNs, r.CiphersDoneNs = volatile.StateClosing, 11, 12 })
	copy(h.keeper.keys.Slot(77), "a key without a lease")
	h.takeOver()

	if _, err := h.close(reqs[0].Lease); err == nil {
		t.Error("an opening that nobody was told of was taken over")
	}
	if rec, err := h.table.Get(0); err != nil || rec != (volatile.Record{}) {
		t.Errorf("the slot of an opening says %+v, %v", rec, err)
	}
	one, err := h.close(reqs[1].Lease)
	if err != nil || one.GateClosedNs < before || one.CiphersDoneNs < one.GateClosedNs || one.KeyDestroyedNs < one.CiphersDoneNs || !one.ReadBack {
		t.Errorf("closing, no times noted: %+v, %v", one, err)
	}
	two, err := h.close(reqs[2].Lease)
	if err != nil || two.GateClosedNs != 11 || two.CiphersDoneNs != 12 || two.KeyDestroyedNs < before || !two.ReadBack {
		t.Errorf("closing, times noted: %+v, %v", two, err)
	}
	for _, slot := range []int{0, 1, 2, 77} {
		if !h.keeper.keys.Empty(slot) {
			t.Errorf("L5: slot %d has a key after the take-over", slot)
		}
	}
	if h.keeper.keys.Empty(3) {
		t.Fatal("L8: the open lease has lost its key")
	}
	h.drained(reqs[1].Lease)
	h.drained(reqs[2].Lease)
	if n := h.keeper.mapped(); n != 1 {
		t.Errorf("the keeper has %d maps, want the open lease's", n)
	}

	h.restart() // ended is remembered over engines, until the slot is used again
	for _, want := range []*ipc.Erasure{one, two} {
		want.Drained = true
	}
	for i, want := range []*ipc.Erasure{one, two} {
		if er, err := h.close(reqs[1+i].Lease); err != nil || *er != *want {
			t.Errorf("of a lease that ended two engines ago: %+v, %v; want %+v", er, err, want)
		}
	}
	reuse := reqs[1]
	reuse.Lease = leaseID(20)
	eventually(t, "the drive", func() bool { return len(h.openDrives()) == 1 })
	h.open(reuse)
	h.restart()
	_, err = h.close(reqs[1].Lease)
	wantCode(t, err, ipc.CodeNotFound)
	if _, err := h.close(reqs[2].Lease); err != nil {
		t.Errorf("the other ending: %v", err)
	}
	if n := len(h.list().Leases); n != 2 {
		t.Errorf("%d leases, want 2", n)
	}
}

// TestL8Ended: an erased slot without a map has drained before its engine died.
func TestL8Ended(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	req := request(2, uuid, 0)
	h.open(req)
	er, err := h.close(req.Lease)
	check(t, err)
	h.drained(req.Lease)
	h.crash()()
	rec, err := h.table.Get(req.Slot)
	check(t, err)
	if rec.State != volatile.StateEnded {
		t.Fatalf("a lease that has drained is %v", rec.State)
	}
	rec.State = volatile.StateErased
	check(t, h.table.Put(req.Slot, rec))
	defer lockedBy(t, path)()
	h.takeOver()
	again, err := h.close(req.Lease)
	if er.Drained = true; err != nil || *again != *er {
		t.Errorf("%+v, %v; want %+v", again, err, er)
	}
	h.wantNothing(req.Slot, 0)
}

// TestKeysWithoutLease: keys that nobody knows are destroyed, many at once, and
// control is told that something may be gone.
func TestKeysWithoutLease(t *testing.T) {
	h := newHost(t)
	h.crash()()
	for slot := range 40 {
		copy(h.keeper.keys.Slot(slot), "a key without a lease")
	}
	h.takeOver()
	for slot := range 40 {
		if !h.keeper.keys.Empty(slot) {
			t.Errorf("slot %d has a key", slot)
		}
	}
	hello, err := h.Handle(t.Context(), ipc.MethodHello, nil, nil)
	if got := hello.(ipc.Hello).Emptied; err != nil || got != h.cfg.Generation {
		t.Errorf("emptied in generation %d, want %d; %v", got, h.cfg.Generation, err)
	}
}

// TestDamaged: what cannot be taken over is given up, slot by slot, and its key
// with it; the others go on.
func TestDamaged(t *testing.T) {
	for name, spoil := range map[string]func(h *host, slot int){
		"record": func(h *host, slot int) { h.damage(int64(slot)) },
		"map": func(h *host, slot int) {
			_, err := h.keeper.slots[slot].bits.WriteAt([]byte("x"), 100)
			check(h.t, err)
		},
		"extents": func(h *host, slot int) {
			_, err := h.keeper.slots[slot].bits.WriteAt([]byte("x"), 4096)
			check(h.t, err)
		},
		"no map": func(h *host, slot int) {
			h.keeper.slots[slot].close()
			delete(h.keeper.slots, slot)
		},
		"no socket": func(h *host, slot int) {
			h.keeper.slots[slot].listener.Close()
			h.keeper.slots[slot].listener = nil
		},
		"no key": func(h *host, slot int) { check(h.t, h.keeper.keys.Wipe(slot)) },
		"another's map": func(h *host, slot int) {
			rec, err := h.table.Get(slot)
			check(h.t, err)
			rec.Lease, err = volatile.ParseLeaseID(leaseID(25))
			check(h.t, errors.Join(err, h.table.Put(slot, rec)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			good, bad := request(1, uuid, 0), request(2, uuid, 1)
			socket := h.open(good)
			h.open(bad)
			before := files(t)
			h.crash()()
			spoil(h, bad.Slot)
			h.takeOver()
			c, _ := dial(t, socket, nbdclient.Options{})
			check(t, errors.Join(c.WriteFlags(make([]byte, blk.BlockSize), 0, 0), c.Close()))
			if list := h.list().Leases; len(list) != 1 || list[0].Lease != good.Lease {
				t.Errorf("leases %+v, want %s alone", list, good.Lease)
			}
			if !h.keeper.keys.Empty(bad.Slot) || h.keeper.mapped() != 1 {
				t.Errorf("the slot is empty: %v; the keeper has %d maps, want 1", h.keeper.keys.Empty(bad.Slot), h.keeper.mapped())
			}
			_, err := h.close(bad.Lease)
			wantCode(t, err, ipc.CodeNotFound)
			if name != "record" {
				eventually(t, "the drive", func() bool { return len(h.openDrives()) == 1 })
				h.open(bad)
			}
			eventually(t, "descriptors to be closed", func() bool { return files(t) <= before })
		})
	}
}
