//go:build !purego

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

// assemblyCalls are calls of the assembly itself: Go code that ran between it and
// the look at the registers could use them for something else.
func (c *residueCase) assemblyCalls() map[string]func() {
	blocks, units := c.unit/blockSize, len(c.plain)/c.unit
	m := map[string]func(){"clearVectors": clearVectors}
	for _, k := range usable {
		enc, dec := encryptAESNI, decryptAESNI
		switch k {
		case kernelGeneric:
			continue
		case kernelVAES:
			enc, dec = encryptVAES, decryptVAES
		case kernelAVX512:
			enc, dec = encryptAVX512, decryptAVX512
		case kernelAESNI:
			m["assembly expand"] = func() { expandAESNI(c.s, c.key) }
		}
		m["assembly encrypt "+k.String()] = func() { enc(c.s, &c.buf[0], &c.plain[0], blocks, units, c.first) }
		m["assembly decrypt "+k.String()] = func() { dec(c.s, &c.buf[0], &c.buf[0], blocks, units, c.first) }
	}
	return m
}
