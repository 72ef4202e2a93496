package drive

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// The superblock's format is docs/spec/superblock.md; what follows are its
// constants. Numbers are little-endian.
const (
	superblockSize    = 4096
	superblockMagic   = "VACATESB"
	superblockVersion = 1

	offVersion    = 8
	offCopy       = 12
	offNode       = 16
	offUUID       = 32
	offEpoch      = 48
	offSize       = 56
	offDataOffset = 64
	offExtentSize = 72
	offExtents    = 80
	offReserved   = 84
	offChecksum   = 4092

	margin        = 1 << 20  // bytes kept free of tenants' data at either end
	minSize       = 16 << 20 // bytes of the smallest drive
	minExtent     = 1 << 20
	maxExtent     = 64 << 20
	wantedExtents = 1024 // extents are made smaller, down to minExtent, to have as many
)

// The two copies of a superblock.
const (
	copyA = 0 // at byte 0
	copyB = 1 // in the last whole 4096 bytes of the drive
)

var copyNames = [2]string{"A (at the drive's start)", "B (at the drive's end)"}

// An ID names a node or a drive: 16 random bytes, written as 32 hex digits.
type ID [16]byte

// ParseID reads 32 hex digits.
func ParseID(s string) (ID, error) {
	var id ID
	if b, err := hex.DecodeString(s); err != nil || len(b) != len(id) {
		return ID{}, fmt.Errorf("%q is not an id of 32 hex digits", s)
	} else {
		copy(id[:], b)
	}
	return id, nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// A Superblock is what a drive says about itself.
type Superblock struct {
	Node       ID     // whose drive it is
	UUID       ID     // of the drive
	Epoch      uint64 // of the state folder that belongs to it
	Size       int64  // bytes of the drive when it was enrolled
	DataOffset int64  // bytes: where extent 0 starts
	ExtentSize int64  // bytes, a power of two from 1 MiB to 64 MiB
	Extents    uint32 // 1 ≤ Extents
}

// layout divides a drive of size bytes.
func layout(size int64) (Superblock, error) {
	if size < minSize {
		return Superblock{}, fmt.Errorf("%d bytes are too few: the smallest drive has %d", size, int64(minSize))
	}
	data := size - 2*margin
	extent := int64(maxExtent)
	for extent > minExtent && data/extent < wantedExtents {
		extent /= 2
	}
	if data/extent > math.MaxUint32 {
		return Superblock{}, fmt.Errorf("%d bytes are too many: the largest drive has %d extents of %d bytes", size, uint32(math.MaxUint32), extent)
	}
	return Superblock{Size: size, DataOffset: margin, ExtentSize: extent, Extents: uint32(data / extent)}, nil
}

// offsetOf returns where a copy lies on a drive of size bytes.
func offsetOf(which int, size int64) int64 {
	if which == copyA {
		return 0
	}
	return size&^(superblockSize-1) - superblockSize
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode writes a copy of s into b, which has 4096 bytes.
func (s *Superblock) encode(b []byte, which int) {
	clear(b[:superblockSize])
	le := binary.LittleEndian
	copy(b, superblockMagic)
	le.PutUint32(b[offVersion:], superblockVersion)
	le.PutUint32(b[offCopy:], uint32(which))
	copy(b[offNode:], s.Node[:])
	copy(b[offUUID:], s.UUID[:])
	le.PutUint64(b[offEpoch:], s.Epoch)
	le.PutUint64(b[offSize:], uint64(s.Size))
	le.PutUint64(b[offDataOffset:], uint64(s.DataOffset))
	le.PutUint64(b[offExtentSize:], uint64(s.ExtentSize))
	le.PutUint32(b[offExtents:], s.Extents)
	le.PutUint32(b[offChecksum:], crc32.Checksum(b[:offChecksum], castagnoli))
}

// errNoSuperblock: the magic is not there.
var errNoSuperblock = errors.New("no superblock")

// decode reads the copy which from b. The error is errNoSuperblock or says in
// what the copy is damaged; nothing of a damaged copy is to be believed.
func decode(b []byte, which int) (Superblock, error) {
	var s Superblock
	if len(b) != superblockSize || string(b[:len(superblockMagic)]) != superblockMagic {
		return s, errNoSuperblock
	}
	le := binary.LittleEndian
	if want, got := crc32.Checksum(b[:offChecksum], castagnoli), le.Uint32(b[offChecksum:]); got != want {
		return s, fmt.Errorf("checksum %08x, want %08x", got, want)
	}
	if v := le.Uint32(b[offVersion:]); v != superblockVersion {
		return s, fmt.Errorf("version %d is not known to this program, which knows version %d", v, superblockVersion)
	}
	if c := le.Uint32(b[offCopy:]); c != uint32(which) {
		return s, fmt.Errorf("copy number %d, want %d", c, which)
	}
	for i, v := range b[offReserved:offChecksum] {
		if v != 0 {
			return s, fmt.Errorf("reserved byte %d is not zero", offReserved+i)
		}
	}
	copy(s.Node[:], b[offNode:])
	copy(s.UUID[:], b[offUUID:])
	s.Epoch = le.Uint64(b[offEpoch:])
	s.Size = int64(le.Uint64(b[offSize:]))
	s.DataOffset = int64(le.Uint64(b[offDataOffset:]))
	s.ExtentSize = int64(le.Uint64(b[offExtentSize:]))
	s.Extents = le.Uint32(b[offExtents:])
	return s, s.check()
}

// check reports what cannot be. No arithmetic here overflows: sizes are bounded
// before they are multiplied.
func (s *Superblock) check() error {
	switch {
	case s.Node == ID{}:
		return errors.New("no node id")
	case s.UUID == ID{}:
		return errors.New("no drive id")
	case s.Size < minSize:
		return fmt.Errorf("size of %d bytes", s.Size)
	case s.DataOffset != margin:
		return fmt.Errorf("data offset %d", s.DataOffset)
	case s.ExtentSize < minExtent || s.ExtentSize > maxExtent || s.ExtentSize&(s.ExtentSize-1) != 0:
		return fmt.Errorf("extents of %d bytes", s.ExtentSize)
	case s.Extents == 0 || int64(s.Extents) > (s.Size-2*margin)/s.ExtentSize:
		return fmt.Errorf("%d extents of %d bytes on a drive of %d", s.Extents, s.ExtentSize, s.Size)
	}
	return nil
}

// A pair is both copies of a drive's superblock, as they were found.
type pair struct {
	sb   [2]Superblock
	err  [2]error // nil, errNoSuperblock, or in what the copy is damaged
	size int64    // of the drive that the copies' places were computed for
}

// readPair reads both copies of a drive of size bytes. Where copy A is intact it
// says where copy B is: a drive may have grown since.
func readPair(read func(off int64) ([]byte, error), size int64) (pair, error) {
	p := pair{size: size}
	for which := range 2 {
		if which == copyB && p.err[copyA] == nil && p.sb[copyA].Size <= size {
			p.size = p.sb[copyA].Size
		}
		b, err := read(offsetOf(which, p.size))
		if err != nil {
			return p, fmt.Errorf("reading superblock copy %s: %w", copyNames[which], err)
		}
		p.sb[which], p.err[which] = decode(b, which)
	}
	return p, nil
}

// newest returns the copy that counts, or -1 if both are damaged or missing. Of
// two that are intact the one with the higher epoch counts: the other was not
// written yet when its writer ended.
func (p *pair) newest() int {
	switch {
	case p.err[copyA] == nil && p.err[copyB] == nil:
		if p.sb[copyB].Epoch > p.sb[copyA].Epoch {
			return copyB
		}
		return copyA
	case p.err[copyA] == nil:
		return copyA
	case p.err[copyB] == nil:
		return copyB
	}
	return -1
}

// agree reports whether two intact copies differ in nothing but the epoch.
func (p *pair) agree() bool {
	a, b := p.sb[copyA], p.sb[copyB]
	a.Epoch = b.Epoch
	return a == b
}
