package xts

import (
	"encoding/binary"
	"math/bits"
)

// work is the state of one call: blocks in progress, and their tweaks. It holds
// plaintext, and is cleared before the call returns.
type work struct {
	data, tweak lanes
}

//go:noinline // or the compiler could drop stores that nobody reads
func (w *work) wipe() { *w = work{} }

// scrub overwrites the part of the stack where the functions that were called
// before it kept what did not fit in registers: plaintext, bits of a key.
//
//go:noinline
func scrub() {
	var b [1024]byte
	touch(&b)
}

//go:noinline
func touch(b *[1024]byte) { clear(b[:]) }

func encryptGeneric(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	var w work
	keys := (*[keysSize]byte)(s[offEncrypt:])
	for ; len(src) > 0; first++ {
		w.start((*[keysSize]byte)(s[offTweak:]), first)
		for left := unitSize; left > 0; {
			n := min(left, 4*blockSize)
			w.load(src[:n])
			encryptLanes(&w.data, keys)
			w.store(dst[:n])
			dst, src, left = dst[n:], src[n:], left-n
		}
	}
	w.wipe()
	scrub()
}

func decryptGeneric(s *Schedule, dst, src []byte, unitSize int, first uint64) {
	var w work
	keys := (*[keysSize]byte)(s[offDecrypt:])
	for ; len(src) > 0; first++ {
		w.start((*[keysSize]byte)(s[offTweak:]), first)
		for left := unitSize; left > 0; {
			n := min(left, 4*blockSize)
			w.load(src[:n])
			decryptLanes(&w.data, keys)
			w.store(dst[:n])
			dst, src, left = dst[n:], src[n:], left-n
		}
	}
	w.wipe()
	scrub()
}

// start computes the tweaks of the first four blocks of a unit. Like load and
// store it is never inlined: what the compiler spills must lie below the frame of
// the caller, where scrub reaches it.
//
//go:noinline
func (w *work) start(keys *[keysSize]byte, unit uint64) {
	w.tweak = lanes{unit}
	encryptLanes(&w.tweak, keys)
	for i := 2; i < len(w.tweak); i += 2 {
		w.tweak[i], w.tweak[i+1] = double(w.tweak[i-2], w.tweak[i-1])
	}
}

// load reads up to four blocks and adds their tweaks.
//
//go:noinline
func (w *work) load(src []byte) {
	w.data = w.tweak
	for i := 0; 8*i < len(src); i++ {
		w.data[i] ^= binary.LittleEndian.Uint64(src[8*i:])
	}
}

// store adds the tweaks, writes up to four blocks, and steps to the next tweaks.
//
//go:noinline
func (w *work) store(dst []byte) {
	for i := 0; 8*i < len(dst); i++ {
		binary.LittleEndian.PutUint64(dst[8*i:], w.data[i]^w.tweak[i])
	}
	lo, hi := w.tweak[6], w.tweak[7]
	for i := 0; i < len(w.tweak); i += 2 {
		lo, hi = double(lo, hi)
		w.tweak[i], w.tweak[i+1] = lo, hi
	}
}

// double multiplies a tweak by x in GF(2^128) modulo x^128+x^7+x^2+x+1.
func double(lo, hi uint64) (uint64, uint64) {
	carry := -(hi >> 63) & 0x87
	return lo<<1 ^ carry, hi<<1 | lo>>63
}

// encryptLanes is Cipher of FIPS 197 on four blocks.
func encryptLanes(q *lanes, keys *[keysSize]byte) {
	addRoundKey(q, keys, 0)
	for r := 1; r < rounds; r++ {
		subBytes(q)
		shiftRows(q)
		mixColumns(q)
		addRoundKey(q, keys, r)
	}
	subBytes(q)
	shiftRows(q)
	addRoundKey(q, keys, rounds)
}

// decryptLanes is EqInvCipher of FIPS 197 on four blocks; keys are in its order.
func decryptLanes(q *lanes, keys *[keysSize]byte) {
	addRoundKey(q, keys, 0)
	for r := 1; r < rounds; r++ {
		invSubBytes(q)
		invShiftRows(q)
		invMixColumns(q)
		addRoundKey(q, keys, r)
	}
	invSubBytes(q)
	invShiftRows(q)
	addRoundKey(q, keys, rounds)
}

func addRoundKey(q *lanes, keys *[keysSize]byte, round int) {
	k := keys[round*blockSize:][:blockSize]
	lo, hi := binary.LittleEndian.Uint64(k), binary.LittleEndian.Uint64(k[8:])
	for i := 0; i < len(q); i += 2 {
		q[i] ^= lo
		q[i+1] ^= hi
	}
}

// Masks of the rows of the state, in a word of two columns.
const (
	row0 = 0x000000ff000000ff << (8 * iota)
	row1
	row2
	row3
)

// shiftRows rotates row r left by r columns: the state is 128 bits, so each row is
// taken from the state rotated by r columns of 32 bits.
func shiftRows(q *lanes) {
	for i := 0; i < len(q); i += 2 {
		lo, hi := q[i], q[i+1]
		a, b := lo>>32|hi<<32, hi>>32|lo<<32 // rotated by one column; b, a: by three
		q[i] = lo&row0 | a&row1 | hi&row2 | b&row3
		q[i+1] = hi&row0 | b&row1 | lo&row2 | a&row3
	}
}

// invShiftRows rotates row r right by r columns.
func invShiftRows(q *lanes) {
	for i := 0; i < len(q); i += 2 {
		lo, hi := q[i], q[i+1]
		a, b := lo>>32|hi<<32, hi>>32|lo<<32
		q[i] = lo&row0 | b&row1 | hi&row2 | a&row3
		q[i+1] = hi&row0 | a&row1 | lo&row2 | b&row3
	}
}

// mixColumns multiplies every column by 3x³+x²+x+2, eight bytes at once: with
// a', a”, a”' the bytes one, two and three rows on, a becomes 2a+3a'+a”+a”',
// which is 2(a+a') + a' + (a+a')”.
func mixColumns(q *lanes) {
	for i, a := range q {
		b := nextRow(a)
		t := a ^ b
		q[i] = xtime(t) ^ b ^ nextRow(nextRow(t))
	}
}

// invMixColumns multiplies by the inverse of that polynomial, which is the
// polynomial itself times 4x²+5.
func invMixColumns(q *lanes) {
	for i, a := range q {
		q[i] = a ^ xtime(xtime(a^nextRow(nextRow(a))))
	}
	mixColumns(q)
}

// nextRow moves every byte up by one row, within its column.
func nextRow(a uint64) uint64 {
	return a>>8&^row3 | a<<24&row3
}

// xtime doubles every byte in GF(2^8) modulo x^8+x^4+x^3+x+1.
func xtime(a uint64) uint64 {
	const low7, low1 = 0x7f7f7f7f7f7f7f7f, 0x0101010101010101
	return a&low7<<1 ^ a>>7&low1*0x1b
}

// expandGeneric fills in the schedule of key.
func expandGeneric(s *Schedule, key *[KeySize]byte) {
	var w work
	copy(s[offEncrypt:], key[:KeySize/2])
	copy(s[offTweak:], key[KeySize/2:])
	w.expandKey((*[keysSize]byte)(s[offEncrypt:]))
	w.expandKey((*[keysSize]byte)(s[offTweak:]))
	w.invertKeys((*[keysSize]byte)(s[offDecrypt:]), (*[keysSize]byte)(s[offEncrypt:]))
	w.wipe()
	scrub()
}

// expandKey is KeyExpansion of FIPS 197, in place: the first 32 bytes are the key.
//
//go:noinline
func (w *work) expandKey(keys *[keysSize]byte) {
	const nk = 8 // words of a key
	rcon := uint32(1)
	for i := nk; i < keysSize/4; i++ {
		t := binary.LittleEndian.Uint32(keys[4*(i-1):])
		switch i % nk {
		case 0:
			t = w.subWord(bits.RotateLeft32(t, -8)) ^ rcon
			rcon <<= 1
		case nk / 2:
			t = w.subWord(t)
		}
		t ^= binary.LittleEndian.Uint32(keys[4*(i-nk):])
		binary.LittleEndian.PutUint32(keys[4*i:], t)
	}
}

func (w *work) subWord(t uint32) uint32 {
	w.data = lanes{uint64(t)}
	subBytes(&w.data)
	return uint32(w.data[0])
}

// invertKeys makes the round keys of EqInvCipher: those of Cipher in reverse, all
// but the first and the last through InvMixColumns.
//
//go:noinline
func (w *work) invertKeys(inv, keys *[keysSize]byte) {
	for r := 0; r <= rounds; r++ {
		k := keys[(rounds-r)*blockSize:][:blockSize]
		w.data = lanes{binary.LittleEndian.Uint64(k), binary.LittleEndian.Uint64(k[8:])}
		if r != 0 && r != rounds {
			invMixColumns(&w.data)
		}
		binary.LittleEndian.PutUint64(inv[r*blockSize:], w.data[0])
		binary.LittleEndian.PutUint64(inv[r*blockSize+8:], w.data[1])
	}
}
