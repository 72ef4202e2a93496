package engine

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"testing"

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
