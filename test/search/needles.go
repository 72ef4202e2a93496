// Package search looks for byte strings where a hunt must not find them: in the
// memory and the registers of running processes, behind their descriptors, in
// their core dumps, and in files.
package search

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// MinNeedle is the least length of a needle, in bytes: shorter ones turn up by
// chance.
const MinNeedle = 16

// Needles is a set of byte strings that is found in one pass over a haystack, at
// any byte. It may be used by several goroutines once all are added.
type Needles struct {
	filter  [1 << 18]uint64    // one bit a hash of eight bytes: most places need no look into heads
	heads   map[uint64][]entry // by their first eight bytes
	longest int
}

type entry struct {
	name  string
	bytes []byte
}

// NewNeedles returns an empty set.
func NewNeedles() *Needles { return &Needles{heads: make(map[uint64][]entry)} }

// Add adds a copy of b, at least MinNeedle bytes, under a name for reports.
func (n *Needles) Add(name string, b []byte) {
	if len(b) < MinNeedle {
		panic(fmt.Sprintf("search: a needle of %d bytes", len(b)))
	}
	head := binary.LittleEndian.Uint64(b)
	for _, e := range n.heads[head] {
		if bytes.Equal(e.bytes, b) {
			return
		}
	}
	n.heads[head] = append(n.heads[head], entry{name, bytes.Clone(b)})
	h := hash(head)
	n.filter[h>>6] |= 1 << (h & 63)
	n.longest = max(n.longest, len(b))
}

// Len is how many there are.
func (n *Needles) Len() int {
	count := 0
	for _, e := range n.heads {
		count += len(e)
	}
	return count
}

func hash(head uint64) uint64 { return head * 0x9e3779b97f4a7c15 >> 40 } // 24 bits

// A Hit is a needle that was found.
type Hit struct {
	Name  string
	Where string // process and mapping, or file
	At    uint64 // address, or offset in bytes
}

func (h Hit) String() string { return fmt.Sprintf("%s in %s at %#x", h.Name, h.Where, h.At) }

var zeros [1024]byte

// In searches b, which lies at base of where.
func (n *Needles) In(b []byte, where string, base uint64) (hits []Hit) {
	if len(b) < MinNeedle {
		return nil
	}
	passZeros := len(n.heads[0]) == 0 // no needle begins there
	for i := 0; i+MinNeedle <= len(b); i++ {
		head := binary.LittleEndian.Uint64(b[i:])
		if head == 0 && passZeros { // most of most memory
			for i+len(zeros) <= len(b) && bytes.Equal(b[i:i+len(zeros)], zeros[:]) {
				i += len(zeros) - 8
			}
			continue
		}
		h := hash(head)
		if n.filter[h>>6]&(1<<(h&63)) == 0 {
			continue
		}
		for _, e := range n.heads[head] {
			if bytes.HasPrefix(b[i:], e.bytes) {
				hits = append(hits, Hit{e.name, where, base + uint64(i)})
			}
		}
	}
	return hits
}

// window is how much is read at once, in bytes.
const window = 1 << 20

// stream searches n bytes that read returns by offset, in windows that overlap.
// A window that cannot be read is passed over.
func (n *Needles) stream(size uint64, where string, base uint64, read func(p []byte, off uint64) (int, error)) (hits []Hit, searched uint64) {
	buf := make([]byte, window+n.longest)
	for off := uint64(0); off < size; off += window {
		want := min(uint64(len(buf)), size-off)
		got, _ := read(buf[:want], off) //nolint:errcheck // what cannot be read is not counted as searched
		searched += min(uint64(got), window)
		hits = append(hits, n.In(buf[:got], where, base+off)...)
	}
	return distinct(hits), searched
}

// distinct drops what was found twice where two windows overlap.
func distinct(hits []Hit) []Hit {
	seen := make(map[Hit]bool, len(hits))
	out := hits[:0]
	for _, h := range hits {
		if !seen[h] {
			seen[h] = true
			out = append(out, h)
		}
	}
	return out
}

// File searches a file or block device. It returns how many bytes it read.
func (n *Needles) File(path string) (hits []Hit, searched uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	var failed error
	hits, searched = n.stream(uint64(end), path, 0, func(p []byte, off uint64) (int, error) {
		got, err := f.ReadAt(p, int64(off))
		if err != nil && !errors.Is(err, io.EOF) { // a file may shrink
			failed = err
		}
		return got, err
	})
	return hits, searched, failed
}
