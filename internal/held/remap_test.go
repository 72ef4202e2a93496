package held

import (
	"syscall"
	"testing"

	"vacate/internal/volatile"
)

// TestRemap: another map takes the place of the one that is held, and nothing else
// changes.
func TestRemap(t *testing.T) {
	h, keys := newHeld(t)
	remap := volatile.Message{Kind: volatile.KindRemap, Slot: 7}
	refused, client := pipe(t)
	h.say(t, syscall.ENOENT, remap, refused)
	ended(t, client)
	h.say(t, 0, volatile.Message{Kind: volatile.KindMap, Slot: 7, Blocks: 1, Lease: lease, Arg: 1}, nil)
	listener, _ := pipe(t)
	h.say(t, 0, volatile.Message{Kind: volatile.KindHold, Slot: 7}, listener)
	copy(keys.Slot(7), "secret")
	defer keys.Wipe(7) //nolint:errcheck // so that what is held can be given back

	for range 2 {
		bits, err := volatile.CreateMap(2, 1, lease)
		if err != nil {
			t.Fatal(err)
		}
		h.say(t, 0, remap, bits)
		if _, got := h.say(t, 0, volatile.Message{Kind: volatile.KindFetch, Slot: 7, Arg: volatile.FetchMap}, nil); got != bits {
			t.Error("another map is held than the one that was given")
		}
	}
	if _, got := h.say(t, 0, volatile.Message{Kind: volatile.KindFetch, Slot: 7, Arg: volatile.FetchListener}, nil); got != listener {
		t.Error("the listening socket is not held any more")
	}
	if h.maps != 1 || keys.Empty(7) {
		t.Errorf("%d maps, key gone %v", h.maps, keys.Empty(7))
	}
}
