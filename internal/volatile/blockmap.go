package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"vacate/internal/mem"
	"vacate/internal/sys"
)

const (
	mapMagic      = "VACATEMP"
	mapHeaderSize = 128
)

// A mapLayout is where the parts of a map's file lie, in bytes.
type mapLayout struct {
	summaryWords, bitWords  int64
	summaryAt, bitsAt, size int64 // the extent table starts at extentsAt
}

// layoutOf returns the layout for 1 ≤ blocks ≤ MaxBlocks and 1 ≤ extents ≤
// MaxExtents, which keeps every number below 2^48.
func layoutOf(blocks uint64, extents int) mapLayout {
	var l mapLayout
	l.bitWords = int64((blocks + 63) / 64)
	bitBytes := pageUp(l.bitWords * 8)
	l.summaryWords = (bitBytes/pageSize + 63) / 64
	l.summaryAt = extentsAt + pageUp(int64(extents)*extentSize)
	l.bitsAt = l.summaryAt + pageUp(l.summaryWords*8)
	l.size = l.bitsAt + bitBytes
	return l
}

func inMap(blocks uint64, extents int) bool {
	return blocks > 0 && blocks <= MaxBlocks && extents > 0 && extents <= MaxExtents
}

func pageUp(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// MapBytes is the size of the file of a map of that many blocks and extents, and
// 0 for numbers that no map has.
func MapBytes(blocks uint64, extents int) int64 {
	if !inMap(blocks, extents) {
		return 0
	}
	return layoutOf(blocks, extents).size
}

// fitsMap reports whether a map of that many blocks has n bytes for some number
// of extents.
func fitsMap(n, blocks uint64) bool {
	least, most := uint64(MapBytes(blocks, 1)), uint64(MapBytes(blocks, MaxExtents))
	return n >= least && n <= most && (n-least)%pageSize == 0
}

// CreateMap makes the file of a block map: every bit is 0, no extent is written,
// and no page but the header's takes memory. The error of numbers that are out
// of range wraps ErrFormat.
func CreateMap(blocks uint64, extents int, lease LeaseID) (*os.File, error) {
	if !inMap(blocks, extents) || !lease.valid() {
		return nil, fmt.Errorf("making the block map of lease %v: %d blocks, want 1 to %d, of %d extents, want 1 to %d: %w",
			lease, blocks, MaxBlocks, extents, MaxExtents, ErrFormat)
	}
	f, err := sys.Memfd("vacate-map", layoutOf(blocks, extents).size)
	if err != nil {
		return nil, fmt.Errorf("making the block map of lease %v: %w", lease, err)
	}
	var b [mapHeaderSize]byte
	encodeMapHeader(&b, mapHeader{Blocks: blocks, Extents: extents, Lease: lease})
	if _, err := f.WriteAt(b[:], 0); err != nil {
		return nil, errors.Join(fmt.Errorf("making the block map of lease %v: %w", lease, err), f.Close())
	}
	return f, nil
}

// A Map is a mapping of a block map's file. Its words are changed atomically,
// by the queues of the lease.
//
//	A1: bit s of the summary is set before the first bit of page s of the bits,
//	    and stays set as long as the lease lives.
//	A2: a page of the bits whose summary bit is 0 is never touched, not even
//	    read: reading a hole of a memfd through a mapping allocates its page.
type Map struct {
	region *mem.Region
	header mapHeader
	layout mapLayout
}

// OpenMap maps the file of a block map, and closes f. The header is checked
// against the file's size, which must be sealed, before anything is mapped.
func OpenMap(f *os.File) (*Map, error) {
	m, err := openMap(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("opening a block map: %w", err)
	}
	return m, nil
}

func openMap(f *os.File) (*Map, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkSealed(f); err != nil {
		return nil, err
	}
	if st.Size() < mapHeaderSize {
		return nil, fmt.Errorf("%d bytes: %w", st.Size(), ErrFormat)
	}
	var b [mapHeaderSize]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return nil, err
	}
	h, err := decodeMapHeader(&b)
	if err != nil {
		return nil, err
	}
	l := layoutOf(h.Blocks, h.Extents)
	if st.Size() != l.size {
		return nil, fmt.Errorf("%d bytes for %d blocks of %d extents, want %d: %w", st.Size(), h.Blocks, h.Extents, l.size, ErrFormat)
	}
	r, err := mem.MapShared(f, int(l.size))
	if err != nil {
		return nil, err
	}
	return &Map{region: r, header: h, layout: l}, nil
}

// Blocks is how many blocks the map covers.
func (m *Map) Blocks() uint64 { return m.header.Blocks }

// Lease is whose map it is.
func (m *Map) Lease() LeaseID { return m.header.Lease }

// Words are the bits: block b is bit b%64 of word b/64. They are valid until
// Close; see A2 before reading.
func (m *Map) Words() []atomic.Uint64 {
	at := m.layout.bitsAt
	return mem.Words(m.region.Bytes()[at : at+m.layout.bitWords*8])
}

// Summary is one bit for each 4096 bytes of bits (32768 blocks): page p is bit
// p%64 of word p/64.
func (m *Map) Summary() []atomic.Uint64 {
	return mem.Words(m.region.Bytes()[m.layout.summaryAt : m.layout.summaryAt+m.layout.summaryWords*8])
}

// Close unmaps the file. The keeper still has it.
//
// REQUIRES: nobody uses Words or Summary any more.
func (m *Map) Close() error { return m.region.Close() }

type mapHeader struct {
	Blocks  uint64
	Extents int
	Lease   LeaseID
}

func encodeMapHeader(b *[mapHeaderSize]byte, h mapHeader) {
	le := binary.LittleEndian
	*b = [mapHeaderSize]byte{}
	l := layoutOf(h.Blocks, h.Extents)
	copy(b[:], mapMagic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], uint32(h.Extents))
	le.PutUint64(b[16:], h.Blocks)
	copy(b[24:], h.Lease[:])
	le.PutUint64(b[40:], extentsAt)
	le.PutUint64(b[48:], uint64(l.summaryAt))
	le.PutUint64(b[56:], uint64(l.bitsAt))
	le.PutUint64(b[64:], uint64(l.size))
	seal(b[:])
}

func decodeMapHeader(b *[mapHeaderSize]byte) (h mapHeader, err error) {
	le := binary.LittleEndian
	if err := checkHead(b[:], mapMagic, "block map"); err != nil {
		return h, err
	}
	h.Blocks = le.Uint64(b[16:])
	copy(h.Lease[:], b[24:])
	h.Extents = int(le.Uint32(b[12:]))
	if !inMap(h.Blocks, h.Extents) || !h.Lease.valid() {
		return mapHeader{}, fmt.Errorf("block map: %d blocks, %d extents of lease %q: %w", h.Blocks, h.Extents, h.Lease[:], ErrFormat)
	}
	// What is left follows from these two numbers, so compare it whole.
	var want [mapHeaderSize]byte
	encodeMapHeader(&want, h)
	if *b != want {
		return mapHeader{}, fmt.Errorf("block map: offsets that do not follow from %d blocks and %d extents: %w", h.Blocks, h.Extents, ErrFormat)
	}
	return h, nil
}
