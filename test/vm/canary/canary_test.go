package canary

import (
	"bytes"
	"testing"
)

// TestFill: sectors are all different, can be made again in parts, and show the
// magic in every second version only.
func TestFill(t *testing.T) {
	seen := map[[SectorSize]byte]string{}
	for _, hunt := range []uint64{1, 2} {
		magic := Magic(hunt)
		for _, tag := range []uint64{0, 1, 1 << 24} {
			for version := uint32(1); version < 5; version++ {
				p := make([]byte, 8*SectorSize)
				Fill(p, hunt, tag, 100, version)
				for i := range 8 {
					sector := p[i*SectorSize:][:SectorSize]
					if other, ok := seen[[SectorSize]byte(sector)]; ok {
						t.Fatalf("two sectors are alike: %s", other)
					}
					seen[[SectorSize]byte(sector)] = "one of them"
					if has := bytes.HasPrefix(sector, magic[:]); has != (version%2 == 0) {
						t.Errorf("version %d: magic %v", version, has)
					}
					again := make([]byte, SectorSize)
					Fill(again, hunt, tag, 100+int64(i), version)
					if !bytes.Equal(again, sector) {
						t.Fatalf("sector %d made alone is another", i)
					}
				}
			}
		}
	}
}
