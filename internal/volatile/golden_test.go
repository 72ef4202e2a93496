package volatile

import (
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"

	"vacate/internal/sys"
)

// golden returns a file of testdata as a keeper would hand it over: a sealed
// memfd. Those files are of every version of the layout that must be readable;
// they were made from docs/spec/volatile.md by a program that shares nothing
// with this package, and are never made anew.
func golden(t *testing.T, name string) *os.File {
	t.Helper()
	packed, err := os.Open("testdata/" + name + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	f, err := sys.Memfd(name, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTableOfLayout2(t *testing.T) {
	tab, err := OpenTable(golden(t, "table-2"))
	if err != nil {
		t.Fatal(err)
	}
	defer tab.Close()
	if h, err := tab.Header(); err != nil || h != specHeader {
		t.Errorf("header %+v, %v", h, err)
	}
	other := LeaseID([]byte("zyxwvutsrqponm72"))
	want := map[int]Record{
		0: {
			Lease: testLease, State: StateOpen, LogicalBlock: 512, SizeBytes: 1 << 40, MapBytes: 33566720,
			Generation: 3, KeyGeneratedNs: 1_000_000_001, UID: 1000,
		},
		5: {
			Lease: other, State: StateEnded, LogicalBlock: 4096, SizeBytes: 4096, MapBytes: 16384, Generation: 2,
			KeyGeneratedNs: 11, GateClosedNs: 12, CiphersDoneNs: 13, KeyDestroyedNs: 14, UID: 7,
		},
		6: { // behind it stands half of the next one
			Lease: other, State: StateClosing, LogicalBlock: 4096, SizeBytes: 8192, MapBytes: 20480, Generation: 1,
			KeyGeneratedNs: 21, GateClosedNs: 22, UID: 8,
		},
		1023: {
			Lease: other, State: StateErased, LogicalBlock: 512, SizeBytes: 4096, MapBytes: 2109440, Generation: 3,
			KeyGeneratedNs: 31, GateClosedNs: 32, CiphersDoneNs: 33, KeyDestroyedNs: 34, UID: 9,
		},
	}
	for i := range Slots {
		if r, err := tab.Get(i); err != nil || r != want[i] {
			t.Errorf("slot %d: %+v, %v, want %+v", i, r, err, want[i])
		}
	}
	drives := map[int]DriveRecord{
		0:  specDrive,
		63: {UUID: upwards(0x50), Node: upwards(0x40), Epoch: 2, Path: "/" + strings.Repeat("p", 431)},
	}
	for i := range DriveSlots {
		if r, err := tab.GetDrive(i); err != nil || r != drives[i] {
			t.Errorf("drive slot %d: %+v, %v, want %+v", i, r, err, drives[i])
		}
	}
	// A later version goes on with it.
	next := want[6]
	next.State, next.KeyDestroyedNs = StateErased, 24
	if err := tab.Put(6, next); err != nil {
		t.Error(err)
	}
	if r, err := tab.Get(6); err != nil || r != next {
		t.Errorf("slot 6 after a Put: %+v, %v", r, err)
	}
}

func TestMapOfLayout2(t *testing.T) {
	m, err := OpenMap(golden(t, "map-2"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const blocks, extents = 32769 * 64, 130
	if m.Blocks() != blocks || m.Lease() != testLease {
		t.Errorf("%d blocks of lease %v", m.Blocks(), m.Lease())
	}
	xs, err := m.Extents()
	if err != nil || len(xs) != extents {
		t.Fatalf("%d extents, %v", len(xs), err)
	}
	for i, x := range xs {
		if want := (Extent{Drive: upwards(byte(0x30 + i%2)), First: uint32(10 * i), Count: uint32(i + 1)}); x != want {
			t.Errorf("extent %d: %+v, want %+v", i, x, want)
		}
	}
	words, summary := make(map[int]uint64), make(map[int]uint64)
	for _, b := range []int{0, 63, 64, 32768, blocks - 1} {
		words[b/64] |= 1 << (b % 64)
		summary[b/32768/64] |= 1 << (b / 32768 % 64)
	}
	for i := range m.Words() {
		if got := m.Words()[i].Load(); got != words[i] {
			t.Errorf("word %d is %#x, want %#x", i, got, words[i])
		}
	}
	for i := range m.Summary() {
		if got := m.Summary()[i].Load(); got != summary[i] {
			t.Errorf("word %d of the summary is %#x, want %#x", i, got, summary[i])
		}
	}
}
