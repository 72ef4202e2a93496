// Package xts is AES-256-XTS (IEEE 1619, NIST SP 800-38E) for whole data units,
// with the key schedule in memory that the caller gives and wipes.
//
// # Keys
//
//  1. A [Schedule] is as secret as its key. It is never a Go variable in
//     production: it is a view of locked memory outside the Go heap,
//     (*Schedule)(slot[KeySize:]) of a key slot (docs/spec/cipher.md).
//  2. Expand reads the key where it lies and writes only the schedule. Nothing of
//     a key is left on a Go stack, on the heap, or in a vector register.
//  3. Whoever owns the memory destroys the schedule by overwriting it. A Schedule
//     that is zero (never expanded, or wiped) refuses to work: it panics, so
//     that data can not pass through it under a key that everybody knows.
//  4. Nothing here guards a schedule against being wiped while a call reads it.
//     The caller's gate does that: it waits for the calls in progress first.
//
// # Tweak
//
// Data unit i of a call has number first+i, encoded little-endian in 16 bytes.
// That is dm-crypt's plain64. Ciphertext stealing is left out: a unit is a whole
// number of AES blocks.
//
// # Implementations
//
// All write the same schedule and the same ciphertext, bit for bit, and are
// chosen once, at start, by what the processor has and the system keeps
// ([Implementation], [Implementations]).
//
//   - "avx512" (amd64): sixteen blocks in flight in registers of 512 bits.
//   - "vaes" (amd64): sixteen blocks in flight in registers of 256 bits.
//   - "aesni" (amd64): eight blocks in flight. Like the other two it clears the
//     vector registers and the stack it used before it returns.
//   - "aesce" (arm64, the AES instructions of its cryptographic extension): eight
//     blocks in flight, all round keys and tweaks in registers; clears the same.
//   - "generic" (everywhere; alone with the build tag purego): bitsliced, so
//     its time and its memory accesses do not depend on key or data. It
//     clears its working state and overwrites the stack of what it called; what
//     the Go compiler kept in general registers is out of its reach.
//
// A call that faults on its data (SIGBUS on a mapping, with SetPanicOnFault)
// panics out of the middle and clears nothing: [Scrub] does, for whoever recovers.
// The assembly spills tweaks but never a key; what was in the registers then is in
// docs/spec/cipher.md.
package xts

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math/bits"
	"unsafe"
)

// KeySize is the length of a key in bytes: 32 for the data, then 32 for the tweak.
const KeySize = 64

// Offsets and sizes inside a Schedule (docs/spec/cipher.md).
const (
	rounds       = 14                  // of AES-256
	keysSize     = (rounds + 1) * 16   // round keys of one direction
	offEncrypt   = 0                   // data key, encryption
	offDecrypt   = keysSize            // data key, equivalent inverse cipher
	offTweak     = 2 * keysSize        // tweak key, encryption
	ScheduleSize = offTweak + keysSize // bytes of a Schedule
)

// MaxUnit is the longest data unit in bytes: 2^20 AES blocks, the limit of NIST
// SP 800-38E.
const MaxUnit = 1 << 20 * blockSize

const blockSize = 16

// ErrWeakKey is returned by Expand for a key whose two halves are equal. Such a
// key loses what XTS promises (FIPS 140-2 implementation guidance, A.9), and a
// random source that made one is broken.
var ErrWeakKey = errors.New("xts: the two halves of the key are equal")

// A Schedule is an expanded key: round keys to encrypt data, to decrypt data and
// to encrypt tweaks, each in the order of use. Any alignment is correct; 16 bytes
// is the fastest, as a round key then lies in one cache line.
//
// Any number of goroutines may use one Schedule at once, once Expand has
// returned.
type Schedule [ScheduleSize]byte

// Expand fills in the schedule of key, which it reads in constant time.
//
// For [ErrWeakKey] the schedule is left zero, which is unusable.
//
// REQUIRES: key and s do not overlap.
func (s *Schedule) Expand(key *[KeySize]byte) error {
	if overlap(s[:], key[:]) {
		panic("xts: key and schedule overlap")
	}
	if subtle.ConstantTimeCompare(key[:KeySize/2], key[KeySize/2:]) == 1 {
		clear(s[:])
		return ErrWeakKey
	}
	active.expand(s, key)
	return nil
}

// Encrypt encrypts src into dst: data units of unitSize bytes, numbered from
// first. It allocates nothing and may be called from any goroutine.
//
// REQUIRES (panics if not; lengths are no secret):
//
//   - unitSize is a multiple of 16, 16 ≤ unitSize ≤ MaxUnit
//   - len(src) is a multiple of unitSize, and len(dst) == len(src)
//   - dst and src are the same memory or do not overlap
//   - the number of the last unit fits 64 bits
//   - s was expanded and is not wiped
func (s *Schedule) Encrypt(dst, src []byte, unitSize int, first uint64) {
	s.check(dst, src, unitSize, first)
	active.encrypt(s, dst, src, unitSize, first)
}

// Decrypt is the inverse of Encrypt, and requires the same.
func (s *Schedule) Decrypt(dst, src []byte, unitSize int, first uint64) {
	s.check(dst, src, unitSize, first)
	active.decrypt(s, dst, src, unitSize, first)
}

// check panics unless a call is as Encrypt requires. The kernels rely on it.
func (s *Schedule) check(dst, src []byte, unitSize int, first uint64) {
	switch {
	case unitSize < blockSize || unitSize > MaxUnit || unitSize%blockSize != 0:
		panic("xts: data unit is not a multiple of 16 bytes from 16 to 16 MiB")
	case len(src)%unitSize != 0:
		panic("xts: input is not a whole number of data units")
	case len(dst) != len(src):
		panic("xts: output and input differ in length")
	case s.zero():
		panic("xts: schedule is zero (never expanded, or wiped)")
	case len(src) == 0:
		return
	case &dst[0] != &src[0] && overlap(dst, src):
		panic("xts: output overlaps input, but is not the same memory")
	}
	if _, carry := bits.Add64(first, uint64(len(src)/unitSize)-1, 0); carry != 0 {
		panic("xts: number of a data unit passes 64 bits")
	}
}

// zero reports whether the first 40 bytes are zero, as they are in no expanded
// schedule: the round keys that follow w0 … w7 begin with
// w8 = w0 ^ SubWord(RotWord(w7)) ^ 1, and SubWord of zero is not zero.
func (s *Schedule) zero() bool {
	w := binary.NativeEndian.Uint64
	return w(s[0:])|w(s[8:])|w(s[16:])|w(s[24:])|w(s[32:]) == 0
}

// overlap reports whether a and b share a byte.
func overlap(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	pa, pb := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&b[0]))
	return pa < pb+uintptr(len(b)) && pb < pa+uintptr(len(a))
}
