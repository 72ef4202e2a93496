package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func sector(b byte) []byte { return bytes.Repeat([]byte{b}, SectorSize) }

func at(t *testing.T, d *Disk, sector int64) byte {
	t.Helper()
	p := make([]byte, SectorSize)
	if err := d.Read(p, sector*SectorSize); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, bytes.Repeat(p[:1], SectorSize)) {
		t.Fatalf("sector %d is torn", sector)
	}
	return p[0]
}

// TestModel compares the disk with a slow model: for each sector, which versions
// a cut may leave. All that may be left must be left at times.
func TestModel(t *testing.T) {
	const sectors = 8
	r := seeded(t)
	lostSome, keptSome, old := 0, 0, 0
	s := NewSupply()
	d := New(s, sectors*SectorSize)
	may := make([][]byte, sectors) // what each may hold after a cut; the newest last
	for i := range may {
		may[i] = []byte{0}
	}
	for round := range 2000 {
		for range r.IntN(12) {
			switch k := r.IntN(8); {
			case k == 0:
				if err := d.Flush(); err != nil {
					t.Fatal(err)
				}
				for i, m := range may {
					may[i] = m[len(m)-1:]
				}
			default:
				first := r.IntN(sectors)
				n := 1 + r.IntN(sectors-first)
				v := byte(1 + r.IntN(255))
				if err := d.Write(bytes.Repeat(sector(v), n), int64(first)*SectorSize, k == 1); err != nil {
					t.Fatal(err)
				}
				for i := first; i < first+n; i++ {
					if k == 1 {
						may[i] = nil
					}
					may[i] = append(may[i], v)
				}
			}
		}
		for i, m := range may {
			if got := at(t, d, int64(i)); got != m[len(m)-1] {
				t.Fatalf("round %d: sector %d reads %d, want %d", round, i, got, m[len(m)-1])
			}
		}
		if r.IntN(3) > 0 {
			continue
		}
		s.Cut()
		s.PowerOn(r)
		for i, m := range may {
			got := at(t, d, int64(i))
			switch where := bytes.LastIndexByte(m, got); {
			case where < 0:
				t.Fatalf("round %d: sector %d holds %d after the cut, which may leave %d", round, i, got, m)
			case len(m) > 1 && where == 0:
				lostSome++
			case len(m) > 1 && where == len(m)-1:
				keptSome++
			case len(m) > 2:
				old++
			}
			may[i] = []byte{got}
		}
	}
	if lostSome < 100 || keptSome < 100 || old < 100 {
		t.Errorf("%d sectors lost all, %d kept all, %d kept a version between: one hardly happens", lostSome, keptSome, old)
	}
}

// TestCutAt: the n-th write or flush is not answered, nor is anything after it.
func TestCutAt(t *testing.T) {
	for _, done := range []bool{false, true} {
		s := NewSupply()
		d, other := New(s, 4*SectorSize), New(s, SectorSize)
		d.CutAt(3, done)
		if err := errors.Join(d.Write(sector(1), 0, false), d.Flush()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-s.Off():
			t.Fatal("cut too early")
		default:
		}
		d.Write(sector(2), SectorSize, false) //nolint:errcheck // judged below
		<-s.Off()
		if err := d.Write(sector(3), 0, false); !errors.Is(err, ErrOff) {
			t.Errorf("writing without power: %v", err)
		}
		if err := d.Flush(); !errors.Is(err, ErrOff) {
			t.Errorf("flushing without power: %v", err)
		}
		if err := other.Read(make([]byte, SectorSize), 0); !errors.Is(err, ErrOff) {
			t.Errorf("reading the other disk without power: %v", err)
		}
		cached := 0
		d.Pieces(func(where string, off int64, p []byte) {
			if where == "write cache" && off == SectorSize && bytes.Equal(p, sector(2)) {
				cached++
			}
		})
		if want := map[bool]int{true: 1}[done]; cached != want {
			t.Errorf("done %v: the write is in the cache %d times, want %d", done, cached, want)
		}
		s.PowerOn(rand.New(rand.NewPCG(1, 1)))
		if got := at(t, d, 0); got != 1 {
			t.Errorf("what was flushed reads %d", got)
		}
		if err := d.Write(sector(4), 0, false); err != nil {
			t.Errorf("writing with power again: %v", err)
		}
	}
}

// TestFlushAtCut: a flush that is carried out keeps what was written, though it is
// never answered; one that is not keeps nothing for sure.
func TestFlushAtCut(t *testing.T) {
	for _, done := range []bool{false, true} {
		lost := false
		for seed := range uint64(50) {
			s := NewSupply()
			d := New(s, SectorSize)
			d.CutAt(2, done)
			if err := d.Write(sector(1), 0, false); err != nil {
				t.Fatal(err)
			}
			if err := d.Flush(); !errors.Is(err, ErrOff) {
				t.Fatalf("the flush at the cut: %v", err)
			}
			s.PowerOn(rand.New(rand.NewPCG(seed, 0)))
			lost = lost || at(t, d, 0) == 0
		}
		if lost == done {
			t.Errorf("flush done %v: lost %v", done, lost)
		}
	}
}

// TestLie: a disk that lies loses what was flushed: the bug that hunts plant.
func TestLie(t *testing.T) {
	lost := false
	for seed := range uint64(50) {
		s := NewSupply()
		d := New(s, SectorSize)
		d.Lie()
		if err := errors.Join(d.Write(sector(1), 0, true), d.Flush()); err != nil {
			t.Fatal(err)
		}
		s.Cut()
		s.PowerOn(rand.New(rand.NewPCG(seed, 0)))
		lost = lost || at(t, d, 0) == 0
	}
	if !lost {
		t.Error("nothing was lost")
	}
}

// TestCacheIsBounded: more than the cache holds goes to the medium by itself.
func TestCacheIsBounded(t *testing.T) {
	s := NewSupply()
	d := New(s, 4*cacheBytes)
	for off := int64(0); off < d.Size(); off += 1 << 20 {
		if err := d.Write(bytes.Repeat([]byte{7}, 1<<20), off, false); err != nil {
			t.Fatal(err)
		}
	}
	cached := 0
	d.Pieces(func(where string, _ int64, p []byte) {
		if where == "write cache" {
			cached += len(p)
		}
	})
	if cached > cacheBytes {
		t.Errorf("%d bytes are in the cache, which holds %d", cached, cacheBytes)
	}
	s.Cut()
	for range 20 { // whatever is lost
		s.PowerOn(seeded(t))
		if got := at(t, d, 0); got != 7 {
			t.Fatalf("the oldest write reads %d", got)
		}
		s.Cut()
	}
}

func TestBounds(t *testing.T) {
	d := New(NewSupply(), 4*SectorSize)
	for _, tt := range []struct {
		off int64
		n   int
	}{{-512, 512}, {0, 5 * 512}, {4 * 512, 512}, {1, 512}, {0, 511}, {1 << 62, 512}} {
		if err := d.Write(make([]byte, tt.n), tt.off, false); err == nil {
			t.Errorf("writing %d bytes at %d of a disk of 2048: no error", tt.n, tt.off)
		}
		if err := d.Read(make([]byte, tt.n), tt.off); err == nil {
			t.Errorf("reading %d bytes at %d of a disk of 2048: no error", tt.n, tt.off)
		}
	}
}
