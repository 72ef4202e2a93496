package vhostclient

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"vacate/internal/sys"
)

// A Memory is a guest's memory: one file, mapped here in one piece, which the
// server is told of in several regions that lie beside each other. Guest addresses,
// addresses here and offsets in the file all differ, as with every monitor.
type Memory struct {
	File    *os.File
	Regions []Region
	bytes   []byte
	used    int
}

// A Region is what a message says of one.
type Region struct{ Guest, Size, User, Offset uint64 }

const (
	guestBase = 1 << 30 // where the guest's memory begins
	pageSize  = 4096
)

// newMemory makes a memory of at least size bytes in n regions.
func newMemory(size, n int) (*Memory, error) {
	size = (size + n*pageSize - 1) / (n * pageSize) * (n * pageSize)
	f, err := sys.Memfd("guest", int64(size))
	if err != nil {
		return nil, err
	}
	b, err := sys.MapShared(f, size)
	if err != nil {
		_ = f.Close() // err tells more
		return nil, err
	}
	m := &Memory{File: f, bytes: b}
	user := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	part := uint64(size / n)
	for i := range uint64(n) {
		m.Regions = append(m.Regions, Region{guestBase + i*part, part, user + i*part, i * part})
	}
	return m, nil
}

func (m *Memory) close() error {
	err := sys.Unmap(m.bytes)
	if cerr := m.File.Close(); err == nil {
		err = cerr
	}
	return err
}

// Alloc returns n zeroed bytes of the memory that begin at a page. They are never
// given back.
func (m *Memory) Alloc(n int) ([]byte, error) {
	at := (m.used + pageSize - 1) / pageSize * pageSize
	if n < 0 || at+n > len(m.bytes) {
		return nil, fmt.Errorf("vhost-user: the guest's memory of %d bytes has no room for %d", len(m.bytes), n)
	}
	m.used = at + n
	return m.bytes[at : at+n : at+n], nil
}

// Guest returns the guest's address of b, which lies in the memory.
func (m *Memory) Guest(b []byte) uint64 { return guestBase + m.offset(b) }

// User returns the address that the server is told of for rings.
func (m *Memory) User(b []byte) uint64 { return m.Regions[0].User + m.offset(b) }

func (m *Memory) offset(b []byte) uint64 {
	at := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) - m.Regions[0].User
	if at+uint64(len(b)) > uint64(len(m.bytes)) {
		panic("vhostclient: a buffer outside the guest's memory")
	}
	return at
}

// encode returns the region as messages have it.
func (r Region) encode(b []byte) []byte {
	for _, v := range [...]uint64{r.Guest, r.Size, r.User, r.Offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// newEvent makes an eventfd, which blocks a reader.
func newEvent() (*os.File, error) {
	const cloexec = 0o2000000
	fd, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, cloexec, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("eventfd2", errno)
	}
	return os.NewFile(fd, "eventfd"), nil
}
