package virtq

import (
	"errors"
	"os"
	"testing"
	"unsafe"
)

// TestPieces: descriptors that each go across many regions take no more memory of
// this process than is said.
func TestPieces(t *testing.T) {
	page := uint64(os.Getpagesize())
	const count = 32
	host, _ := mapped(t, count*int(page))
	g := &guest{}
	for i := range uint64(count) { // neighbours for the guest, and for nobody else
		at := i * page
		g.regions = append(g.regions, Region{GuestAddr: page + at, Size: page, UserAddr: userBase + 2*at, Host: host[at : at+page : at+page]})
	}
	var err error
	if g.mem, err = NewMemory(g.regions); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		each uint64 // regions a descriptor
		ok   bool
	}{{2, true}, {4, true}, {5, false}, {count - 6, false}} {
		d := &driver{guest: g, size: 4, chains: map[uint16]*asked{}, desc: page, avail: page + 0x100, used: page + 0x200, free: []uint16{0, 1, 2, 3}}
		clear(host)
		r := newRing(t, d.config())
		table := 2 * page
		for i := range uint64(MaxSize) {
			e := desc{6*page + page/2, uint32((tt.each - 1) * page), descWrite | descNext, uint16(i + 1)}
			if i == MaxSize-1 {
				e.flags, e.next = descWrite, 0
			}
			d.putDesc(table+16*i, e)
		}
		d.putDesc(d.desc, desc{table, 16 * MaxSize, descIndirect, 0})
		d.put16(d.avail+4, 0)
		d.put16(d.avail+2, 1)
		var c Chain
		ok, err := r.Pop(&c)
		if ok != tt.ok || !ok && !errors.Is(err, ErrRing) {
			t.Errorf("%d pieces a descriptor: %v, %v", tt.each, ok, err)
		}
		if n := cap(c.Readable) + cap(c.Writable); n > 2*maxSlices {
			t.Errorf("%d pieces a descriptor: room for %d slices is held", tt.each, n)
		}
	}
}

// poisoned is what the runtime panics with where memory is broken: the kernel names
// the page, and not what of it was touched (mm/memory-failure.c).
type poisoned uintptr

func (p poisoned) Error() string { return "poisoned" }
func (p poisoned) Addr() uintptr { return uintptr(p) }

// TestBrokenMemory: broken memory breaks the ring that touches it, wherever in its
// page that is.
func TestBrokenMemory(t *testing.T) {
	mem, _ := mapped(t, 2*os.Getpagesize())
	r := &Ring{memory: &Memory{}, inflight: &Inflight{mem: mem[0x340:0x380]}}
	first := uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	for _, tt := range []struct {
		at   uintptr
		ours bool
	}{{first, true}, {first + 0x350, true}, {first + 0xfff, true}, {first + 0x1000, false}, {first - 1, false}} {
		func() {
			defer func() {
				if p := recover(); (p == nil) != tt.ours {
					t.Errorf("%d bytes into the page: %v goes on", int64(tt.at-first), p)
				}
			}()
			var err error
			defer r.caught(&err)
			panic(poisoned(tt.at))
		}()
	}
	r.inflight = nil
	if r.touches(0) {
		t.Error("address 0 is a ring's that has nothing")
	}
}
