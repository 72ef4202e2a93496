//go:build !purego

package xts

import (
	"bytes"
	"testing"
)

// TestFallback: a processor without AES is served by the generic code, behind the
// same calls.
func TestFallback(t *testing.T) {
	defer func(k kernel) { active = k }(active)
	r := newRand(t)
	key, msg := randomKey(r), randomBytes(r, 8192)
	fast := newSchedule(t, key)
	want := make([]byte, len(msg))
	fast.Encrypt(want, msg, 4096, 6)

	active = kernelGeneric
	if got := Implementation(); got != "generic" {
		t.Errorf("Implementation() = %q, want generic", got)
	}
	slow, got := newSchedule(t, key), make([]byte, len(msg))
	if slow.Encrypt(got, msg, 4096, 6); *slow != *fast || !bytes.Equal(got, want) {
		t.Error("the generic code makes another schedule or other ciphertext")
	}
	if slow.Decrypt(got, got, 4096, 6); !bytes.Equal(got, msg) {
		t.Error("the generic code does not decrypt what the assembly encrypted")
	}
}

// assemblyCalls are calls of the assembly itself: Go code that ran between it and
// the look at the registers could use them for something else.
func (c *residueCase) assemblyCalls() map[string]func() {
	if active != kernelAESNI { // TestImplementation finds it out if that is wrong
		return nil
	}
	blocks, units := c.unit/blockSize, len(c.plain)/c.unit
	return map[string]func(){
		"assembly expand":  func() { expandAESNI(c.s, c.key) },
		"assembly encrypt": func() { encryptAESNI(c.s, &c.buf[0], &c.plain[0], blocks, units, c.first) },
		"assembly decrypt": func() { decryptAESNI(c.s, &c.buf[0], &c.buf[0], blocks, units, c.first) },
	}
}
