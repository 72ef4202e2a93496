package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"vacate/internal/mem"
	"vacate/internal/sys"
)

const (
	tableMagic      = "VACATETB"
	tableHeaderSize = 128
	slotSize        = 2 * recordSize
	driveSlotSize   = 2 * driveSize
	drivesAt        = pageSize + Slots*slotSize
	tableSize       = drivesAt + DriveSlots*driveSlotSize
)

// A TableHeader says whose volatile memory this is.
type TableHeader struct {
	KeeperID   [16]byte // random, new with each keeper
	BootID     [16]byte // of the boot that it lives in
	Generation uint64   // engines that this keeper has started, the present one included
	Emptied    uint64   // the last engine before the keeper destroyed every key and emptied the table; 0: it never did
}

// A Table is a mapping of the lease table: a record a slot, for leases and for
// drives.
//
// Get and GetDrive may be called from any goroutine and any process, at any
// time. Put and PutDrive of one slot belong to one goroutine of the engine at a
// time; SetHeader and Reset to the keeper, while there is no engine.
//
//	T1: after a crash within a Put, Get returns the record before or after.
//	T2: Get never returns a mixture of two records.
type Table struct {
	file   *os.File
	region *mem.Region
	words  []atomic.Uint64
	leases twins[Record, *Record]
	drives twins[DriveRecord, *DriveRecord]
}

// CreateTable makes an empty table with this header.
func CreateTable(h TableHeader) (*Table, error) {
	f, err := sys.Memfd("vacate-table", tableSize)
	if err != nil {
		return nil, fmt.Errorf("making the lease table: %w", err)
	}
	t, err := mapTable(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the lease table: %w", err), f.Close())
	}
	t.SetHeader(h)
	return t, nil
}

// OpenTable maps a table that a keeper made, and takes f over. It checks the
// header and the file's size; records are checked as they are read.
func OpenTable(f *os.File) (*Table, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("opening the lease table: %w", err)
	}
	if st.Size() != tableSize {
		return nil, fmt.Errorf("opening the lease table: %d bytes, want %d: %w", st.Size(), tableSize, ErrFormat)
	}
	if err := checkSealed(f); err != nil {
		return nil, fmt.Errorf("opening the lease table: %w", err)
	}
	t, err := mapTable(f)
	if err != nil {
		return nil, fmt.Errorf("opening the lease table: %w", err)
	}
	if _, err := t.Header(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the lease table: %w", err), t.region.Close())
	}
	return t, nil
}

func mapTable(f *os.File) (*Table, error) {
	r, err := mem.MapShared(f, tableSize)
	if err != nil {
		return nil, err
	}
	w := mem.Words(r.Bytes())
	return &Table{
		file: f, region: r, words: w,
		leases: twins[Record, *Record]{what: "lease table, slot", size: recordSize, words: w[pageSize/8 : drivesAt/8]},
		drives: twins[DriveRecord, *DriveRecord]{what: "lease table, drive slot", size: driveSize, words: w[drivesAt/8:]},
	}, nil
}

// File is the table's file, to hand to an engine. It belongs to t.
func (t *Table) File() *os.File { return t.file }

// Close unmaps and closes the file.
func (t *Table) Close() error { return errors.Join(t.region.Close(), t.file.Close()) }

// Header reads the header.
func (t *Table) Header() (TableHeader, error) {
	var b [tableHeaderSize]byte
	load(b[:], t.words[:tableHeaderSize/8])
	return decodeTableHeader(&b)
}

// SetHeader writes the header for the next engine, and leaves the slots alone.
//
// REQUIRES: no engine is alive.
func (t *Table) SetHeader(h TableHeader) {
	var b [tableHeaderSize]byte
	encodeTableHeader(&b, h)
	store(t.words[:tableHeaderSize/8], b[:])
}

// Reset empties every slot and writes the header anew: the engine that is gone
// may have left anything.
//
// REQUIRES: no engine is alive.
func (t *Table) Reset(h TableHeader) {
	mem.Wipe(t.region.Bytes())
	t.SetHeader(h)
}

// Get returns the record of slot i. ErrDamaged means that the volatile memory
// can no longer be trusted: no crash of an engine causes it.
func (t *Table) Get(i int) (Record, error) {
	r, _, _, err := t.leases.get(i)
	return r, err
}

// Put makes r the record of slot i; the zero Record empties the slot.
func (t *Table) Put(i int, r Record) error { return t.leases.put(i, r) }

// GetDrive returns the record of drive slot i, 0 ≤ i < DriveSlots. Its errors
// are those of Get.
func (t *Table) GetDrive(i int) (DriveRecord, error) {
	r, _, _, err := t.drives.get(i)
	return r, err
}

// PutDrive makes r the record of drive slot i; the zero DriveRecord empties the
// slot.
func (t *Table) PutDrive(i int, r DriveRecord) error { return t.drives.put(i, r) }

func encodeTableHeader(b *[tableHeaderSize]byte, h TableHeader) {
	le := binary.LittleEndian
	*b = [tableHeaderSize]byte{}
	copy(b[:], tableMagic)
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], Slots)
	le.PutUint32(b[16:], slotSize)
	le.PutUint32(b[20:], KeySlotSize)
	copy(b[24:], h.KeeperID[:])
	copy(b[40:], h.BootID[:])
	le.PutUint64(b[56:], h.Generation)
	le.PutUint32(b[64:], DriveSlots)
	le.PutUint32(b[68:], driveSlotSize)
	le.PutUint64(b[72:], h.Emptied)
	seal(b[:])
}

func decodeTableHeader(b *[tableHeaderSize]byte) (h TableHeader, err error) {
	le := binary.LittleEndian
	if err := checkHead(b[:], tableMagic, "lease table"); err != nil {
		return h, err
	}
	for _, f := range []struct {
		at   int
		want uint32
		what string
	}{
		{12, Slots, "slots"}, {16, slotSize, "bytes a slot"}, {20, KeySlotSize, "bytes a key"},
		{64, DriveSlots, "drive slots"}, {68, driveSlotSize, "bytes a drive slot"},
	} {
		if got := le.Uint32(b[f.at:]); got != f.want {
			return h, fmt.Errorf("lease table: %d %s, want %d: %w", got, f.what, f.want, ErrFormat)
		}
	}
	if !allZero(b[80 : tableHeaderSize-4]) {
		return h, fmt.Errorf("lease table: reserved bytes of the header are in use: %w", ErrFormat)
	}
	copy(h.KeeperID[:], b[24:])
	copy(h.BootID[:], b[40:])
	h.Generation, h.Emptied = le.Uint64(b[56:]), le.Uint64(b[72:])
	return h, nil
}
