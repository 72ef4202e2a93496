package engine

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// TestLife: a lease is opened, written through one connection and read through
// another, closed, and its space is zeros to the next.
func TestLife(t *testing.T) {
	for _, in := range []string{"/dev/shm", os.TempDir()} {
		t.Run(in, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(folder(t, in))
			req := request(3, uuid, 1)
			socket := h.open(req)
			c, _ := dial(t, socket, nbdclient.Options{NoBlockSize: true})
			if c.Size() != req.SizeBytes {
				t.Errorf("an export of %d bytes, want %d", c.Size(), req.SizeBytes)
			}
			want := bytes.Repeat([]byte("tenant a "), 100_000)
			_, err := c.WriteAt(want, 777)
			check(t, err)
			got := make([]byte, len(want))
			d, _ := dial(t, socket, nbdclient.Options{NoBlockSize: true})
			_, err = d.ReadAt(got, 777)
			check(t, err)
			if !bytes.Equal(got, want) {
				t.Error("another connection reads other bytes")
			}
			check(t, errors.Join(c.Close(), d.Close()))

			er, err := h.close(req.Lease)
			check(t, err)
			if !er.ReadBack || er.GateClosedNs == 0 || er.CiphersDoneNs < er.GateClosedNs || er.KeyDestroyedNs < er.CiphersDoneNs {
				t.Errorf("erasure %+v", er)
			}
			h.drained(req.Lease)
			req.Lease = leaseID(9)
			c, _ = dial(t, h.open(req), nbdclient.Options{})
			got = bytes.Repeat([]byte{1}, int(req.SizeBytes))
			_, err = c.ReadAt(got, 0)
			check(t, err)
			if !bytes.Equal(got, make([]byte, len(got))) {
				t.Error("L4: the next lease does not read as zeros")
			}
			check(t, c.Close())
		})
	}
}

// TestSpan: a lease over two drives uses both, and each only where its pieces
// lie.
func TestSpan(t *testing.T) {
	h := newHost(t)
	pathA, a := h.drive(h.dir)
	pathB, b := h.drive(h.dir)
	req := request(0, a, 0)
	req.Pieces = []extent.Piece{{Drive: a, Range: extent.Range{First: 4, Count: 3}}, {Drive: b, Range: extent.Range{First: 9, Count: 5}}}
	before := [2][]byte{readAll(t, pathA), readAll(t, pathB)}
	c, _ := dial(t, h.open(req), nbdclient.Options{})
	want := bytes.Repeat([]byte{0x5c}, int(req.SizeBytes))
	_, err := c.WriteAt(want, 0)
	check(t, err)
	got := make([]byte, len(want))
	_, err = c.ReadAt(got, 0)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("reads other bytes than were written")
	}
	check(t, c.Close())
	const data, ext = 1 << 20, 1 << 20
	for i, r := range []struct {
		path   string
		lo, hi int
	}{{pathA, 4, 7}, {pathB, 9, 14}} {
		after := readAll(t, r.path)
		lo, hi := data+r.lo*ext, data+r.hi*ext
		if !bytes.Equal(after[:lo], before[i][:lo]) || !bytes.Equal(after[hi:], before[i][hi:]) {
			t.Errorf("drive %d changed outside the lease's extents", i)
		}
		for at := lo; at < hi; at += ext {
			if bytes.Equal(after[at:at+ext], before[i][at:at+ext]) {
				t.Errorf("drive %d: the extent at %d is not used", i, at)
			}
		}
	}
}

func readAll(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	return b
}

// TestOpenFails fails the opening of a lease at each of its steps. Everything
// is taken back: nothing is left in the engine, the keeper, the lease table or
// the key's slot, no descriptor, no goroutine; and where the cause has gone the
// same opening succeeds.
func TestOpenFails(t *testing.T) {
	refused := errors.New("the keeper says no")
	tests := []struct {
		name  string
		set   func(h *host, req *ipc.LeaseOpenRequest) // the cause
		heal  func(h *host)                            // its end; nil: it does not
		file  func(h *host) *os.File                   // nil: a listening socket
		code  string                                   // empty: not a coded error
		text  string
		stays bool // a key that could not be overwritten: it and its map stay
	}{
		{name: "no listener", file: func(*host) *os.File { return nil }, code: ipc.CodeInvalid, text: "without its listening socket"},
		{name: "no socket", file: regular, text: "socket"},
		{name: "slot below", set: func(_ *host, r *ipc.LeaseOpenRequest) { r.Slot = -1 }, code: ipc.CodeInvalid, text: "slot -1"},
		{name: "slot above", set: func(_ *host, r *ipc.LeaseOpenRequest) { r.Slot = volatile.Slots }, code: ipc.CodeInvalid, text: "slot 1024"},
		{name: "id", set: func(_ *host, r *ipc.LeaseOpenRequest) { r.Lease = "NOT-A-LEASE-1890" }, code: ipc.CodeInvalid, text: "lease id"},
		{name: "size 0", set: size(0), code: ipc.CodeInvalid, text: "size 0"},
		{name: "size negative", set: size(-4096), code: ipc.CodeInvalid, text: "size -4096"},
		{name: "size odd", set: size(4097), code: ipc.CodeInvalid, text: "size 4097"},
		{name: "size over", set: size(1<<62 + 4096), code: ipc.CodeInvalid, text: "up to 2^62"},
		{name: "logical", set: func(_ *host, r *ipc.LeaseOpenRequest) { r.LogicalBlock = 1024 }, code: ipc.CodeInvalid, text: "1024"},
		{name: "drive missing", set: pieces("ff", 0, 8), code: ipc.CodeNotFound, text: "drive ff is not open"},
		{name: "no pieces", set: func(_ *host, r *ipc.LeaseOpenRequest) { r.Pieces = nil }, code: ipc.CodeInvalid, text: "lack 8388608"},
		{name: "pieces short", set: pieces("", 0, 7), code: ipc.CodeInvalid, text: "lack 1048576"},
		{name: "pieces long", set: pieces("", 0, 9), code: ipc.CodeInvalid, text: "more than"},
		{name: "pieces behind", set: pieces("", 0, 8, 9, 1), code: ipc.CodeInvalid, text: "behind the volume's end"},
		{name: "pieces outside", set: pieces("", 30, 8), code: ipc.CodeInvalid, text: "it has 32"},
		{name: "pieces wrap", set: pieces("", 1<<32-1, 8), code: ipc.CodeInvalid, text: "it has 32"},
		{name: "piece empty", set: pieces("", 0, 0, 0, 8), code: ipc.CodeInvalid, text: "no extents"},
		{name: "pieces twice", set: pieces("", 4, 4, 0, 5), code: ipc.CodeInvalid, text: "twice"},
		{
			name: "map refused", set: func(h *host, _ *ipc.LeaseOpenRequest) { h.keeper.mapErr = refused },
			heal: func(h *host) { h.keeper.mapErr = nil }, text: "the keeper says no",
		},
		{
			name: "map damaged", set: func(h *host, _ *ipc.LeaseOpenRequest) { h.keeper.badMap = true },
			heal: func(h *host) { h.keeper.badMap = false }, text: "block map",
		},
		{
			name: "record refused", set: func(h *host, _ *ipc.LeaseOpenRequest) { h.Engine.cfg.Generation = 0 },
			heal: func(h *host) { h.Engine.cfg.Generation = 1 }, text: "generation 0",
		},
		{
			name: "key stays", set: func(h *host, _ *ipc.LeaseOpenRequest) { h.keeper.wipeErr = refused },
			file: regular, text: "the keeper says no", stays: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			good := request(5, uuid, 0)
			req := good
			if tt.set != nil {
				tt.set(h, &req)
			}
			ignore, before := goleak.IgnoreCurrent(), files(t)
			var f *os.File
			if tt.file != nil {
				f = tt.file(h)
			} else {
				f, _ = h.listen()
			}
			_, err := do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, req, f)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error %v, want one that says %q", err, tt.text)
			}
			if tt.code != "" {
				wantCode(t, err, tt.code)
			}
			goleak.VerifyNone(t, ignore)
			kept := 0
			if tt.stays {
				kept = 1
			}
			if n := files(t); n != before+2*kept { // the keeper's
				t.Errorf("%d descriptors, %d before", n, before)
			}
			h.wantNothing(good.Slot, kept)
			if tt.stays {
				h.keeper.wipeErr = nil
				_, err = h.keeper.Wipe(good.Slot)
				check(t, errors.Join(err, h.keeper.Unmap(good.Slot)))
			}
			if tt.heal != nil {
				tt.heal(h)
			}
			h.open(good)
		})
	}
}

func regular(h *host) *os.File {
	f, err := os.CreateTemp(h.dir, "")
	check(h.t, err)
	return f
}

func size(n int64) func(*host, *ipc.LeaseOpenRequest) {
	return func(_ *host, r *ipc.LeaseOpenRequest) { r.SizeBytes = n }
}

// pieces are (first, count) pairs on a drive, or on the request's if uuid is
// empty.
func pieces(uuid string, firstCount ...uint32) func(*host, *ipc.LeaseOpenRequest) {
	return func(_ *host, r *ipc.LeaseOpenRequest) {
		if uuid == "" {
			uuid = r.Pieces[0].Drive
		}
		r.Pieces = nil
		for i := 0; i < len(firstCount); i += 2 {
			r.Pieces = append(r.Pieces, extent.Piece{Drive: uuid, Range: extent.Range{First: firstCount[i], Count: firstCount[i+1]}})
		}
	}
}

// wantNothing checks that nothing of an opening is left. kept is how many maps
// the keeper has all the same.
func (h *host) wantNothing(slot, kept int) {
	h.t.Helper()
	if n := len(h.list().Leases); n != 0 {
		h.t.Errorf("%d leases", n)
	}
	h.mu.Lock()
	if n := len(h.leases); n != 0 {
		h.t.Errorf("%d leases hold slot and space", n)
	}
	h.mu.Unlock()
	if n := h.keeper.mapped(); n != kept {
		h.t.Errorf("the keeper has %d maps, want %d", n, kept)
	}
	if empty := h.keeper.keys.Empty(slot); empty != (kept == 0) {
		h.t.Errorf("the key's slot is empty: %v", empty)
	}
	rec, err := h.table.Get(slot)
	free := rec == volatile.Record{} || rec.State == volatile.StateEnded
	if err != nil || free != (kept == 0) || !free && rec.State != volatile.StateOpening {
		h.t.Errorf("the lease table has %+v, %v", rec, err)
	}
}

// TestOpenOnDamagedTable: a slot whose record cannot be written takes no lease;
// another does, on the same space.
func TestOpenOnDamagedTable(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	h.damage(5)
	f, socket := h.listen()
	_, err := do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, request(5, uuid, 0), f)
	if !errors.Is(err, volatile.ErrDamaged) {
		t.Fatalf("error %v, want ErrDamaged", err)
	}
	if !h.keeper.keys.Empty(5) || h.keeper.mapped() != 0 {
		t.Errorf("the slot is empty: %v; the keeper has %d maps", h.keeper.keys.Empty(5), h.keeper.mapped())
	}
	if _, err := nbdclient.Dial(socket, nbdclient.Options{Timeout: time.Second}); err == nil {
		t.Error("a client is served by a lease that was not opened")
	}
	h.open(request(6, uuid, 0))
}

// damage overwrites the record of a slot in the lease table.
func (h *host) damage(slot int64) {
	h.t.Helper()
	const recordsAt, slotSize = 4096, 256 // docs/spec/volatile.md
	_, err := h.table.File().WriteAt(bytes.Repeat([]byte{0x5a}, slotSize), recordsAt+slotSize*slot)
	check(h.t, err)
}

// TestOpenBusy: what one lease holds, no other gets, until the first is gone.
func TestOpenBusy(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	first := request(1, uuid, 1)
	h.open(first)
	sameID, sameSlot, overlaps := request(2, uuid, 2), request(1, uuid, 2), request(2, uuid, 1)
	sameID.Lease, sameSlot.Lease = first.Lease, leaseID(8)
	overlaps.Pieces[0].First += 7
	for text, req := range map[string]ipc.LeaseOpenRequest{
		"is open already":                             sameID,
		"slot 1 still holds lease " + first.Lease:     sameSlot,
		"are still held by lease " + first.Lease:      overlaps,
		"extents 15-22 of drive " + uuid + " are sti": overlaps,
	} {
		f, _ := h.listen()
		_, err := do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, req, f)
		wantCode(t, err, ipc.CodeBusy)
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v, want one that says %q", err, text)
		}
	}
	if _, err := h.close(first.Lease); err != nil {
		t.Fatal(err)
	}
	h.drained(first.Lease)
	h.open(sameSlot)
}

// TestNoSuchLease: closing it is refused, and it has drained.
func TestNoSuchLease(t *testing.T) {
	h := newHost(t)
	_, err := h.close(leaseID(0))
	wantCode(t, err, ipc.CodeNotFound)
	_, err = do[ipc.Empty](h, ipc.MethodLeaseDrain, ipc.LeaseRef{Lease: leaseID(0)}, nil)
	check(t, err)
}
