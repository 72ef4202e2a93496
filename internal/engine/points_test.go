package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// A cut ends an engine at a point: whatever of it comes to the point, or to any
// other one later, goes no further.
type cut struct {
	mu      sync.Mutex
	at      fail.Point
	left    int // how often the point is passed before
	reached chan struct{}
}

func (c *cut) pass(p fail.Point) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.reached:
		runtime.Goexit()
	default:
	}
	if p == c.at {
		if c.left--; c.left < 0 {
			close(c.reached)
			runtime.Goexit()
		}
	}
}

func newCut(at fail.Point, after int) *cut {
	return &cut{at: at, left: after, reached: make(chan struct{})}
}

// life opens drives and leases, writes to one, closes the other, and opens one in
// the slot of that: as far as it gets. It says how far.
type life struct {
	drive                  bool
	kept, closed, reopened bool
	written                bool
	erasure                *ipc.Erasure
}

// until runs fn until it ends, or the cut is reached and fn, whose context is
// done then, has ended.
func (c *cut) until(fn func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); fn(ctx) }()
	select {
	case <-ended:
		return
	case <-c.reached:
	}
	cancel()
	<-ended
}

// TestL8EveryPoint ends an engine at every point of opening a drive, opening,
// closing and closing again, and one that takes over at each of that. What was
// answered holds with the next engine: a lease that was opened has its bytes, one
// whose close was answered has no key, and one that was neither is wholly there or
// wholly gone. A second cut strikes the first take-over.
func TestL8EveryPoint(t *testing.T) {
	points := []fail.Point{
		fail.DriveNoted, fail.OpenMapped, fail.OpenKeyed, fail.OpenHeld, fail.OpenWritten, fail.CloseNoted, fail.CloseShut,
		fail.CloseWiped, fail.CloseErased, fail.CloseDrained, fail.CloseEnded,
	}
	again := []fail.Point{"", fail.EngineScanned, fail.EngineUp, fail.EngineFenced, fail.EngineServing}
	for _, p := range points {
		for nth := range 2 {
			for _, second := range again {
				t.Run(string(p)+"+"+string(second), func(t *testing.T) { cutAt(t, p, nth, second) })
				if testing.Short() {
					break
				}
			}
		}
	}
}

func cutAt(t *testing.T, p fail.Point, nth int, second fail.Point) {
	c := newCut(p, nth)
	h := newHost(t, func(cfg *Config) { cfg.at = c.pass })
	path, uuid := h.enrolled(h.dir)
	kept, closed, reopened := request(1, uuid, 0), request(2, uuid, 1), request(2, uuid, 2)
	reopened.Lease = leaseID(7)
	kept.Exports, closed.Exports, reopened.Exports = both, both, vhostAlone
	var did life
	var socket string
	want := bytes.Repeat([]byte{0x3c}, 50_000)
	c.until(func(ctx context.Context) {
		_, err := h.openDrive(ctx, &ipc.DriveOpenRequest{Path: path, Node: nodeID, UUID: uuid, Epoch: 1, NewEpoch: 2})
		if did.drive = err == nil; !did.drive {
			return
		}
		socket = h.open(kept)
		did.kept = true
		nc, err := nbdclient.Dial(socket, nbdclient.Options{NoBlockSize: true})
		if err == nil {
			_, err = nc.WriteAt(want, 12_345)
			nc.Abort()
		}
		did.written = err == nil
		h.open(closed)
		did.closed = true
		if did.erasure, err = h.close(closed.Lease); err != nil {
			t.Error(err)
		}
		if _, err := h.drain(ctx, closed.Lease); err != nil {
			return
		}
		h.open(reopened)
		did.reopened = true
	})
	select {
	case <-c.reached:
	default:
		if nth == 0 {
			t.Fatalf("the point was not reached: %+v", did)
		}
	}
	h.die()
	h.cfg.at = nil
	if second != "" {
		h.cutTakeOver(newCut(second, 0))
	}
	h.takeOver()

	if _, err := h.openDriveAt(path, uuid, 2, 2); err != nil { // as control does
		t.Fatalf("L8: the drive: %v", err)
	}
	held := map[string]ipc.LeaseStatus{}
	for _, l := range h.list().Leases {
		held[l.Lease] = l
	}
	for _, l := range []struct {
		req  ipc.LeaseOpenRequest
		did  bool
		gone bool // its close was answered
	}{{kept, did.kept, false}, {closed, did.closed, did.erasure != nil}, {reopened, did.reopened, false}} {
		h.wantWhole(l.req, l.did && !l.gone && l.req.Lease != closed.Lease, l.gone, held)
	}
	if slot, err := h.table.Get(closed.Slot); err != nil {
		t.Error(err)
	} else if did.erasure != nil && slot.Lease.String() == closed.Lease {
		er, err := h.close(closed.Lease)
		if err != nil || er.KeyDestroyedNs != did.erasure.KeyDestroyedNs || er.GateClosedNs != did.erasure.GateClosedNs || !er.ReadBack {
			t.Errorf("L8: closed again: %+v, %v; it was answered %+v", er, err, did.erasure)
		}
	}
	if did.written {
		nc, _ := dial(t, socket, nbdclient.Options{NoBlockSize: true})
		got := make([]byte, len(want))
		_, err := nc.ReadAt(got, 12_345)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("L8: the lease reads other bytes: %v", err)
		}
	}
}

// wantWhole checks that a lease is wholly there, or wholly gone. must: it has to
// be there. gone: it must not have a key.
func (h *host) wantWhole(req ipc.LeaseOpenRequest, must, gone bool, held map[string]ipc.LeaseStatus) {
	h.t.Helper()
	rec, err := h.table.Get(req.Slot)
	check(h.t, err)
	l, there := held[req.Lease]
	switch {
	case must && (!there || l.Erased):
		h.t.Errorf("L8: lease %s was opened, and its engine's successor holds %+v", req.Lease, held)
	case gone && there && !l.Erased:
		h.t.Errorf("L5: the close of lease %s was answered, and it is open again", req.Lease)
	}
	mine := rec.Lease.String() == req.Lease
	if there && !l.Erased && (!mine || rec.State != volatile.StateOpen || h.keeper.keys.Empty(req.Slot)) {
		h.t.Errorf("L8: lease %s is there, its slot says %+v, and the key is gone: %v", req.Lease, rec, h.keeper.keys.Empty(req.Slot))
	}
	if mine && (!there || l.Erased) && (!h.keeper.keys.Empty(req.Slot) || rec.State == volatile.StateOpening || rec.State == volatile.StateClosing) {
		h.t.Errorf("L5: lease %s is gone, its slot says %+v, and the key is gone: %v", req.Lease, rec, h.keeper.keys.Empty(req.Slot))
	}
}

// cutTakeOver starts an engine that ends at a point of its take-over, or where
// the point is not on its way, a little later.
func (h *host) cutTakeOver(c *cut) {
	h.cfg.at = c.pass
	h.next()
	h.cfg.at = nil
	c.until(func(context.Context) {
		if err := h.TakeOver(); err != nil {
			h.t.Error(err)
		}
		time.Sleep(10 * time.Millisecond)
	})
	h.die()
}

// die is a crash, and closes what goroutines held that were cut off: with the
// process, the kernel would.
func (h *host) die() {
	h.t.Helper()
	h.crash()()
	all, err := os.ReadDir("/proc/self/fd")
	check(h.t, err)
	for _, f := range all {
		path, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err == nil && strings.HasPrefix(path, h.dir) {
			fd, err := strconv.Atoi(f.Name())
			check(h.t, errors.Join(err, syscall.Close(fd)))
		}
	}
	h.unmap()
}

// unmap ends the mappings of drives: each holds a fence as a descriptor does.
func (h *host) unmap() {
	h.t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	check(h.t, err)
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if strings.Contains(line, h.dir) {
			_, err := fmt.Sscanf(line, "%x-%x ", &from, &to)
			check(h.t, err)
			if _, _, errno := syscall.Syscall(syscall.SYS_MUNMAP, from, to-from, 0); errno != 0 {
				h.t.Fatalf("unmapping %s: %v", line, errno)
			}
		}
	}
}
