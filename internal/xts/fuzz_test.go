package xts

import (
	"bytes"
	"testing"
)

// FuzzDifferential compares the implementations with x/crypto on a message of
// any shape, in and out of place.
func FuzzDifferential(f *testing.F) {
	f.Add([]byte("key"), []byte("plaintext"), uint64(0), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 64), make([]byte, 8192), uint64(1<<32-1), uint8(255))
	f.Add(make([]byte, 63), bytes.Repeat([]byte{0x80}, 17*9*16), uint64(1<<63), uint8(8))
	f.Fuzz(func(t *testing.T, keyBytes, src []byte, first uint64, blocks uint8) {
		key := new([KeySize]byte)
		copy(key[:], keyBytes)
		if bytes.Equal(key[:32], key[32:]) {
			if err := new(Schedule).Expand(key); err != ErrWeakKey {
				t.Fatalf("Expand of a key with equal halves: %v", err)
			}
			return
		}
		unitSize := (int(blocks) + 1) * blockSize
		units := min(max(1, len(src)/unitSize), 40)
		padded := make([]byte, units*unitSize)
		copy(padded, src)
		first = min(first, ^uint64(0)-uint64(units))
		for _, im := range impls {
			checkBothWays(t, im, key, padded, unitSize, first)
		}
	})
}
