package engine

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"testing"

	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// TestL8NewerRecord: an engine that meets the record of a newer one takes nothing over
// and destroys nothing: the newer one comes back.
func TestL8NewerRecord(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	h.open(req)
	h.crash()()
	const at, size = 4096 + 256, 128 // of slot 1; docs/spec/volatile.md
	whole := make([]byte, 2*size)
	_, err := h.table.File().ReadAt(whole, at)
	check(t, err)
	for c := range 2 {
		newer := slices.Clone(whole)
		b := newer[c*size:][:size]
		b[120] = 1 // reserved
		binary.LittleEndian.PutUint32(b[size-4:], crc32.Checksum(b[:size-4], crc32.MakeTable(crc32.Castagnoli)))
		_, err = h.table.File().WriteAt(newer, at)
		check(t, err)
		h.next()
		if err := h.TakeOver(); !errors.Is(err, volatile.ErrFormat) {
			t.Errorf("copy %d: took over what it does not know: %v", c, err)
		}
		if h.keeper.keys.Empty(req.Slot) || h.keeper.mapped() != 1 {
			t.Fatal("L8: its key is destroyed, or its map is gone")
		}
		h.crash()()
	}
	_, err = h.table.File().WriteAt(whole, at)
	check(t, err)
	h.takeOver()
	if list := h.list().Leases; len(list) != 1 {
		t.Errorf("leases %+v", list)
	}
}

// TestOlderKeeper: until an upgrade is done nothing is opened or resized that the old
// keeper does not know; all else is.
func TestOlderKeeper(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	plain, guest := request(1, uuid, 0), request(2, uuid, 1)
	guest.Exports = vhostAlone
	h.keeper.set(func() { h.keeper.older = volatile.ErrVersion })
	h.open(plain)
	_, err := h.tryOpen(guest, 1)
	wantCode(t, err, ipc.CodeBusy)
	wantCode(t, h.resize(larger(plain, 1, 16)), ipc.CodeBusy)
	if rec, err := h.table.Get(guest.Slot); err != nil || rec != (volatile.Record{}) {
		t.Errorf("the slot says %+v, %v", rec, err)
	}
	h.keeper.set(func() { h.keeper.older = nil })
	check(t, h.resize(larger(plain, 1, 16)))
	h.open(guest)
}
