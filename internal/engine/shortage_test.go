package engine

import (
	"errors"
	"syscall"
	"testing"

	"vacate/internal/blk"
	"vacate/internal/nbdclient"
)

// TestShortage: a host that is short of something is no damage. The engine ends,
// and the next one finds every lease as it was.
func TestShortage(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	l := request(1, uuid, 0)
	socket := h.open(l)
	h.crash()()
	for _, short := range []error{syscall.ENOMEM, syscall.EMFILE} {
		h.keeper.short = short
		h.next()
		if err := h.TakeOver(); !errors.Is(err, short) {
			t.Errorf("took over without: %v", err)
		}
		h.crash()()
	}
	h.keeper.short = nil
	h.takeOver()
	c, _ := dial(t, socket, nbdclient.Options{})
	check(t, errors.Join(c.WriteFlags(make([]byte, blk.BlockSize), 0, 0), c.Close()))
}
