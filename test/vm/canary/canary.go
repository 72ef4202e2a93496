// Package canary makes data that can be told from everything else: each sector
// that a client of a hunt writes is unlike any other, and can be made again from
// what is known about it.
//
// Sectors of an even version start with the hunt's magic, which a search finds
// at any byte, wherever it was copied. Those of an odd version look like noise,
// as compressed data do, and are found only by whoever knows each of them.
package canary

import "encoding/binary"

// SectorSize is the size in bytes of a sector.
const SectorSize = 512

// MagicSize is the length of a magic in bytes.
const MagicSize = 16

// Magic is what sectors of an even version start with.
func Magic(hunt uint64) (m [MagicSize]byte) {
	s := stream{hunt ^ 0x6d61676963} // "magic"
	binary.LittleEndian.PutUint64(m[:], s.next())
	binary.LittleEndian.PutUint64(m[8:], s.next())
	return m
}

// Fill fills p, whole sectors, with canaries of a lease: first is the number of
// p's first sector in the lease, version at least 1.
func Fill(p []byte, hunt, tag uint64, first int64, version uint32) {
	magic := Magic(hunt)
	for ; len(p) > 0; p, first = p[SectorSize:], first+1 {
		s := stream{hunt}
		for _, v := range []uint64{tag, uint64(first), uint64(version)} {
			s = stream{s.next() ^ v}
		}
		sector := p[:SectorSize]
		at := 0
		if version%2 == 0 {
			at = copy(sector, magic[:])
		}
		for ; at < SectorSize; at += 8 {
			binary.LittleEndian.PutUint64(sector[at:], s.next())
		}
	}
}

// A stream is Vigna's splitmix64: fast, and good enough to be told apart.
type stream struct{ state uint64 }

func (s *stream) next() uint64 {
	s.state += 0x9e3779b97f4a7c15
	z := s.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
