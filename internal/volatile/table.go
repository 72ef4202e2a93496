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
	tableSize       = pageSize + Slots*slotSize
)

// A TableHeader says whose volatile memory this is.
type TableHeader struct {
	KeeperID   [16]byte // random, new with each keeper
	BootID     [16]byte // of the boot that it lives in
	Generation uint64   // engines that this keeper has started, the present one included
}

// A Table is a mapping of the lease table: a record a slot.
//
// Get may be called from any goroutine and any process, at any time. Put of one
// slot belongs to one goroutine of the engine at a time; Reset to the keeper,
// while there is no engine.
//
//	T1: after a crash within Put, Get returns the record before or after.
//	T2: Get never returns a mixture of two records.
type Table struct {
	file   *os.File
	region *mem.Region
	words  []atomic.Uint64
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
	t.setHeader(h)
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
	return &Table{file: f, region: r, words: mem.Words(r.Bytes())}, nil
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

func (t *Table) setHeader(h TableHeader) {
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
	t.setHeader(h)
}

// copyWords is where copy c (0 or 1) of slot i lies.
func (t *Table) copyWords(i, c int) []atomic.Uint64 {
	at := (pageSize + i*slotSize + c*recordSize) / 8
	return t.words[at : at+recordSize/8]
}

// Get returns the record of slot i. ErrDamaged means that the volatile memory
// can no longer be trusted: no crash of an engine causes it.
func (t *Table) Get(i int) (Record, error) {
	r, _, _, err := t.get(i)
	return r, err
}

// get also tells which copy the record was read from, and its sequence.
func (t *Table) get(i int) (r Record, c int, sequence uint64, err error) {
	if err := checkSlot(i); err != nil {
		return Record{}, 0, 0, err
	}
	var b [2][recordSize]byte
	if !t.stable(i, &b) {
		return Record{}, 0, 0, fmt.Errorf("lease table, slot %d: it never stops changing: %w", i, ErrDamaged)
	}
	var seq [2]uint64
	var rec [2]Record
	for c := range 2 {
		if seq[c], rec[c], err = decodeRecord(&b[c]); err != nil {
			return Record{}, 0, 0, fmt.Errorf("lease table, slot %d: %w", i, err)
		}
	}
	if seq[1] > seq[0] {
		c = 1
	}
	return rec[c], c, seq[c], nil
}

// stable reads both copies of slot i at one moment: neither sequence changed
// meanwhile, and a writer changes a copy only while its sequence is 0.
func (t *Table) stable(i int, b *[2][recordSize]byte) bool {
	c0, c1 := t.copyWords(i, 0), t.copyWords(i, 1)
	for range 1 << 16 { // each takes longer than a writer needs
		s0, s1 := c0[0].Load(), c1[0].Load()
		load(b[0][:], c0)
		load(b[1][:], c1)
		if c0[0].Load() == s0 && c1[0].Load() == s1 &&
			binary.LittleEndian.Uint64(b[0][:]) == s0 && binary.LittleEndian.Uint64(b[1][:]) == s1 {
			return true
		}
	}
	return false
}

// Put makes r the record of slot i; the zero Record empties the slot.
//
//  1. The older copy's sequence becomes 0: an unfinished copy, which no reader
//     takes.
//  2. Its other words are written, the checksum included.
//  3. Its sequence is written, one above the other copy's: from here on it is
//     the record.
func (t *Table) Put(i int, r Record) error {
	_, c, sequence, err := t.get(i)
	if err != nil {
		return err
	}
	if err := r.validate(); err != nil {
		return fmt.Errorf("lease table, slot %d: %w", i, err)
	}
	if sequence != 0 {
		c = 1 - c
	}
	var b [recordSize]byte
	encodeRecord(&b, sequence+1, &r)
	w := t.copyWords(i, c)
	w[0].Store(0)
	store(w[1:], b[8:])
	w[0].Store(binary.LittleEndian.Uint64(b[:8]))
	return nil
}

// load and store move bytes in words, each atomically. A word of the layout is
// little-endian, as are all machines that Vacate runs on: bytes keep their
// order.
func load(b []byte, w []atomic.Uint64) {
	for i := range w {
		binary.NativeEndian.PutUint64(b[i*8:], w[i].Load())
	}
}

func store(w []atomic.Uint64, b []byte) {
	for i := range w {
		w[i].Store(binary.NativeEndian.Uint64(b[i*8:]))
	}
}

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
	seal(b[:])
}

func decodeTableHeader(b *[tableHeaderSize]byte) (h TableHeader, err error) {
	le := binary.LittleEndian
	if err := checkHead(b[:], tableMagic, "lease table"); err != nil {
		return h, err
	}
	if le.Uint32(b[12:]) != Slots || le.Uint32(b[16:]) != slotSize || le.Uint32(b[20:]) != KeySlotSize ||
		!allZero(b[64:tableHeaderSize-4]) {
		return h, fmt.Errorf("lease table: %d slots of %d bytes, keys of %d: %w",
			le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:]), ErrFormat)
	}
	copy(h.KeeperID[:], b[24:])
	copy(h.BootID[:], b[40:])
	h.Generation = le.Uint64(b[56:])
	return h, nil
}
