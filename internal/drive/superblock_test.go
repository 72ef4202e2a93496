package drive

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
)

// vector is the drive of the vectors in docs/spec/superblock.md.
func vector() Superblock {
	sb, err := layout(1 << 40)
	if err != nil {
		panic(err)
	}
	for i := range sb.Node {
		sb.Node[i], sb.UUID[i] = byte(i), byte(0xf0+i)
	}
	sb.Epoch = 0x0102030405060708
	return sb
}

// TestSuperblockVectors compares with the hex dumps of the specification, which
// come from another program, written from the same page.
func TestSuperblockVectors(t *testing.T) {
	spec, err := os.ReadFile("../../docs/spec/superblock.md")
	if err != nil {
		t.Fatal(err)
	}
	dumps := regexp.MustCompile("(?s)```hex\n(.*?)```").FindAllSubmatch(spec, -1)
	if len(dumps) != 2 {
		t.Fatalf("%d hex dumps in the specification, want copy A and copy B", len(dumps))
	}
	want := vector()
	for which, d := range dumps {
		b := undump(t, string(d[1]))
		got, err := decode(b, which)
		if err != nil || got != want {
			t.Errorf("copy %d: decoded %+v, %v, want %+v", which, got, err, want)
		}
		enc := make([]byte, superblockSize)
		want.encode(enc, which)
		if !bytes.Equal(enc, b) {
			t.Errorf("copy %d: encoded %x, want %x", which, enc[:96], b[:96])
		}
	}
}

// undump reads lines of an offset and hex bytes; what is not listed is zero.
func undump(t *testing.T, dump string) []byte {
	t.Helper()
	b := make([]byte, superblockSize)
	for line := range strings.Lines(strings.TrimSpace(dump)) {
		off, text, ok := strings.Cut(strings.TrimSpace(line), ":")
		at, err := hex.DecodeString(off)
		if !ok || err != nil || len(at) != 2 {
			t.Fatalf("line %q", line)
		}
		v, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		copy(b[binary.BigEndian.Uint16(at):], v)
	}
	return b
}

// TestSuperblockBits flips each bit: every copy that differs is refused.
func TestSuperblockBits(t *testing.T) {
	sb := vector()
	b := make([]byte, superblockSize)
	for which := range 2 {
		sb.encode(b, which)
		for bit := range 8 * superblockSize {
			b[bit/8] ^= 1 << (bit % 8)
			if _, err := decode(b, which); err == nil {
				t.Fatalf("copy %d with bit %d flipped was accepted", which, bit)
			}
			b[bit/8] ^= 1 << (bit % 8)
		}
		if _, err := decode(b, 1-which); err == nil || errors.Is(err, errNoSuperblock) {
			t.Errorf("copy %d in the other's place: %v", which, err)
		}
	}
}

// TestSuperblockStrict: a checksum does not make a field right.
func TestSuperblockStrict(t *testing.T) {
	put32 := func(off int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], v) }
	}
	put64 := func(off int, v uint64) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint64(b[off:], v) }
	}
	for _, tt := range []struct {
		name   string
		change func(b []byte)
		ok     bool
	}{
		{"nothing", func([]byte) {}, true},
		{"another epoch", put64(offEpoch, math.MaxUint64), true},
		{"fewer extents", put32(offExtents, 1), true},
		{"version 0", put32(offVersion, 0), false},
		{"version 2", put32(offVersion, 2), false},
		{"copy 2", put32(offCopy, 2), false},
		{"no node", func(b []byte) { clear(b[offNode : offNode+16]) }, false},
		{"no uuid", func(b []byte) { clear(b[offUUID : offUUID+16]) }, false},
		{"size 0", put64(offSize, 0), false},
		{"negative size", put64(offSize, 1<<63), false},
		{"size too small", put64(offSize, minSize-1), false},
		{"size less than its extents", put64(offSize, 1<<39), false},
		{"data offset 0", put64(offDataOffset, 0), false},
		{"data offset past the end", put64(offDataOffset, 1<<62), false},
		{"extent size 0", put64(offExtentSize, 0), false},
		{"extent size no power of two", put64(offExtentSize, 3<<20), false},
		{"extent size too large", put64(offExtentSize, 128<<20), false},
		{"extent size too small", put64(offExtentSize, 512<<10), false},
		{"extent size negative", put64(offExtentSize, 1<<63), false},
		{"no extents", put32(offExtents, 0), false},
		{"too many extents", put32(offExtents, 1<<14), false},
		{"as many extents as fit a number", put32(offExtents, math.MaxUint32), false},
		{"reserved, first", func(b []byte) { b[offReserved] = 1 }, false},
		{"reserved, last", func(b []byte) { b[offChecksum-1] = 1 }, false},
	} {
		sb := vector()
		b := make([]byte, superblockSize)
		sb.encode(b, copyA)
		tt.change(b)
		binary.LittleEndian.PutUint32(b[offChecksum:], crc32.Checksum(b[:offChecksum], castagnoli))
		if _, err := decode(b, copyA); (err == nil) != tt.ok {
			t.Errorf("%s: %v, want it accepted: %v", tt.name, err, tt.ok)
		}
	}
	for _, n := range []int{0, 8, superblockSize - 1, superblockSize + 1} {
		if _, err := decode(make([]byte, n), copyA); !errors.Is(err, errNoSuperblock) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestLayout(t *testing.T) {
	const mib, gib, tib = 1 << 20, 1 << 30, 1 << 40
	for _, tt := range []struct {
		size, extent int64
		extents      uint32
	}{
		{16 * mib, mib, 14},
		{16*mib + 4095, mib, 14},
		{gib, mib, 1022},
		{gib + 2*mib, mib, 1024},
		{2*gib + 2*mib, 2 * mib, 1024},
		{8 * gib, 4 * mib, 2047},
		{64*gib + 2*mib, 64 * mib, 1024},
		{tib, 64 * mib, 16383},
		{1 << 57, 64 * mib, 1<<31 - 1},
	} {
		sb, err := layout(tt.size)
		if err != nil || sb.ExtentSize != tt.extent || sb.Extents != tt.extents {
			t.Errorf("layout(%d) = %+v, %v, want %d extents of %d", tt.size, sb, err, tt.extents, tt.extent)
		}
		sb.Node, sb.UUID = ID{1}, ID{2}
		if err := sb.check(); err != nil {
			t.Errorf("layout(%d): %v", tt.size, err)
		}
		if end := sb.DataOffset + int64(sb.Extents)*sb.ExtentSize; end > offsetOf(copyB, tt.size) {
			t.Errorf("layout(%d): the data area ends at %d, after copy B", tt.size, end)
		}
	}
	for _, size := range []int64{-1, 0, 16*mib - 1, 1 << 60, math.MaxInt64} {
		if sb, err := layout(size); err == nil {
			t.Errorf("layout(%d) = %+v, want an error", size, sb)
		}
	}
}

func TestParseID(t *testing.T) {
	const s = "00112233445566778899aabbccddeeff"
	id, err := ParseID(s)
	if err != nil || id.String() != s {
		t.Errorf("ParseID(%q) = %v, %v", s, id, err)
	}
	for _, bad := range []string{"", s[1:], s + "00", "zz" + s[2:]} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) succeeded", bad)
		}
	}
}

func FuzzSuperblock(f *testing.F) {
	sb := vector()
	for which := range 2 {
		b := make([]byte, superblockSize)
		sb.encode(b, which)
		f.Add(b[:96], which == copyB)
	}
	f.Add([]byte(superblockMagic), false)
	f.Fuzz(func(t *testing.T, head []byte, second bool) {
		which := copyA
		if second {
			which = copyB
		}
		b := make([]byte, superblockSize)
		copy(b, head)
		// The checksum is made right, or nothing would get past it.
		binary.LittleEndian.PutUint32(b[offChecksum:], crc32.Checksum(b[:offChecksum], castagnoli))
		got, err := decode(b, which)
		if err != nil {
			return
		}
		again := make([]byte, superblockSize)
		got.encode(again, which)
		if !bytes.Equal(again, b) {
			t.Errorf("accepted %x, which is not how %+v is written", b[:96], got)
		}
		if end := got.DataOffset + int64(got.Extents)*got.ExtentSize; end < 0 || end > offsetOf(copyB, got.Size) {
			t.Errorf("%+v: the data area ends at %d", got, end)
		}
	})
}
