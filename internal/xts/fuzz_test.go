package xts

import (
	"bytes"
	"testing"
)

// FuzzDifferential compares all implementations with x/crypto on a message of any
// shape at any alignment, in and out of place, against untouchable pages.
func FuzzDifferential(f *testing.F) {
	f.Add([]byte("key"), []byte("plaintext"), uint64(0), uint8(0), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, 64), make([]byte, 8192), uint64(1<<32-1), uint8(255), uint8(0x13))
	f.Add(make([]byte, 63), bytes.Repeat([]byte{0x80}, 17*9*16), uint64(1<<63), uint8(8), uint8(0xff))
	f.Add([]byte("tail"), make([]byte, 16*31*2), uint64(7), uint8(30), uint8(0xf1))
	f.Add([]byte("units"), make([]byte, 17*256), uint64(1<<64-20), uint8(15), uint8(0x80))
	const most = 40 // units
	in, out := guarded(f, most*256*blockSize), guarded(f, most*256*blockSize)
	f.Fuzz(func(t *testing.T, keyBytes, src []byte, first uint64, blocks, place uint8) {
		key := new([KeySize]byte)
		copy(key[:], keyBytes)
		if bytes.Equal(key[:32], key[32:]) {
			if err := new(Schedule).Expand(key); err != ErrWeakKey {
				t.Fatalf("Expand of a key with equal halves: %v", err)
			}
			return
		}
		unitSize := (int(blocks) + 1) * blockSize
		units := min(max(1, len(src)/unitSize), most)
		padded := make([]byte, units*unitSize)
		copy(padded, src)
		first = min(first, ^uint64(0)-uint64(units))
		for _, im := range impls {
			checkBothWays(t, im, key, padded, unitSize, first)
			checkPlace(t, im, key, put(in, padded, place>>4), put(out, padded, place&15), unitSize, first)
		}
	})
}

// put copies msg to the end of m, or 1 to 7 bytes before it, or to as many bytes
// behind its beginning.
func put(m, msg []byte, place uint8) []byte {
	at := int(place & 7)
	if place&8 == 0 {
		at = len(m) - len(msg) - at
	}
	if at < 0 || at+len(msg) > len(m) { // as long as m
		at = 0
	}
	copy(m[at:], msg)
	return m[at:][:len(msg)]
}

// checkPlace encrypts src into dst and decrypts it there, where they lie.
func checkPlace(t *testing.T, im impl, key *[KeySize]byte, src, dst []byte, unitSize int, first uint64) {
	t.Helper()
	s := new(Schedule)
	im.expand(s, key)
	im.encrypt(s, dst, src, unitSize, first)
	if want := oracle(t, key, src, unitSize, first); !bytes.Equal(dst, want) {
		t.Fatalf("%s: encrypt, %d bytes in units of %d from %d: differs from x/crypto at byte %d",
			im.name, len(src), unitSize, first, firstDifference(dst, want))
	}
	if im.decrypt(s, dst, dst, unitSize, first); !bytes.Equal(dst, src) {
		t.Fatalf("%s: decrypt in place, %d bytes in units of %d from %d: differs at byte %d",
			im.name, len(src), unitSize, first, firstDifference(dst, src))
	}
}
