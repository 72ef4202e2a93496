package virtq

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"unsafe"
)

// A Region is a piece of guest memory.
type Region struct {
	GuestAddr uint64 // where the guest sees it: what descriptors hold
	Size      uint64 // bytes
	UserAddr  uint64 // where the frontend sees it: what the addresses of rings are told in
	Host      []byte // where this process sees it; len(Host) == Size
}

// ErrMemory is wrapped by every error about an address that is no guest memory.
var ErrMemory = errors.New("not guest memory")

// Memory is the memory of a guest, as the frontend has described it. It does not
// change: a frontend that adds or removes a region gets a new one, and rings
// that are made anew. It may be used from any goroutine.
//
// What it hands out stays mapped as long as its maker says, may change at any
// time, and may fault (SIGBUS: the frontend has cut the file).
type Memory struct {
	regions []Region // by GuestAddr
}

// NewMemory returns the memory that consists of the regions. It is refused with
// all the reasons at once if one of them is empty, wraps around, has a Host of
// another size, or overlaps another, as the guest or as the frontend sees it.
func NewMemory(regions []Region) (*Memory, error) {
	m := &Memory{regions: slices.Clone(regions)}
	var errs []error
	for i := range m.regions {
		r := &m.regions[i]
		switch {
		case r.Size == 0:
			errs = append(errs, fmt.Errorf("the memory region at %#x is empty", r.GuestAddr))
		case r.GuestAddr > math.MaxUint64-r.Size || r.UserAddr > math.MaxUint64-r.Size:
			errs = append(errs, fmt.Errorf("the memory region of %#x bytes at %#x (frontend: %#x) wraps around", r.Size, r.GuestAddr, r.UserAddr))
		case uint64(len(r.Host)) != r.Size:
			errs = append(errs, fmt.Errorf("the memory region of %#x bytes at %#x has %#x bytes here", r.Size, r.GuestAddr, len(r.Host)))
		}
		for j := range m.regions[:i] {
			if o := &m.regions[j]; overlap(r.GuestAddr, r.Size, o.GuestAddr, o.Size) || overlap(r.UserAddr, r.Size, o.UserAddr, o.Size) {
				errs = append(errs, fmt.Errorf("the memory regions at %#x and %#x overlap", o.GuestAddr, r.GuestAddr))
			}
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	slices.SortFunc(m.regions, func(a, b Region) int {
		if a.GuestAddr < b.GuestAddr {
			return -1
		}
		return 1
	})
	return m, nil
}

// overlap reports whether two ranges share a byte. They may wrap around.
func overlap(a, an, b, bn uint64) bool { return b-a < an || a-b < bn }

// Guest appends to dst the memory of n bytes at a guest address: one slice for
// each region that it goes across. The error wraps [ErrMemory]: not all of it is
// guest memory; dst is then returned as it came.
func (m *Memory) Guest(dst [][]byte, addr, n uint64) ([][]byte, error) {
	if r := m.find(addr); r != nil && n > 0 && n <= r.Size-(addr-r.GuestAddr) { // nearly always
		from := addr - r.GuestAddr
		return append(dst, r.Host[from:from+n:from+n]), nil
	}
	all := dst
	for at, left := addr, n; left > 0; {
		r := m.find(at)
		if r == nil {
			return dst, fmt.Errorf("%#x bytes at guest address %#x: %w", n, addr, ErrMemory)
		}
		from := at - r.GuestAddr
		part := min(left, r.Size-from)
		all = append(all, r.Host[from:from+part:from+part])
		at, left = at+part, left-part
	}
	return all, nil
}

// find returns the region of a guest address, or nil. Frontends have few.
func (m *Memory) find(addr uint64) *Region {
	for i := range m.regions {
		if r := &m.regions[i]; addr-r.GuestAddr < r.Size {
			return r
		}
	}
	return nil
}

// User returns the memory of n bytes at an address of the frontend. The error
// wraps [ErrMemory]: it is not within one region.
func (m *Memory) User(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if from := addr - r.UserAddr; from < r.Size && n <= r.Size-from {
			return r.Host[from : from+n : from+n], nil
		}
	}
	return nil, fmt.Errorf("%#x bytes at the frontend's address %#x: %w", n, addr, ErrMemory)
}

// Regions returns a copy of the regions, by guest address.
func (m *Memory) Regions() []Region { return slices.Clone(m.regions) }

// holds reports whether an address of this process is in guest memory.
func (m *Memory) holds(addr uintptr) bool {
	for i := range m.regions {
		if within(addr, m.regions[i].Host) {
			return true
		}
	}
	return false
}

// within reports whether an address of this process lies in a page of b: where memory
// is broken, the kernel names the page.
func within(addr uintptr, b []byte) bool {
	const page = 4 << 10 // the smallest there is
	first := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	from, to := first&^(page-1), (first+uintptr(len(b))+page-1)&^(page-1)
	return len(b) > 0 && addr-from < to-from
}
