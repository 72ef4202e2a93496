package volatile

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testHeader = TableHeader{KeeperID: [16]byte{1, 2}, BootID: [16]byte{3}, Generation: 1}

func newTable(t *testing.T) *Table {
	t.Helper()
	tab, err := CreateTable(testHeader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tab.Close() })
	return tab
}

func reopen(t *testing.T, tab *Table) (*Table, error) {
	t.Helper()
	fd, err := syscall.Dup(int(tab.File().Fd()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenTable(os.NewFile(uintptr(fd), "table"))
	if err == nil {
		t.Cleanup(func() { again.Close() })
	}
	return again, err
}

func testRecord(n uint64) Record {
	return Record{
		Lease: LeaseID([]byte("abcdefghijklmn27")), State: StateOpen, LogicalBlock: 512,
		SizeBytes: n * 4096, MapBytes: uint64(MapBytes(n, 1)), Generation: n, UID: uint32(n),
		KeyGeneratedNs: int64(n), GateClosedNs: int64(n), CiphersDoneNs: int64(n), KeyDestroyedNs: int64(n),
		Limits: Limits{IOPS: uint32(n), IOPSBurst: uint32(n), Bytes: n, BytesBurst: n},
	}
}

func TestTableKeepsRecords(t *testing.T) {
	tab := newTable(t)
	other, err := reopen(t, tab)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := other.Header(); err != nil || h != testHeader {
		t.Errorf("header %+v, %v", h, err)
	}
	for _, i := range []int{0, 1, Slots - 1} {
		for n := uint64(1); n < 6; n++ {
			if err := tab.Put(i, testRecord(n)); err != nil {
				t.Fatal(err)
			}
			got, err := other.Get(i)
			if diff := cmp.Diff(testRecord(n), got); err != nil || diff != "" {
				t.Fatalf("slot %d: %v\n%s", i, err, diff)
			}
		}
	}
	if err := tab.Put(1, Record{}); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]Record{0: testRecord(5), 1: {}, 2: {}, Slots - 1: testRecord(5)} {
		if got, err := other.Get(i); err != nil || got != want {
			t.Errorf("slot %d: %+v, %v", i, got, err)
		}
	}
	h := testHeader
	h.Generation = 2
	tab.Reset(h)
	for i := range Slots {
		if got, err := other.Get(i); err != nil || got != (Record{}) {
			t.Errorf("slot %d after Reset: %+v, %v", i, got, err)
		}
	}
	if got, err := other.Header(); err != nil || got != h {
		t.Errorf("header after Reset: %+v, %v", got, err)
	}
}

func TestTableRefuses(t *testing.T) {
	tab := newTable(t)
	for name, change := range map[string]func(r *Record){
		"state":      func(r *Record) { r.State = states },
		"lease":      func(r *Record) { r.Lease[3] = 'A' },
		"logical":    func(r *Record) { r.LogicalBlock = 1024 },
		"size 0":     func(r *Record) { r.SizeBytes, r.MapBytes = 0, 0 },
		"half block": func(r *Record) { r.SizeBytes++ },
		"size":       func(r *Record) { r.SizeBytes = 1<<62 + 4096 },
		"map":        func(r *Record) { r.MapBytes++ },
		"generation": func(r *Record) { r.Generation = 0 },
		"time":       func(r *Record) { r.KeyDestroyedNs = -1 },
		"burst":      func(r *Record) { r.Limits = Limits{Bytes: 1, IOPSBurst: 1} },
		"bytes":      func(r *Record) { r.Limits = Limits{IOPS: 1, BytesBurst: 1} },
		"bandwidth":  func(r *Record) { r.Limits = Limits{Bytes: 1<<50 + 1} },
		"at once":    func(r *Record) { r.Limits = Limits{Bytes: 1, BytesBurst: 1<<50 + 1} },
		"empty":      func(r *Record) { r.State = StateEmpty },
	} {
		r := testRecord(1)
		change(&r)
		if err := tab.Put(4, r); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, i := range []int{-1, Slots} {
		if err := tab.Put(i, testRecord(1)); !errors.Is(err, ErrSlot) {
			t.Errorf("Put(%d): %v", i, err)
		}
		if _, err := tab.Get(i); !errors.Is(err, ErrSlot) {
			t.Errorf("Get(%d): %v", i, err)
		}
	}
	if r, err := tab.Get(4); err != nil || r != (Record{}) {
		t.Errorf("a refused record was stored: %+v, %v", r, err)
	}
}

// TestTableEveryBit flips each bit of a header and of a slot: both are refused.
// One flip leaves the slot as it was: it makes the older copy an unfinished one.
func TestTableEveryBit(t *testing.T) {
	tab := newTable(t)
	for n := uint64(1); n < 4; n++ {
		if err := tab.Put(9, testRecord(n)); err != nil {
			t.Fatal(err)
		}
	}
	b := tab.region.Bytes()
	for i := range tableHeaderSize * 8 {
		b[i/8] ^= 1 << (i % 8)
		if _, err := reopen(t, tab); err == nil {
			t.Errorf("bit %d of the header: nobody noticed", i)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	for i := range slotSize * 8 {
		at := pageSize + 9*slotSize + i/8
		b[at] ^= 1 << (i % 8)
		unfinished := i == recordSize*8+1 // sequence 2 becomes 0
		if r, err := tab.Get(9); !errors.Is(err, ErrDamaged) && (!unfinished || r != testRecord(3)) {
			t.Errorf("bit %d of a slot: %+v, %v", i, r, err)
		}
		b[at] ^= 1 << (i % 8)
	}
	if r, err := tab.Get(9); err != nil || r != testRecord(3) {
		t.Errorf("after all: %+v, %v", r, err)
	}
}

// TestTableTorn kills a writer in mid-store, again and again, while this
// process reads: T1 and T2. The writer puts records 1, 2, 3, … of which all
// fields follow from the first, so that a mixture shows, into a lease slot and
// a drive slot.
func TestTableTorn(t *testing.T) {
	tab := newTable(t)
	var reads, last, lastDrive uint64
	for round := range 60 {
		cmd := part(t, "table writer", tab.File())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed at a random moment of its writing, however long it takes to start.
		from, fromDrive := last, lastDrive
		deadline := time.Now().Add(30 * time.Second)
		for running := false; time.Now().Before(deadline); reads++ {
			checkWhole(t, tab, leaseSlots, &last)
			checkWhole(t, tab, driveSlots, &lastDrive)
			if !running && last > from && lastDrive > fromDrive {
				running = true
				deadline = time.Now().Add(time.Duration(rand.IntN(10000)) * time.Microsecond)
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() //nolint:errcheck // it was killed
		checkWhole(t, tab, leaseSlots, &last)
		checkWhole(t, tab, driveSlots, &lastDrive)
		if last == from || lastDrive == fromDrive {
			t.Fatalf("round %d: the writer wrote nothing", round)
		}
		last, lastDrive = last+1, lastDrive+1
		if err := errors.Join(tab.Put(tornSlot, testRecord(last)), tab.PutDrive(tornSlot, testDrive(lastDrive))); err != nil {
			t.Fatalf("round %d: the successor cannot write: %v", round, err)
		}
	}
	t.Logf("%d reads, %d and %d records", reads, last, lastDrive)
}

const tornSlot = 3

func checkWhole[R comparable, P record[R]](t *testing.T, tab *Table, k kindOfSlot[R, P], last *uint64) {
	t.Helper()
	r, _, _, err := k.twins(tab).get(tornSlot)
	if err != nil {
		t.Fatal(err)
	}
	n := k.n(r)
	if n < *last || n > 0 && r != k.make(n) || n == 0 && r != *new(R) {
		t.Fatalf("a mixture, or older than record %d: %+v", *last, r)
	}
	*last = n
}

func partTableWriter() error {
	tab, err := OpenTable(os.NewFile(4, "table"))
	if err != nil {
		return err
	}
	r, err := tab.Get(tornSlot)
	d, err2 := tab.GetDrive(tornSlot)
	err = errors.Join(err, err2)
	for n, m := r.Generation+1, d.Epoch+1; err == nil; n, m = n+1, m+1 {
		err = errors.Join(tab.Put(tornSlot, testRecord(n)), tab.PutDrive(tornSlot, testDrive(m)))
	}
	return err
}

func FuzzRecord(f *testing.F) {
	var b [recordSize]byte
	r := testRecord(1)
	encodeCopy(b[:], 1, &r)
	f.Add(b[:])
	encodeCopy(b[:], 2, &Record{})
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, again [recordSize]byte
		copy(b[:], in)
		for range 2 { // as it is, and with the checksum that the fuzzer cannot guess
			var r Record
			if seq, err := decodeCopy(b[:], &r); err == nil && seq != 0 {
				if encodeCopy(again[:], seq, &r); again != b {
					t.Fatalf("decoded %+v, encoded differently", r)
				}
			}
			seal(b[:])
		}
	})
}

func FuzzHeaders(f *testing.F) {
	var th [tableHeaderSize]byte
	encodeTableHeader(&th, testHeader)
	f.Add(th[:])
	var mh [mapHeaderSize]byte
	encodeMapHeader(&mh, mapHeader{Blocks: 1 << 28, Extents: 1, Lease: testRecord(1).Lease})
	f.Add(mh[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, again [128]byte
		copy(b[:], in)
		for range 2 {
			if h, err := decodeTableHeader(&b); err == nil {
				if encodeTableHeader(&again, h); !bytes.Equal(again[:], b[:]) {
					t.Fatalf("table header %+v encoded differently", h)
				}
			}
			if h, err := decodeMapHeader(&b); err == nil {
				if encodeMapHeader(&again, h); !bytes.Equal(again[:], b[:]) {
					t.Fatalf("map header %+v encoded differently", h)
				}
			}
			seal(b[:])
		}
	})
}
