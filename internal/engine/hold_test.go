package engine

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"testing"
	"time"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/keyshare"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// openHeld opens a lease as far as that it can be served.
func (h *host) openHeld(req ipc.LeaseOpenRequest) (paths []string, opened *ipc.LeaseOpened, err error) {
	h.t.Helper()
	req.Hold = true
	paths, v, err := h.openAnswer(req, socketsOf(req.Exports))
	return paths, v, err
}

func (h *host) serve(id string) error {
	h.t.Helper()
	_, err := do[ipc.Empty](h, ipc.MethodLeaseServe, ipc.LeaseRef{Lease: id}, nil)
	return err
}

func (h *host) status(id string) (ipc.LeaseStatus, bool) {
	h.t.Helper()
	for _, l := range h.list().Leases {
		if l.Lease == id {
			return l, true
		}
	}
	return ipc.LeaseStatus{}, false
}

// TestL6HeldServesNothing: a lease that is held answers no client, whatever its
// exports, and is listed as held. Served, it answers who came before, and goes on as
// any other; asked again, serving changes nothing.
func TestL6HeldServesNothing(t *testing.T) {
	for name, x := range map[string]ipc.Exports{"NBD": {}, "both": both} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			req := request(3, uuid, 0)
			req.Exports = x
			paths, opened, err := h.openHeld(req)
			check(t, err)
			if l, ok := h.status(req.Lease); !ok || !l.Held || l.Erased {
				t.Fatalf("H2: a held lease is listed as %+v, %v", l, ok)
			}
			if opened.KeyGeneratedNs <= 0 || h.keeper.keys.Empty(req.Slot) {
				t.Fatalf("it was opened without a key: %+v", opened)
			}
			_, _, err = h.openHeld(request(3, uuid, 0))
			wantCode(t, err, ipc.CodeBusy)
			_, err = do[ipc.Empty](h, ipc.MethodLeaseLimit, ipc.LeaseLimitRequest{Lease: req.Lease}, nil)
			wantCode(t, err, ipc.CodeBusy)
			_, err = do[ipc.Empty](h, ipc.MethodLeaseResize, ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: req.SizeBytes, Pieces: req.Pieces}, nil)
			wantCode(t, err, ipc.CodeBusy)
			_, err = do[ipc.LeaseRaw](h, ipc.MethodLeaseRaw, ipc.LeaseRawRequest{Lease: req.Lease, Blocks: []uint64{0}}, nil)
			wantCode(t, err, ipc.CodeBusy)

			early := make(chan error, 1)
			go func() {
				c, err := nbdclient.Dial(paths[0], nbdclient.Options{NoBlockSize: true})
				if err == nil {
					_, err = c.WriteAt(make([]byte, 4096), 0)
					c.Abort()
				}
				early <- err
			}()
			select {
			case err := <-early:
				t.Fatalf("H3: a client was answered before the lease was served: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			check(t, h.serve(req.Lease))
			check(t, <-early)
			check(t, h.serve(req.Lease))
			if l, ok := h.status(req.Lease); !ok || l.Held {
				t.Errorf("a served lease is listed as %+v, %v", l, ok)
			}
			h.restart()
			check(t, h.serve(req.Lease)) // the answer may have been lost
			c, _ := dial(t, paths[0], nbdclient.Options{Timeout: time.Minute})
			check(t, c.WriteFlags(make([]byte, 4096), 0, 0))
			if _, err := h.close(req.Lease); err != nil {
				t.Error(err)
			}
			wantCode(t, h.serve(req.Lease), ipc.CodeNotFound)
		})
	}
}

// TestHeldIsClosed: a lease that is held closes as any other, and what it held is
// free.
func TestHeldIsClosed(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(0, uuid, 0)
	for range 3 {
		_, _, err := h.openHeld(req)
		check(t, err)
		er, err := h.close(req.Lease)
		if err != nil || !er.ReadBack || er.KeyDestroyedNs < er.GateClosedNs {
			t.Fatalf("closing a held lease: %+v, %v", er, err)
		}
		h.drained(req.Lease)
		if !h.keeper.keys.Empty(req.Slot) {
			t.Fatal("L5: its key is there")
		}
		wantCode(t, h.serve(req.Lease), ipc.CodeNotFound)
		req.Lease = leaseID(len(req.Lease) + req.Slot)
		req.Slot++
	}
	before := files(t)
	_, _, err := h.openHeld(req)
	check(t, err)
	_, err = h.close(req.Lease)
	check(t, err)
	h.drained(req.Lease)
	if n := files(t); n != before {
		t.Errorf("%d descriptors before, %d after", before, n)
	}
}

// TestL8HeldIsTakenBack: an engine that ends between the two steps leaves no key, no
// map and no lease: the next one takes all of it back.
func TestL8HeldIsTakenBack(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(5, uuid, 0)
	_, _, err := h.openHeld(req)
	check(t, err)
	h.restart()
	if _, ok := h.status(req.Lease); ok || !h.keeper.keys.Empty(req.Slot) {
		t.Errorf("L8: a held lease is there after a take-over, or its key")
	}
	wantCode(t, h.serve(req.Lease), ipc.CodeNotFound)
	_, err = h.close(req.Lease)
	wantCode(t, err, ipc.CodeNotFound)
	rec, err := h.table.Get(req.Slot)
	if err != nil || rec.State != volatile.StateEmpty {
		t.Errorf("its slot: %+v, %v", rec, err)
	}
	eventually(t, "the drive", func() bool { return len(h.openDrives()) == 1 })
	h.open(req) // slot, space and id are free
}

// TestL8HeldEveryPoint ends an engine at each point of an opening in two steps. Who
// takes over finds a lease that was told to be served wholly there, and one that was
// not wholly gone: the point after the slot says open decides.
func TestL8HeldEveryPoint(t *testing.T) {
	for _, p := range []fail.Point{fail.OpenMapped, fail.OpenKeyed, fail.OpenHeld, fail.OpenWritten} {
		t.Run(string(p), func(t *testing.T) {
			c := newCut(p, 0)
			h := newHost(t, func(cfg *Config) { cfg.at = c.pass })
			path, uuid := h.drive(h.dir)
			req := request(1, uuid, 0)
			var held, served bool
			c.until(func(context.Context) {
				_, _, err := h.openHeld(req)
				held = err == nil
				served = held && h.serve(req.Lease) == nil
			})
			h.die()
			h.cfg.at = nil
			h.takeOver()
			_, err := h.openDriveAt(path, uuid, 1, 1)
			check(t, err)
			all := map[string]ipc.LeaseStatus{}
			for _, l := range h.list().Leases {
				all[l.Lease] = l
			}
			h.wantWhole(req, p == fail.OpenWritten, false, all)
			if served || held != (p == fail.OpenWritten) {
				t.Errorf("cut at %s, and it was held: %v, served: %v", p, held, served)
			}
			if l := all[req.Lease]; l.Held {
				t.Errorf("H1: a lease that was taken over is held: %+v", l)
			}
			if p == fail.OpenWritten {
				check(t, h.serve(req.Lease))
			}
		})
	}
}

// TestServeFails: a lease whose exports do not start is held still, serves nobody,
// and is closed.
func TestServeFails(t *testing.T) {
	for name, instead := range map[string]func(t *testing.T) *os.File{
		"no socket": func(*testing.T) *os.File { return nil },
		"another file": func(t *testing.T) *os.File {
			f, err := os.CreateTemp(t.TempDir(), "")
			check(t, err)
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			req := request(2, uuid, 0)
			_, _, err := h.openHeld(req)
			check(t, err)
			h.keeper.set(func() {
				slot := h.keeper.slots[req.Slot]
				check(t, slot.listener.Close())
				slot.listener = instead(t)
			})
			if err := h.serve(req.Lease); err == nil {
				t.Fatal("it is served without a socket")
			}
			if l, ok := h.status(req.Lease); !ok || !l.Held {
				t.Errorf("after that it is listed as %+v, %v", l, ok)
			}
			wantCode(t, h.serve(req.Lease), ipc.CodeBusy)
			er, err := h.close(req.Lease)
			if err != nil || !er.ReadBack {
				t.Errorf("closing it: %+v, %v", er, err)
			}
			h.drained(req.Lease)
		})
	}
}

// TestKeyCommitment: what an opening answers is the commitment to the key in the
// slot, with a salt of its own.
func TestKeyCommitment(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	seen := map[string]bool{}
	for slot := range 3 {
		req := request(slot, uuid, uint32(slot))
		_, opened, err := h.openHeld(req)
		check(t, err)
		salt, err := hex.DecodeString(opened.KeySalt)
		check(t, err)
		key := (*[keyshare.KeySize]byte)(h.keeper.keys.Slot(slot))
		want := keyshare.CommitKey(req.Lease, (*[keyshare.KeySaltSize]byte)(salt), key)
		if opened.KeyCommit != want || opened.KeyMode != ipc.KeyModeNode || opened.NodeCommit+opened.ShareCommit != "" {
			t.Errorf("%+v, want the commitment %s alone", opened, want)
		}
		if seen[opened.KeySalt] || bytes.Equal(salt, make([]byte, len(salt))) {
			t.Errorf("salt %s came before, or is none", opened.KeySalt)
		}
		seen[opened.KeySalt] = true
	}
}
