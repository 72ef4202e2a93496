package volatile

import (
	"encoding/binary"
	"fmt"
	"iter"
	"sync/atomic"
)

// Records that a writer may die in the midst of. Each slot has two copies; of
// those the one with the higher sequence is the record, and the other one is
// where the next is written:
//
//  1. The older copy's sequence becomes 0: an unfinished copy, which no reader
//     takes.
//  2. Its other words are written, the checksum included.
//  3. Its sequence is written, one above the other copy's: from here on it is
//     the record.

// A record is what a slot holds. The sequence (bytes 0–7) and the checksum (the
// last 4) of its copies are not its business. The zero record is an empty slot.
type record[R any] interface {
	*R
	encode(b []byte) // into zeros; what validate refuses comes out somehow
	decode(b []byte) error
	validate() error // what must hold of each, decoded or to be written
}

// maxCopy is the size of the largest copy, in bytes.
const maxCopy = driveSize

// twins are slots of two copies each.
type twins[R any, P record[R]] struct {
	what  string // for errors: "lease table, slot"
	size  int    // of a copy, in bytes: a multiple of 8, at most maxCopy
	words []atomic.Uint64
}

// copyOf is where copy c (0 or 1) of slot i lies.
func (t *twins[R, P]) copyOf(i, c int) []atomic.Uint64 {
	n := t.size / 8
	at := (2*i + c) * n
	return t.words[at : at+n]
}

// slots is how many there are.
func (t *twins[R, P]) slots() int { return len(t.words) * 8 / (2 * t.size) }

// get returns the record of slot i, which copy it was read from, and its
// sequence.
func (t *twins[R, P]) get(i int) (r R, c int, sequence uint64, err error) {
	var none R
	if i < 0 || i >= t.slots() {
		return none, 0, 0, fmt.Errorf("%s %d of %d: %w", t.what, i, t.slots(), ErrSlot)
	}
	var buf [2][maxCopy]byte
	b := [2][]byte{buf[0][:t.size], buf[1][:t.size]}
	if !stable(t.copyOf(i, 0), t.copyOf(i, 1), b[0], b[1]) {
		return none, 0, 0, fmt.Errorf("%s %d: it never stops changing: %w", t.what, i, ErrDamaged)
	}
	var seq [2]uint64
	var rec [2]R
	for c := range 2 {
		if seq[c], err = decodeCopy(b[c], P(&rec[c])); err != nil {
			return none, 0, 0, fmt.Errorf("%s %d: %w", t.what, i, err)
		}
	}
	if seq[1] > seq[0] {
		c = 1
	}
	return rec[c], c, seq[c], nil
}

// put makes r the record of slot i.
func (t *twins[R, P]) put(i int, r R) error {
	_, c, sequence, err := t.get(i)
	if err != nil {
		return err
	}
	if err := P(&r).validate(); err != nil {
		return fmt.Errorf("%s %d: %w", t.what, i, err)
	}
	if sequence != 0 {
		c = 1 - c
	}
	var buf [maxCopy]byte
	b := buf[:t.size]
	encodeCopy(b, sequence+1, P(&r))
	w := t.copyOf(i, c)
	for at, v := range inOrder(b) {
		w[at].Store(v)
	}
	return nil
}

// inOrder is the order in which b becomes a copy: each store is a word's place
// and value. After any number of them the slot's record is the one before, and
// after the last it is b's.
func inOrder(b []byte) iter.Seq2[int, uint64] {
	return func(yield func(int, uint64) bool) {
		if !yield(0, 0) {
			return
		}
		for i := 8; i < len(b); i += 8 {
			if !yield(i/8, binary.NativeEndian.Uint64(b[i:])) {
				return
			}
		}
		yield(0, binary.NativeEndian.Uint64(b))
	}
}

// stable reads both copies c0 and c1 of a slot at one moment: neither sequence
// changed meanwhile, and a writer changes a copy only while its sequence is 0.
func stable(c0, c1 []atomic.Uint64, b0, b1 []byte) bool {
	for range 1 << 16 { // each takes longer than a writer needs
		s0, s1 := c0[0].Load(), c1[0].Load()
		load(b0, c0)
		load(b1, c1)
		if c0[0].Load() == s0 && c1[0].Load() == s1 &&
			binary.NativeEndian.Uint64(b0) == s0 && binary.NativeEndian.Uint64(b1) == s1 {
			return true
		}
	}
	return false
}

// encodeCopy writes r as the copy with this sequence, 1 ≤ sequence.
func encodeCopy[R any, P record[R]](b []byte, sequence uint64, r P) {
	clear(b)
	r.encode(b)
	binary.LittleEndian.PutUint64(b, sequence)
	seal(b)
}

// decodeCopy reads one copy into r, which is zero. A copy that was never
// finished has sequence 0, whatever else it holds, and is an empty slot.
func decodeCopy[R any, P record[R]](b []byte, r P) (sequence uint64, err error) {
	sequence = binary.LittleEndian.Uint64(b)
	if sequence == 0 {
		return 0, nil
	}
	if !sealed(b) {
		return 0, fmt.Errorf("checksum of the copy with sequence %d: %w", sequence, ErrDamaged)
	}
	if err := r.decode(b); err != nil {
		return 0, err
	}
	return sequence, r.validate()
}

// load and store move bytes in words, each atomically. A word of the layout is
// little-endian, as are all machines that Vacate runs on: bytes keep their
// order.
func load(b []byte, w []atomic.Uint64) {
	for i := range w {
		binary.NativeEndian.PutUint64(b[i*8:], w[i].Load())
	}
}

func store(w []atomic.Uint64, b []byte) {
	for i := range w {
		w[i].Store(binary.NativeEndian.Uint64(b[i*8:]))
	}
}
