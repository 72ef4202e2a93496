package nbd

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"vacate/internal/blk"
)

// TestTermsVectors reads the table of docs/spec/nbd.md.
func TestTermsVectors(t *testing.T) {
	page, err := os.ReadFile("../../../docs/spec/nbd.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(page)) {
		// | `1004…` | 1 MiB | 512 | structured, allocation, block sizes |
		f := strings.Split(line, "|")
		if len(f) != 6 || !strings.HasPrefix(strings.TrimSpace(f[1]), "`0x") {
			continue
		}
		n++
		bits, err1 := strconv.ParseUint(strings.Trim(f[1], " `"), 0, 64)
		size, err2 := strconv.ParseInt(strings.ReplaceAll(strings.TrimSpace(f[2]), ",", ""), 10, 64)
		logical, err3 := strconv.Atoi(strings.TrimSpace(f[3]))
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatalf("%s: %v, %v, %v", line, err1, err2, err3)
		}
		want := terms{size: uint64(size), align: 1}
		for word := range strings.SplitSeq(f[4], ",") {
			switch strings.TrimSpace(word) {
			case "structured replies":
				want.structured = true
			case "base:allocation":
				want.allocation = true
			case "block sizes":
				want.align = uint64(logical)
			case "none":
			default:
				t.Errorf("unknown word %q", word)
			}
		}
		g := blk.Geometry{Size: size, Logical: logical}
		if got, err := unpackTerms(bits, g); err != nil || got != want {
			t.Errorf("unpackTerms(%#x) = %+v, %v, want %+v", bits, got, err, want)
		}
		if got := want.pack(g); got != bits {
			t.Errorf("pack = %#x, want %#x", got, bits)
		}
	}
	if n != 4 {
		t.Errorf("the page has %d vectors of terms, want 4", n)
	}
}

// TestTermsRefused flips each bit: only those that say what was negotiated may
// differ, and never to base:allocation without structured replies.
func TestTermsRefused(t *testing.T) {
	g := blk.Geometry{Size: 5 << 30, Logical: 512}
	all := terms{size: uint64(g.Size), align: 512, structured: true, allocation: true}
	good := all.pack(g)
	for bit := range 64 {
		_, err := unpackTerms(good^1<<bit, g)
		smaller := bit < termsBlockShift && good&(1<<bit) != 0 // the volume has got larger since
		if free := bit == 53 || bit == 54 || smaller; (err == nil) != free {
			t.Errorf("terms with bit %d flipped: %v", bit, err)
		}
	}
	for _, other := range []blk.Geometry{{Size: 5<<30 - 4096, Logical: 512}, {Size: 5 << 30, Logical: 4096}, {Size: 40 << 30, Logical: 4096}} {
		if _, err := unpackTerms(good, other); err == nil || !strings.Contains(err.Error(), "another volume") {
			t.Errorf("terms of another volume %+v: %v", other, err)
		}
	}
}

// TestTermsOfGrown: a client keeps the size that it was told, however often the
// volume gets larger and the connection is handed over.
func TestTermsOfGrown(t *testing.T) {
	g := blk.Geometry{Size: 1 << 20, Logical: 512}
	want := terms{size: 1 << 20, align: 512, structured: true}
	bits := want.pack(g)
	for range 3 {
		g.Size += 4096
		got, err := unpackTerms(bits, g)
		if err != nil || got != want || got.pack(g) != bits {
			t.Errorf("volume of %d bytes: %+v, %v, packed as %#x, want %#x", g.Size, got, err, got.pack(g), bits)
		}
	}
	// Of a volume whose size has more bits than the terms, nobody can tell.
	g.Size = 1 << 58
	for _, size := range []uint64{1 << 20, 1<<58 - 4096} {
		told := terms{size: size, align: 1}
		if got, err := unpackTerms(told.pack(g), g); err == nil {
			t.Errorf("terms of %d bytes for a volume of 2^58: %+v", size, got)
		}
	}
}

func FuzzTerms(f *testing.F) {
	for _, g := range []blk.Geometry{{Size: 1 << 20, Logical: 512}, {Size: blk.MaxVolume, Logical: 4096}} {
		f.Add((&terms{align: 1}).pack(g), g.Size, uint8(9))
		f.Add((&terms{align: 4096, structured: true, allocation: true}).pack(g), g.Size, uint8(12))
	}
	f.Add(uint64(0), int64(4096), uint8(0))
	f.Add(^uint64(0), int64(4096), uint8(12))
	f.Fuzz(func(t *testing.T, v uint64, size int64, shift uint8) {
		g := blk.Geometry{Size: size, Logical: 1 << (1 + shift%12)}
		if size <= 0 || size > blk.MaxVolume || size%int64(g.Logical) != 0 {
			return
		}
		got, err := unpackTerms(v, g)
		if err != nil {
			if got != (terms{}) {
				t.Errorf("terms %+v with error %v", got, err)
			}
			return
		}
		if back := got.pack(g); back != v {
			t.Errorf("terms %#x are packed as %#x", v, back)
		}
		if got.size == 0 || got.size > uint64(size) || got.align != 1 && got.align != uint64(g.Logical) || got.allocation && !got.structured {
			t.Errorf("terms %#x of %+v: %+v", v, g, got)
		}
	})
}
