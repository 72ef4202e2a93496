package xts

import (
	"bytes"
	"testing"
)

// TestForced: whatever a processor has, each kernel serves the public calls, and
// reads what every other one wrote.
func TestForced(t *testing.T) {
	defer func(k kernel) { active = k }(active)
	r := newRand(t)
	key, msg := randomKey(r), randomBytes(r, 3*8192)
	for _, writer := range usable {
		active = writer
		if got := Implementation(); got != writer.String() {
			t.Errorf("Implementation() = %q, want %q", got, writer)
		}
		ws, sealed := newSchedule(t, key), make([]byte, len(msg))
		ws.Encrypt(sealed, msg, 4096, 6)
		for _, reader := range usable {
			active = reader
			rs, got := newSchedule(t, key), make([]byte, len(msg))
			if *rs != *ws {
				t.Errorf("%v and %v make different schedules", writer, reader)
			}
			if ws.Decrypt(got, sealed, 4096, 6); !bytes.Equal(got, msg) {
				t.Errorf("%v does not decrypt what %v encrypted", reader, writer)
			}
		}
	}
}
