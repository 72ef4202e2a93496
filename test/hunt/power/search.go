package power

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash/maphash"

	"vacate/test/search"
	"vacate/test/vm/canary"
	"vacate/test/vm/disk"
	"vacate/test/vm/wire"
)

// A finder knows what must be on no disk, and looks for it: keys, schedules and
// the magic of canaries at any byte; canaries of which each sector is known by the
// hash of a whole sector, where sectors start.
type finder struct {
	hunt    uint64
	needles *search.Needles
	seed    maphash.Seed
	sectors map[uint64]sectorName
	buf     []byte
}

// A sectorName is what a canary was made from.
type sectorName struct {
	tag     uint64
	sector  int64
	version uint32
}

func newFinder(hunt uint64) *finder {
	f := &finder{hunt: hunt, needles: search.NewNeedles(), seed: maphash.MakeSeed(), sectors: map[uint64]sectorName{}}
	magic := canary.Magic(hunt)
	f.needles.Add("a canary", magic[:])
	return f
}

// keys adds what is in the keys' memory: each 16 bytes of key and schedule, and
// the key as text, as a log or a journal might hold it.
func (f *finder) keys(tag uint64, k *wire.Keys) {
	for i, slot := range k.Slots {
		for at := 0; at+search.MinNeedle <= len(slot); at += search.MinNeedle {
			part := slot[at : at+search.MinNeedle]
			if [search.MinNeedle]byte(part) != [search.MinNeedle]byte{} {
				f.needles.Add(fmt.Sprintf("byte %d of key %d of those at the opening of lease %#x", at, i, tag), part)
			}
		}
		for _, half := range [][]byte{slot[:32], slot[32:64]} {
			f.needles.Add("a key in hexadecimal digits", []byte(hex.EncodeToString(half)))
			f.needles.Add("a key in base 64", []byte(base64.StdEncoding.EncodeToString(half)))
		}
	}
}

// canaries adds the sectors of one write.
func (f *finder) canaries(e wire.LeaseEvent) {
	n := int(e.Count) * canary.SectorSize
	if len(f.buf) < n {
		f.buf = make([]byte, n)
	}
	canary.Fill(f.buf[:n], f.hunt, e.Tag, e.Sector, e.Version)
	for i := range e.Count {
		f.sectors[f.hash(f.buf[i*canary.SectorSize:])] = sectorName{e.Tag, e.Sector + i, e.Version}
	}
}

func (f *finder) hash(p []byte) uint64 { return maphash.Bytes(f.seed, p[:canary.SectorSize]) }

// known says how much the finder looks for.
func (f *finder) known() (needles, sectors int) { return f.needles.Len(), len(f.sectors) }

// maxFound is how many finds of one search are told.
const maxFound = 8

// search looks through everything that a disk holds.
func (f *finder) search(name string, d *disk.Disk) (found []string, searched int64) {
	d.Pieces(func(where string, off int64, p []byte) {
		searched += int64(len(p))
		for _, text := range f.bytes(name+"'s "+where, off, p) {
			if len(found) < maxFound {
				found = append(found, text)
			}
		}
	})
	return found, searched
}

// bytes searches p, which starts where a sector does. Sectors of zeros, which
// most are, are passed over.
func (f *finder) bytes(where string, off int64, p []byte) (found []string) {
	for at := 0; at < len(p); {
		end := at
		for end < len(p) && [canary.SectorSize]byte(p[end:]) != [canary.SectorSize]byte{} {
			end += canary.SectorSize
		}
		if end == at {
			at += canary.SectorSize
			continue
		}
		for i := at; i < end; i += canary.SectorSize {
			if s, ok := f.sectors[f.hash(p[i:])]; ok {
				found = append(found, fmt.Sprintf("sector %d, version %d, of lease %#x as its tenant wrote it in %s at %#x",
					s.sector, s.version, s.tag, where, off+int64(i)))
			}
		}
		for _, hit := range f.needles.In(p[at:end], where, uint64(off)+uint64(at)) {
			found = append(found, hit.String())
		}
		at = end
	}
	return found
}
