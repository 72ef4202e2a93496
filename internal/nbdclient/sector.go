package nbdclient

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

// What [Verify] writes. Each sector says who wrote it, where to and when, at both
// of its ends, and every word between depends on all of that, so that a sector
// can be judged by itself. In words of 64 bits, little-endian:
//
//	0      magic
//	1, 2   lease
//	3      seed
//	4      offset in the export, bytes
//	5      generation: the number of the write, from 1
//	6–57   filling
//	58–62  words 1 to 5 again
//	63     CRC-32C of words 0 to 62, and above it its complement
const (
	sectorSize  = 512
	sectorMagic = 0x5645_5249_4659_4c44 // "DLYFIREV"

	headWord = 1
	fillWord = 6
	tailWord = 58
	sumWord  = 63
)

// A stamp is what a sector says about itself.
type stamp struct {
	lease [2]uint64
	seed  uint64
	off   int64
	gen   uint64
}

func (s stamp) words() [5]uint64 {
	return [5]uint64{s.lease[0], s.lease[1], s.seed, uint64(s.off), s.gen}
}

func (s stamp) String() string {
	return fmt.Sprintf("lease %q, seed %#x, offset %d, generation %d", leaseName(s.lease), s.seed, s.off, s.gen)
}

// leaseWords packs the first 16 bytes of a lease's name.
func leaseWords(name string) [2]uint64 {
	var b [16]byte
	copy(b[:], name)
	return [2]uint64{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
}

func leaseName(w [2]uint64) string {
	b := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, w[0]), w[1])
	return strings.TrimRight(string(b), "\x00")
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// put fills the sector b.
func (s stamp) put(b []byte) {
	b = b[:sectorSize]
	word := func(i int, v uint64) { binary.LittleEndian.PutUint64(b[8*i:], v) }
	h := uint64(sectorMagic)
	word(0, sectorMagic)
	for i, w := range s.words() {
		word(headWord+i, w)
		word(tailWord+i, w)
		h = mix(h ^ w)
	}
	for i := fillWord; i < tailWord; i++ {
		h += 0x9e3779b97f4a7c15
		word(i, h^h>>29)
	}
	sum := uint64(crc32.Checksum(b[:8*sumWord], castagnoli))
	word(sumWord, sum|^sum<<32)
}

// mix is the finalizer of SplitMix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// stampAt reads a stamp from the words at i.
func stampAt(b []byte, i int) stamp {
	word := func(j int) uint64 { return binary.LittleEndian.Uint64(b[8*(i+j):]) }
	return stamp{lease: [2]uint64{word(0), word(1)}, seed: word(2), off: int64(word(3)), gen: word(4)}
}

// readSector returns the stamp of the sector b if it is whole.
func readSector(b []byte) (s stamp, whole bool) {
	b = b[:sectorSize]
	if binary.LittleEndian.Uint64(b) != sectorMagic {
		return stamp{}, false
	}
	s = stampAt(b, headWord)
	var image [sectorSize]byte
	s.put(image[:])
	return s, bytes.Equal(b, image[:])
}

var zeroSector [sectorSize]byte

// A Class says what is wrong with a sector.
type Class uint8

// The classes. A sector is whole when its checksum and all of its words fit.
const (
	Stale     Class = iota // whole, but from an earlier write: a later one was lost, or an old one landed after it
	Late                   // whole, from a write that was given up and had not landed when last seen
	Foreign                // whole, from another lease or another run
	Misplaced              // whole, but written to another offset
	Zeros                  // zeros where data was written
	Torn                   // put together from two sectors
	Garbage                // anything else

	classes
)

func (c Class) String() string {
	return [...]string{"stale", "late", "foreign", "misplaced", "zeros", "torn", "garbage"}[c]
}

// classify tells what is wrong with the sector b. want is the stamp that it should
// have, but for the generation; allowed are the states that it could be in.
func classify(b []byte, want stamp, allowed []state) (Class, string) {
	if bytes.Equal(b, zeroSector[:]) {
		return Zeros, "zeros"
	}
	if s, whole := readSector(b); whole {
		switch {
		case s.lease != want.lease || s.seed != want.seed:
			return Foreign, s.String()
		case s.off != want.off:
			return Misplaced, s.String()
		}
		class := Late
		for _, a := range allowed {
			if s.gen < a.gen() {
				class = Stale
			}
		}
		return class, fmt.Sprintf("generation %d", s.gen)
	}
	if parts := tornFrom(b, want, allowed); parts != "" {
		return Torn, parts
	}
	return Garbage, garbage(b, want, allowed)
}

// garbage describes b beside the sector that it is most like.
func garbage(b []byte, want stamp, allowed []state) string {
	text := fmt.Sprintf("%x…%x", b[:32], b[sectorSize-32:])
	best, most := "", sectorSize/2 // less in common is chance
	for _, a := range allowed {
		image := imageOf(want, a)
		same, first := 0, -1
		for i := range sectorSize {
			if b[i] == image[i] {
				same++
			} else if first < 0 {
				first = i
			}
		}
		if same > most {
			best, most = fmt.Sprintf(": %d bytes differ from %v, the first is byte %d", sectorSize-same, a, first), same
		}
	}
	return text + best
}

// imageOf is the sector in the state a.
func imageOf(want stamp, a state) []byte {
	image := make([]byte, sectorSize)
	if !a.zeros() {
		want.gen = a.gen()
		want.put(image)
	}
	return image
}

// The cipher's block: the least that a write in memory leaves whole.
const cipherBlock = 16

// mixed reports whether a read that raced with a write saw some of the sector before
// and the rest after it: each block of the cipher is from one of the states, but for
// two at most, where the reader met the writer within a block.
func mixed(b []byte, want stamp, states []state) bool {
	var images [][]byte
	for _, s := range states {
		images = append(images, imageOf(want, s))
	}
	met := 0
	for at := 0; at < sectorSize; at += cipherBlock {
		known := false
		for _, image := range images {
			known = known || bytes.Equal(b[at:at+cipherBlock], image[at:at+cipherBlock])
		}
		if !known {
			met++
		}
	}
	return met <= 2
}

// tornFrom names the sectors that b is put together from, word by word; empty if
// there is a word that fits none.
func tornFrom(b []byte, want stamp, allowed []state) string {
	images := [][]byte{zeroSector[:]}
	names := []string{"zeros"}
	for _, a := range allowed {
		images, names = append(images, imageOf(want, a)), append(names, a.String())
	}
	for _, s := range []stamp{stampAt(b, headWord), stampAt(b, tailWord)} {
		image := make([]byte, sectorSize)
		s.put(image)
		images, names = append(images, image), append(names, s.String())
	}
	var parts []string
	last := -1
	fits := func(image, i int) bool { return bytes.Equal(b[8*i:8*i+8], images[image][8*i:8*i+8]) }
	for i := range sectorSize / 8 {
		if last >= 0 && fits(last, i) {
			continue
		}
		last = -1
		for image := range images {
			// The one that fits longest: neighbours in time share words.
			if fits(image, i) && (last < 0 || reaches(fits, image, i) > reaches(fits, last, i)) {
				last = image
			}
		}
		if last < 0 {
			return ""
		}
		parts = append(parts, fmt.Sprintf("from byte %d: %s", 8*i, names[last]))
	}
	return strings.Join(parts, "; ")
}

// reaches is how many words from i on fit the image.
func reaches(fits func(image, i int) bool, image, i int) int {
	n := 0
	for i+n < sectorSize/8 && fits(image, i+n) {
		n++
	}
	return n
}
