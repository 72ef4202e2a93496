// Package volatile lays out the memory that must not outlive its keeper: keys,
// lease table and block maps, each in a memfd, and the messages in which keeper,
// engine and control speak about them. The layout is docs/spec/volatile.md.
//
// # Who does what
//
// The keeper makes the files ([CreateKeys], [CreateTable], [CreateMap]), hands
// them to each engine that it starts, and is the only one to destroy keys. The
// engine maps them ([OpenKeys], [OpenTable], [OpenMap]), makes keys, writes
// records and extents, and sets bits; what it wrote is what the next engine goes
// on with. Neither trusts the other's bytes: what is opened is
// checked against its size before it is mapped, its size is sealed, and every
// structure carries a checksum.
//
// # Life
//
//	V1: a key exists in its slot of the keys file, and nowhere else.
//	V2: nothing here is ever written to a medium: the keys are locked (and with
//	    memfd_secret out of the kernel's own reach), the rest tells which blocks
//	    a lease wrote, but not what.
//	V3: an engine may die within any store. Its successor reads each record as
//	    it was before or after, each bit as it was before or after.
package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Bounds of the volatile memory.
const (
	Slots       = 1024            // leases that it holds at once
	DriveSlots  = 64              // drives whose whereabouts it holds
	KeySlotSize = 1024            // bytes: 64 of key, then the cipher's schedule
	MaxBlocks   = uint64(1) << 50 // blocks of a map: 2^62 bytes of volume
	MaxExtents  = 1 << 16         // extents of a map: where its lease lies

	version  = 2
	pageSize = 4096 // of the layout, whatever the machine's
)

// Errors of everything that opens or decodes. They come wrapped, with what was
// wrong and where.
var (
	// ErrFormat: these bytes were never what they are taken for.
	ErrFormat = errors.New("not the volatile memory's format")
	// ErrVersion: a layout that this binary does not know.
	ErrVersion = errors.New("unknown version of the volatile memory's layout")
	// ErrDamaged: right format, wrong checksum.
	ErrDamaged = errors.New("volatile memory is damaged")
	// ErrSlot: not a slot.
	ErrSlot = errors.New("no such slot")
)

func checkSlot(i int) error {
	if i < 0 || i >= Slots {
		return fmt.Errorf("slot %d of %d: %w", i, Slots, ErrSlot)
	}
	return nil
}

// A LeaseID names a lease: 16 characters of a–z and 2–7.
type LeaseID [16]byte

// ParseLeaseID checks s and returns it as an id.
func ParseLeaseID(s string) (id LeaseID, err error) {
	if len(s) != len(id) {
		return id, fmt.Errorf("lease id %q: %d characters, want %d", s, len(s), len(id))
	}
	copy(id[:], s)
	if !id.valid() {
		return LeaseID{}, fmt.Errorf("lease id %q: a character other than a-z and 2-7", s)
	}
	return id, nil
}

func (id LeaseID) valid() bool {
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

func (id LeaseID) String() string {
	if id == (LeaseID{}) {
		return "none"
	}
	return string(id[:])
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal writes the CRC32C of all but the last four bytes of b into those.
func seal(b []byte) {
	n := len(b) - 4
	binary.LittleEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
}

func sealed(b []byte) bool {
	n := len(b) - 4
	return binary.LittleEndian.Uint32(b[n:]) == crc32.Checksum(b[:n], castagnoli)
}

// checkHead checks the magic, version and checksum that every header has.
func checkHead(b []byte, magic, what string) error {
	switch {
	case string(b[:8]) != magic:
		return fmt.Errorf("%s: magic %q: %w", what, b[:8], ErrFormat)
	case binary.LittleEndian.Uint32(b[8:]) != version:
		return fmt.Errorf("%s: version %d, this binary knows %d: %w", what,
			binary.LittleEndian.Uint32(b[8:]), version, ErrVersion)
	case !sealed(b):
		return fmt.Errorf("%s: checksum of the header: %w", what, ErrDamaged)
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
