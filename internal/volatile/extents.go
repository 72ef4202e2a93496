package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"vacate/internal/mem"
)

// extentsAt is where the extent table of a map's file starts, right behind the
// header's page.
const (
	extentsAt  = pageSize
	extentSize = 32
)

// ErrWritten says that the extents of a map, which are written once, have been.
var ErrWritten = errors.New("the extents are written already")

// An Extent is a range of a drive's extents. In a map's file they stand in the
// order in which they make up the volume.
type Extent struct {
	Drive [16]byte // UUID, not zero
	First uint32
	Count uint32 // 1 ≤ Count, First+Count ≤ 2^32 - 1
}

func (x *Extent) validate() error {
	if x.Drive == [16]byte{} || x.Count == 0 || x.Count > math.MaxUint32-x.First {
		return fmt.Errorf("extents %d + %d of drive %x: %w", x.First, x.Count, x.Drive, ErrFormat)
	}
	return nil
}

// SetExtents writes where the lease lies, as many extents as the map was made
// for. It is called once, before the lease's state becomes open: what a crash
// leaves half written belongs to an opening, which is undone.
func (m *Map) SetExtents(xs []Extent) error {
	if len(xs) != m.header.Extents {
		return fmt.Errorf("block map of lease %v: %d extents in a table of %d: %w", m.header.Lease, len(xs), m.header.Extents, ErrFormat)
	}
	table := m.extents()
	if !mem.IsZero(table) {
		return fmt.Errorf("block map of lease %v: %w", m.header.Lease, ErrWritten)
	}
	for i := range xs {
		if err := xs[i].validate(); err != nil {
			return fmt.Errorf("block map of lease %v, extent %d: %w", m.header.Lease, i, err)
		}
	}
	var b [extentSize]byte
	for i := range xs {
		encodeExtent(&b, &xs[i])
		store(mem.Words(table[i*extentSize:(i+1)*extentSize]), b[:])
	}
	return nil
}

// Extents returns where the lease lies. ErrDamaged: an entry is damaged, or was
// never written.
func (m *Map) Extents() ([]Extent, error) {
	table := m.extents()
	xs := make([]Extent, m.header.Extents)
	for i := range xs {
		var b [extentSize]byte
		load(b[:], mem.Words(table[i*extentSize:(i+1)*extentSize]))
		if err := decodeExtent(&b, &xs[i]); err != nil {
			return nil, fmt.Errorf("block map of lease %v, extent %d: %w", m.header.Lease, i, err)
		}
	}
	return xs, nil
}

// extents is the extent table as bytes.
func (m *Map) extents() []byte {
	return m.region.Bytes()[extentsAt : extentsAt+m.header.Extents*extentSize]
}

func encodeExtent(b *[extentSize]byte, x *Extent) {
	le := binary.LittleEndian
	*b = [extentSize]byte{}
	copy(b[:], x.Drive[:])
	le.PutUint32(b[16:], x.First)
	le.PutUint32(b[20:], x.Count)
	seal(b[:])
}

func decodeExtent(b *[extentSize]byte, x *Extent) error {
	le := binary.LittleEndian
	if !sealed(b[:]) {
		return fmt.Errorf("checksum: %w", ErrDamaged)
	}
	*x = Extent{First: le.Uint32(b[16:]), Count: le.Uint32(b[20:])}
	copy(x.Drive[:], b[:])
	if le.Uint32(b[24:]) != 0 {
		return fmt.Errorf("reserved bytes are in use: %w", ErrFormat)
	}
	return x.validate()
}
