package volatile

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"testing"

	"vacate/internal/sys"
)

var testLease = LeaseID([]byte("abcdefghijklmn27"))

// allocated returns how many bytes of memory f takes.
func allocated(t *testing.T, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func TestMapIsSparse(t *testing.T) {
	const blocks = 1 << 28 // 1 TiB
	f, err := CreateMap(blocks, 1, testLease)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := OpenMap(dup(t, f))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Blocks() != blocks || m.Lease() != testLease {
		t.Errorf("map of %d blocks of lease %v", m.Blocks(), m.Lease())
	}
	if len(m.Words()) != blocks/64 || len(m.Summary()) != blocks/32768/64 {
		t.Errorf("%d words, %d of summary", len(m.Words()), len(m.Summary()))
	}
	for i := range m.Summary() {
		if m.Summary()[i].Load() != 0 {
			t.Fatalf("word %d of a fresh summary is not 0", i)
		}
	}
	if err := m.SetExtents(testExtents(1)); err != nil {
		t.Fatal(err)
	}
	if got := allocated(t, f); got > 12<<10 {
		t.Errorf("a fresh map of 1 TiB takes %d bytes, want at most 12 KiB", got)
	}
	// The last block: one page of bits more.
	last := uint64(blocks - 1)
	m.Summary()[last/32768/64].Or(1 << (last / 32768 % 64))
	m.Words()[last/64].Or(1 << (last % 64))
	if got := allocated(t, f); got > 16<<10 {
		t.Errorf("with one bit set it takes %d bytes, want at most 16 KiB", got)
	}
	var b [8]byte // the layout, by hand
	if _, err := f.ReadAt(b[:], 33_566_720-8); err != nil || binary.LittleEndian.Uint64(b[:]) != 1<<63 {
		t.Errorf("the last word of the file is % x, %v", b, err)
	}
	if _, err := f.ReadAt(b[:], 8192+1024-8); err != nil || binary.LittleEndian.Uint64(b[:]) != 1<<63 {
		t.Errorf("the last word of the summary is % x, %v", b, err)
	}
	if err := f.Truncate(1); err == nil {
		t.Error("the file can be cut")
	}
}

func TestMapLayout(t *testing.T) {
	for _, tt := range []struct {
		blocks                  uint64
		extents                 int
		summaryAt, bitsAt, size int64
	}{ // the table of docs/spec/volatile.md
		{1, 1, 8192, 12288, 16384},
		{1, 128, 8192, 12288, 16384},
		{1, 129, 12288, 16384, 20480},
		{32768, 1, 8192, 12288, 16384},
		{32769, 1, 8192, 12288, 20480},
		{1 << 28, 1, 8192, 12288, 33566720},
		{1<<28 + 1, 1, 8192, 12288, 33570816},
		{1 << 50, 65536, 2101248, 4297068544, 140741785423872},
	} {
		l := layoutOf(tt.blocks, tt.extents)
		if l.summaryAt != tt.summaryAt || l.bitsAt != tt.bitsAt || l.size != tt.size || MapBytes(tt.blocks, tt.extents) != tt.size {
			t.Errorf("%d blocks, %d extents: %+v, want %+v", tt.blocks, tt.extents, l, tt)
		}
		if uint64(l.bitWords)*64 < tt.blocks || l.summaryWords*64*pageSize < l.bitWords*8 ||
			int64(tt.extents)*extentSize > l.summaryAt-extentsAt {
			t.Errorf("%d blocks, %d extents do not fit %+v", tt.blocks, tt.extents, l)
		}
		if n := uint64(tt.size); !fitsMap(n, tt.blocks) || fitsMap(n+1, tt.blocks) {
			t.Errorf("%d blocks: %d bytes fit %v, one more %v", tt.blocks, n, fitsMap(n, tt.blocks), fitsMap(n+1, tt.blocks))
		}
	}
	if most := uint64(MapBytes(1, MaxExtents)); fitsMap(most+pageSize, 1) || fitsMap(uint64(MapBytes(1, 1))-pageSize, 1) || !fitsMap(most, 1) {
		t.Errorf("sizes that no map has fit, or %d does not", most)
	}
	for _, tt := range []struct {
		blocks  uint64
		extents int
	}{{0, 1}, {1<<50 + 1, 1}, {1 << 63, 1}, {1, 0}, {1, -1}, {1, MaxExtents + 1}} {
		if n := MapBytes(tt.blocks, tt.extents); n != 0 {
			t.Errorf("a map of %+v has %d bytes", tt, n)
		}
		if _, err := CreateMap(tt.blocks, tt.extents, testLease); !errors.Is(err, ErrFormat) {
			t.Errorf("CreateMap(%+v): %v", tt, err)
		}
	}
	if _, err := CreateMap(1, 1, LeaseID{}); !errors.Is(err, ErrFormat) {
		t.Errorf("CreateMap without a lease: %v", err)
	}
}

func TestMapSmallest(t *testing.T) {
	f, err := CreateMap(1, 1, testLease)
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenMap(f)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if len(m.Words()) != 1 || len(m.Summary()) != 1 {
		t.Errorf("%d words, %d of summary, want 1 and 1", len(m.Words()), len(m.Summary()))
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("OpenMap left its file open: %v", err)
	}
}

// TestOpenMapRefuses: no header makes a mapping larger than its file.
func TestOpenMapRefuses(t *testing.T) {
	header := func(blocks uint64, change func(b []byte)) []byte {
		var b [mapHeaderSize]byte
		encodeMapHeader(&b, mapHeader{Blocks: blocks, Extents: 1, Lease: testLease})
		if change != nil {
			change(b[:])
			seal(b[:])
		}
		return b[:]
	}
	for _, tt := range []struct {
		name   string
		size   int64
		header []byte
		want   error
	}{
		{"tiny file", 100, header(1, nil)[:100], ErrFormat},
		{"more blocks than the file", MapBytes(1, 1), header(32769, nil), ErrFormat},
		{"fewer blocks than the file", MapBytes(32769, 1), header(1, nil), ErrFormat},
		{"most blocks", MapBytes(1, 1), header(MaxBlocks, nil), ErrFormat},
		{"too many blocks", MapBytes(1, 1), header(1, func(b []byte) { b[16+7] = 0x80 }), ErrFormat},
		{"no blocks", MapBytes(1, 1), header(1, func(b []byte) { b[16] = 0 }), ErrFormat},
		{"too many extents", MapBytes(1, 1), header(1, func(b []byte) { b[14] = 2 }), ErrFormat},
		{"no extents", MapBytes(1, 1), header(1, func(b []byte) { b[12] = 0 }), ErrFormat},
		{"more extents than the file", MapBytes(1, 1), header(1, func(b []byte) { b[12] = 129 }), ErrFormat},
		{"bits elsewhere", MapBytes(1, 1), header(1, func(b []byte) { b[57] = 0x10 }), ErrFormat},
		{"a lease id that is none", MapBytes(1, 1), header(1, func(b []byte) { b[24] = 0 }), ErrFormat},
		{"another magic", MapBytes(1, 1), header(1, func(b []byte) { b[0] = 'X' }), ErrFormat},
		{"a later version", MapBytes(1, 1), header(1, func(b []byte) { b[8] = version + 1 }), ErrVersion},
		{"an earlier version", MapBytes(1, 1), header(1, func(b []byte) { b[8] = version - 1 }), ErrVersion},
		{"damage", MapBytes(1, 1), append(header(1, nil)[:127], 0xff), ErrDamaged},
		{"nothing", MapBytes(1, 1), nil, ErrFormat},
	} {
		f, err := sys.Memfd("test", tt.size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(tt.header, 0); err != nil {
			t.Fatal(err)
		}
		if m, err := OpenMap(f); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, %v, want %v", tt.name, m, err, tt.want)
		}
	}
	plain, err := os.CreateTemp(t.TempDir(), "map")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.WriteAt(header(1, nil), 0); err != nil {
		t.Fatal(err)
	}
	if err := plain.Truncate(MapBytes(1, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMap(plain); err == nil {
		t.Error("a file whose size is not sealed was mapped")
	}
}
