package nbdclient

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"
)

// TestSectorLayout reads a sector as its documentation says, by other means.
func TestSectorLayout(t *testing.T) {
	b := make([]byte, sectorSize)
	stamp{lease: leaseWords("abcdefghijklmnopq"), seed: 7, off: 4096, gen: 9}.put(b)
	if string(b[8:24]) != "abcdefghijklmnop" || string(b[:8]) != "DLYFIREV" {
		t.Errorf("sector %x", b)
	}
	for _, i := range []int{1, 58} {
		for j, want := range []uint64{7, 4096, 9} {
			if got := binary.LittleEndian.Uint64(b[8*(i+2+j):]); got != want {
				t.Errorf("word %d is %d, want %d", i+2+j, got, want)
			}
		}
	}
	sum := crc32.Checksum(b[:504], crc32.MakeTable(crc32.Castagnoli))
	if binary.LittleEndian.Uint32(b[504:]) != sum || binary.LittleEndian.Uint32(b[508:]) != ^sum {
		t.Errorf("checksum %x, want %x", b[504:], sum)
	}
}

// TestSectorFlips flips each bit of a sector: it is no whole one any more.
func TestSectorFlips(t *testing.T) {
	want := stamp{lease: leaseWords("x"), seed: 7, off: 512, gen: 9}
	b := make([]byte, sectorSize)
	want.put(b)
	if s, whole := readSector(b); !whole || s != want {
		t.Fatalf("readSector = %v, %v", s, whole)
	}
	for i := range sectorSize * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, whole := readSector(b); whole {
			t.Errorf("whole with bit %d flipped", i)
		}
		if class, text := classify(b, want, []state{newState(9, false)}); class != Garbage && class != Torn || i > 48*8 && i < 464*8 && !strings.Contains(text, "1 bytes differ from generation 9") {
			t.Errorf("bit %d flipped: %v, %s", i, class, text)
		}
		b[i/8] ^= 1 << (i % 8)
	}
}

func TestClassify(t *testing.T) {
	want := stamp{lease: leaseWords("mine"), seed: 7, off: 512}
	put := func(change func(*stamp)) []byte {
		s := want
		s.gen = 5
		change(&s)
		b := make([]byte, sectorSize)
		s.put(b)
		return b
	}
	join := func(a, b []byte, at int) []byte { return append(append([]byte{}, a[:at]...), b[at:]...) }
	old, new := put(func(*stamp) {}), put(func(s *stamp) { s.gen = 9 })
	zeros := make([]byte, sectorSize)
	noise := make([]byte, sectorSize)
	for i := range noise {
		noise[i] = byte(i * 7)
	}
	both := []state{newState(4, true), newState(7, false)}
	tests := []struct {
		name    string
		b       []byte
		allowed []state
		class   Class
		text    string
	}{
		{"stale", old, both, Stale, "generation 5"},
		{"late", new, both, Late, "generation 9"},
		{"older than the discard", old, []state{newState(6, true)}, Stale, "generation 5"},
		{"another lease", put(func(s *stamp) { s.lease = leaseWords("yours") }), both, Foreign, `lease "yours"`},
		{"another run", put(func(s *stamp) { s.seed = 8 }), both, Foreign, "seed 0x8"},
		{"another offset", put(func(s *stamp) { s.off = 1024 }), both, Misplaced, "offset 1024"},
		{"zeros", zeros, []state{newState(9, false)}, Zeros, "zeros"},
		{"noise", noise, both, Garbage, "…"},
		{"old and new", join(old, new, 256), []state{newState(5, false), newState(9, false)}, Torn, "from byte 0: generation 5; from byte "},
		{"new and older", join(new, old, 64), []state{newState(9, false)}, Torn, "generation 5"},
		{"new and zeros", join(new, zeros, 256), []state{newState(9, false)}, Torn, "from byte 256: zeros"},
		{"zeros and new", join(zeros, new, 8), []state{newState(9, false)}, Torn, "from byte 0: zeros"},
		{"new and noise", join(new, noise, 304), []state{newState(9, false)}, Garbage, "differ from generation 9"},
		{"two of another lease", join(put(func(s *stamp) { s.lease[0]++ }), put(func(s *stamp) { s.lease[0]++; s.gen++ }), 128), both, Torn, ""},
	}
	for _, tt := range tests {
		class, text := classify(tt.b, want, tt.allowed)
		if class != tt.class || !strings.Contains(text, tt.text) {
			t.Errorf("%s: %v, %q; want %v, %q", tt.name, class, text, tt.class, tt.text)
		}
	}
}

func FuzzClassify(f *testing.F) {
	b := make([]byte, sectorSize)
	f.Add(b, uint64(1), uint64(2))
	stamp{gen: 3}.put(b)
	f.Add(b, uint64(6), uint64(5))
	f.Fuzz(func(t *testing.T, b []byte, one, two uint64) {
		if len(b) != sectorSize {
			return
		}
		want := stamp{lease: leaseWords("x")}
		allowed := []state{state(one), state(two)}
		class, text := classify(b, want, allowed)
		if class >= classes || text == "" {
			t.Errorf("%d, %q", class, text)
		}
		s, whole := readSector(b)
		if whole != (class == Stale || class == Late || class == Foreign || class == Misplaced) {
			t.Errorf("%v, but whole is %v (%v)", class, whole, s)
		}
	})
}
