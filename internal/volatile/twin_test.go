package volatile

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// testDrive returns a drive's record of which all fields follow from n, so that
// a mixture of two shows.
func testDrive(n uint64) DriveRecord {
	return DriveRecord{
		UUID: [16]byte{1, byte(n), byte(n >> 8)}, Node: [16]byte{2, byte(n)}, Epoch: n, ForceForward: n%2 == 1,
		Path: "/" + strings.Repeat(string(rune('a'+n%26)), int(n%MaxDrivePath)), Watched: [16]byte{byte(n), 15: byte(n >> 8)},
	}
}

// A kindOfSlot is what a test needs to know of one of the two kinds.
type kindOfSlot[R comparable, P record[R]] struct {
	twins func(*Table) *twins[R, P]
	make  func(n uint64) R
	n     func(R) uint64 // the inverse
}

var (
	leaseSlots = kindOfSlot[Record, *Record]{
		func(t *Table) *twins[Record, *Record] { return &t.leases }, testRecord, func(r Record) uint64 { return r.Generation },
	}
	driveSlots = kindOfSlot[DriveRecord, *DriveRecord]{
		func(t *Table) *twins[DriveRecord, *DriveRecord] { return &t.drives }, testDrive, func(r DriveRecord) uint64 { return r.Epoch },
	}
)

func TestPutCutAtEveryWord(t *testing.T) { // T1
	t.Run("lease", func(t *testing.T) { cutPut(t, leaseSlots) })
	t.Run("drive", func(t *testing.T) { cutPut(t, driveSlots) })
}

func cutPut[R comparable, P record[R]](t *testing.T, k kindOfSlot[R, P]) {
	tab := newTable(t)
	words := k.twins(tab).size / 8
	for before := range uint64(4) {
		for _, next := range []R{k.make(77), *new(R)} {
			for done := 0; done <= words+1; done++ { // the sequence is stored twice
				tab.Reset(testHeader)
				cutOnce(t, k, tab, before, next, done)
			}
		}
	}
}

// cutOnce ends a Put of next after so many of its stores, in a slot that was
// written so many times before. The record is the one before until the last
// store, all else never changes, and what a successor puts is there.
func cutOnce[R comparable, P record[R]](t *testing.T, k kindOfSlot[R, P], tab *Table, before uint64, next R, done int) {
	t.Helper()
	const slot = 1
	tw := k.twins(tab)
	var want R
	for n := range before {
		want = k.make(50 + n)
		if err := tw.put(slot, want); err != nil {
			t.Fatal(err)
		}
	}
	was := bytes.Clone(tab.region.Bytes())
	_, c, sequence, err := tw.get(slot)
	if err != nil {
		t.Fatal(err)
	}
	if sequence != 0 {
		c = 1 - c
	}
	b := make([]byte, tw.size)
	encodeCopy(b, sequence+1, P(&next))
	n := 0
	for at, v := range inOrder(b) {
		if n == done {
			break
		}
		tw.copyOf(slot, c)[at].Store(v)
		n++
	}
	if done == tw.size/8+1 {
		want = next
	}
	if got, _, _, err := tw.get(slot); err != nil || got != want {
		t.Fatalf("%d Puts, then %d stores: %+v, %v, want %+v", before, done, got, err, want)
	}
	last := k.make(99)
	if err := tw.put(slot, last); err != nil {
		t.Fatalf("%d Puts, then %d stores: the successor cannot write: %v", before, done, err)
	}
	if got, _, _, err := tw.get(slot); err != nil || got != last {
		t.Fatalf("%d Puts, %d stores, the successor's Put: %+v, %v", before, done, got, err)
	}
	checkNeighbours(t, tab, was, &tw.words[0], 2*tw.size*slot, 2*tw.size)
}

// checkNeighbours checks that all of the table is as it was, but for the n bytes
// that start at bytes behind the word first.
func checkNeighbours(t *testing.T, tab *Table, was []byte, first *atomic.Uint64, at, n int) {
	t.Helper()
	for i := range tab.words {
		if &tab.words[i] == first {
			at += i * 8
			break
		}
	}
	is := tab.region.Bytes()
	if !bytes.Equal(is[:at], was[:at]) || !bytes.Equal(is[at+n:], was[at+n:]) {
		t.Fatalf("something else than bytes %d to %d has changed", at, at+n)
	}
}

// TestPutStoresInOrder: put makes the stores of which cutOnce makes some.
func TestPutStoresInOrder(t *testing.T) {
	var b [recordSize]byte
	encodeCopy(b[:], 9, &Record{})
	var at []int
	var first, last uint64
	for i, v := range inOrder(b[:]) {
		if len(at) == 0 {
			first = v
		}
		at, last = append(at, i), v
	}
	if len(at) != recordSize/8+1 || at[0] != 0 || first != 0 || at[len(at)-1] != 0 || last != 9 {
		t.Errorf("stores at %v, the first %d, the last %d", at, first, last)
	}
	for i, w := range at[1 : len(at)-1] {
		if w != i+1 {
			t.Errorf("store %d is of word %d", i+1, w)
		}
	}
}

func TestGetDuringPut(t *testing.T) { // T2
	t.Run("lease", func(t *testing.T) { getDuringPut(t, leaseSlots) })
	t.Run("drive", func(t *testing.T) { getDuringPut(t, driveSlots) })
}

// getDuringPut reads with two goroutines, one of them through a mapping of its
// own, what a third one writes. No reader sees a mixture, nor goes back.
func getDuringPut[R comparable, P record[R]](t *testing.T, k kindOfSlot[R, P]) {
	tab := newTable(t)
	other, err := reopen(t, tab)
	if err != nil {
		t.Fatal(err)
	}
	const slot = 7
	var stop atomic.Bool
	var wrote atomic.Uint64
	var reads [2]atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := uint64(1); !stop.Load(); n++ {
			if err := k.twins(tab).put(slot, k.make(n)); err != nil {
				t.Error(err)
				return
			}
			wrote.Store(n)
		}
	})
	for i, tab := range []*Table{tab, other} {
		wg.Go(func() {
			for last := uint64(0); !stop.Load(); reads[i].Add(1) {
				r, _, _, err := k.twins(tab).get(slot)
				n := k.n(r)
				if err != nil || n < last || n > 0 && r != k.make(n) {
					t.Errorf("after record %d: %+v, %v", last, r, err)
					return
				}
				last = n
			}
		})
	}
	few := func() bool { return min(wrote.Load(), reads[0].Load(), reads[1].Load()) < 100 }
	for begun := time.Now(); time.Since(begun) < 300*time.Millisecond || few() && time.Since(begun) < time.Minute && !t.Failed(); {
		time.Sleep(10 * time.Millisecond)
	}
	stop.Store(true)
	wg.Wait()
	if few() {
		t.Errorf("%d records, %d and %d reads: nothing was tested", wrote.Load(), reads[0].Load(), reads[1].Load())
	}
}

func TestDriveRecordsKept(t *testing.T) {
	tab := newTable(t)
	other, err := reopen(t, tab)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 1, DriveSlots - 1} {
		for _, n := range []uint64{1, 2, MaxDrivePath - 1, MaxDrivePath} { // paths of 2, 3, 432 and 1 bytes
			if err := tab.PutDrive(i, testDrive(n)); err != nil {
				t.Fatal(err)
			}
			if got, err := other.GetDrive(i); err != nil || got != testDrive(n) {
				t.Fatalf("drive slot %d: %+v, %v", i, got, err)
			}
		}
	}
	if err := errors.Join(tab.PutDrive(1, DriveRecord{}), tab.Put(Slots-1, testRecord(3))); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]DriveRecord{0: testDrive(MaxDrivePath), 1: {}, 2: {}, DriveSlots - 1: testDrive(MaxDrivePath)} {
		if got, err := other.GetDrive(i); err != nil || got != want {
			t.Errorf("drive slot %d: %+v, %v", i, got, err)
		}
	}
	h := testHeader
	h.Generation = 9
	tab.SetHeader(h)
	if got, err := other.Header(); err != nil || got != h {
		t.Errorf("header: %+v, %v", got, err)
	}
	if r, err := other.Get(Slots - 1); err != nil || r != testRecord(3) {
		t.Errorf("SetHeader changed a lease slot: %+v, %v", r, err)
	}
	tab.Reset(h)
	for i := range DriveSlots {
		if got, err := other.GetDrive(i); err != nil || got != (DriveRecord{}) {
			t.Errorf("drive slot %d after Reset: %+v, %v", i, got, err)
		}
	}
}

func TestDriveRecordRefused(t *testing.T) {
	tab := newTable(t)
	for name, change := range map[string]func(r *DriveRecord){
		"no UUID":       func(r *DriveRecord) { r.UUID = [16]byte{} },
		"no node":       func(r *DriveRecord) { r.Node = [16]byte{} },
		"no path":       func(r *DriveRecord) { r.Path = "" },
		"long path":     func(r *DriveRecord) { r.Path = strings.Repeat("p", MaxDrivePath+1) },
		"zero in path":  func(r *DriveRecord) { r.Path = "/dev/a\x00b" },
		"only an epoch": func(r *DriveRecord) { *r = DriveRecord{Epoch: 1} },
	} {
		r := testDrive(1)
		change(&r)
		if err := tab.PutDrive(4, r); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, i := range []int{-1, DriveSlots} {
		if err := tab.PutDrive(i, testDrive(1)); !errors.Is(err, ErrSlot) {
			t.Errorf("PutDrive(%d): %v", i, err)
		}
		if _, err := tab.GetDrive(i); !errors.Is(err, ErrSlot) {
			t.Errorf("GetDrive(%d): %v", i, err)
		}
	}
	if r, err := tab.GetDrive(4); err != nil || r != (DriveRecord{}) {
		t.Errorf("a refused record was stored: %+v, %v", r, err)
	}
}

// TestDriveRecordEveryBit flips each bit of a drive slot. One flip leaves it as
// it was: the older copy becomes an unfinished one.
func TestDriveRecordEveryBit(t *testing.T) {
	tab := newTable(t)
	for n := uint64(1); n < 4; n++ {
		if err := tab.PutDrive(9, testDrive(n)); err != nil {
			t.Fatal(err)
		}
	}
	b := tab.region.Bytes()[drivesAt+9*driveSlotSize:][:driveSlotSize]
	for i := range driveSlotSize * 8 {
		b[i/8] ^= 1 << (i % 8)
		unfinished := i == driveSize*8+1 // sequence 2 becomes 0
		if r, err := tab.GetDrive(9); !errors.Is(err, ErrDamaged) && (!unfinished || r != testDrive(3)) {
			t.Errorf("bit %d of a drive slot: %+v, %v", i, r, err)
		}
		b[i/8] ^= 1 << (i % 8)
	}
	if r, err := tab.GetDrive(9); err != nil || r != testDrive(3) {
		t.Errorf("after all: %+v, %v", r, err)
	}
}

// TestReservedBytes: a later version may use them, and then this one must not
// guess. The checksum is right each time.
func TestReservedBytes(t *testing.T) {
	t.Run("lease", func(t *testing.T) {
		reserved(t, testRecord(1), recordSize, recExports, recExportFlags, recQueues, recQueues+1, recReservedEnd, recCRC-1)
	})
	t.Run("drive", func(t *testing.T) {
		r := testDrive(1)
		reserved(t, r, driveSize, drvFlags+1, drvFlags+3, drvPath+len(r.Path), drvWatched-1, drvReserved, drvCRC-1)
	})
	t.Run("table", func(t *testing.T) {
		for _, at := range []int{80, tableHeaderSize - 5} {
			var b [tableHeaderSize]byte
			encodeTableHeader(&b, testHeader)
			b[at] = 1
			seal(b[:])
			if h, err := decodeTableHeader(&b); !errors.Is(err, ErrFormat) {
				t.Errorf("byte %d of the header: %+v, %v", at, h, err)
			}
		}
	})
}

func reserved[R comparable, P record[R]](t *testing.T, r R, size int, bytes ...int) {
	t.Helper()
	for _, at := range bytes {
		b := make([]byte, size)
		encodeCopy(b, 1, P(&r))
		b[at] = 1
		seal(b)
		var got R
		if _, err := decodeCopy(b, P(&got)); !errors.Is(err, ErrFormat) {
			t.Errorf("byte %d: %+v, %v", at, got, err)
		}
	}
}

func FuzzDriveRecord(f *testing.F) {
	var b [driveSize]byte
	for n, r := range []DriveRecord{testDrive(1), testDrive(MaxDrivePath - 1), {}} {
		encodeCopy(b[:], uint64(n+1), &r)
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, again [driveSize]byte
		copy(b[:], in)
		for range 2 { // as it is, and with the checksum that the fuzzer cannot guess
			var r DriveRecord
			seq, err := decodeCopy(b[:], &r)
			switch {
			case err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrDamaged):
				t.Fatalf("an error of another kind: %v", err)
			case err == nil && seq != 0:
				if encodeCopy(again[:], seq, &r); again != b {
					t.Fatalf("decoded %+v, encoded differently", r)
				}
			}
			seal(b[:])
		}
	})
}
