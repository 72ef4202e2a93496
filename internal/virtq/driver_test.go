package virtq

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
)

// guest is the memory of a guest under test, and its driver's view: a slow and
// obvious one, which looks up every byte.
type guest struct {
	regions []Region
	mem     *Memory
}

// The regions of a guest under test: the first two lie side by side, for the
// guest only.
const (
	ramA, ramASize = 0x1000, 0x10000
	ramB, ramBSize = ramA + ramASize, 0x8000
	ramC, ramCSize = 0x10_0000_0000, 0x4000
	userBase       = 0x7f00_0000_0000
)

// mapped maps a file of n bytes, which the test may cut.
func mapped(tb testing.TB, n int) ([]byte, *os.File) {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "memory"))
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.Truncate(int64(n)); err != nil {
		tb.Fatal(err)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := syscall.Munmap(b); err != nil {
			tb.Error(err)
		}
		if err := f.Close(); err != nil {
			tb.Error(err)
		}
	})
	return b, f
}

func newGuest(tb testing.TB) *guest {
	tb.Helper()
	b, _ := mapped(tb, ramASize+ramBSize+ramCSize+3*0x1000)
	host := func(from, n int) []byte { return b[from : from+n : from+n] }
	g := &guest{regions: []Region{
		{ramC, ramCSize, userBase, host(0, ramCSize)},
		{ramB, ramBSize, userBase + 0x100_0000, host(ramCSize+0x1000, ramBSize)},
		{ramA, ramASize, userBase + 0x200_0000, host(ramCSize+ramBSize+0x2000, ramASize)},
	}}
	var err error
	if g.mem, err = NewMemory(g.regions); err != nil {
		tb.Fatal(err)
	}
	return g
}

// at returns the byte at a guest address, or nil.
func (g *guest) at(addr uint64) *byte {
	for _, r := range g.regions {
		if addr >= r.GuestAddr && addr-r.GuestAddr < r.Size {
			return &r.Host[addr-r.GuestAddr]
		}
	}
	return nil
}

// user returns the frontend's address of a guest address.
func (g *guest) user(addr uint64) uint64 {
	for _, r := range g.regions {
		if addr >= r.GuestAddr && addr-r.GuestAddr < r.Size {
			return addr - r.GuestAddr + r.UserAddr
		}
	}
	panic(fmt.Sprintf("%#x is no guest memory", addr))
}

func (g *guest) put(addr uint64, b ...byte) {
	for i, c := range b {
		*g.at(addr + uint64(i)) = c
	}
}

func (g *guest) put16(addr uint64, v uint16) { g.put(addr, byte(v), byte(v>>8)) }

func (g *guest) get16(addr uint64) uint16 { return uint16(*g.at(addr)) | uint16(*g.at(addr + 1))<<8 }

func (g *guest) get32(addr uint64) uint32 {
	return uint32(g.get16(addr)) | uint32(g.get16(addr+2))<<16
}

func (g *guest) putDesc(addr uint64, d desc) {
	b := binary.LittleEndian.AppendUint64(nil, d.addr)
	b = binary.LittleEndian.AppendUint32(b, d.len)
	b = binary.LittleEndian.AppendUint16(b, d.flags)
	g.put(addr, binary.LittleEndian.AppendUint16(b, d.next)...)
}

// driver is the driver's side of a ring.
type driver struct {
	*guest
	size                uint16
	desc, avail, used   uint64 // guest addresses
	eventIdx            bool
	availIdx, usedIdx   uint16
	free                []uint16
	chains              map[uint16]*asked // by head: made available, and not used
	indirectAt, spacing uint64            // where indirect tables go, a slot a head
}

// asked is a request that the driver has made.
type asked struct {
	head  uint16
	descs []uint16 // that it takes in the table
	parts []desc   // as the device is to see them
}

// newDriver lays out a ring at the start of region A, with indexes from base on.
func newDriver(g *guest, size, base uint16, eventIdx bool) *driver {
	d := &driver{guest: g, size: size, eventIdx: eventIdx, availIdx: base, usedIdx: base, chains: map[uint16]*asked{}}
	d.desc = ramA
	d.avail = d.desc + 16*uint64(size) + 2 // as odd as the rules allow
	d.used = (d.avail + 4 + 2*uint64(size) + 2 + 3) &^ 3
	d.indirectAt, d.spacing = ramA+0x2008, 0x88
	g.put16(d.avail+2, base)
	g.put16(d.used+2, base)
	for i := range size {
		d.free = append(d.free, i)
	}
	return d
}

func (d *driver) config() Config {
	return Config{
		Size: d.size, DescAddr: d.user(d.desc), AvailAddr: d.user(d.avail), UsedAddr: d.user(d.used),
		Base: d.availIdx, EventIdx: d.eventIdx, Indirect: true, Memory: d.mem,
	}
}

// add makes a request of parts available: the first few directly, the others, if
// any, in an indirect table. It reports false where there is no room.
func (d *driver) add(parts []desc, direct int, table uint64) (*asked, bool) {
	need := direct
	if direct < len(parts) {
		need++
	}
	if len(parts) == 0 || need > len(d.free) {
		return nil, false
	}
	a := &asked{parts: slices.Clone(parts), descs: slices.Clone(d.free[:need])}
	d.free = d.free[need:]
	a.head = a.descs[0]
	for i, at := range a.descs {
		e := desc{table, uint32(16 * (len(parts) - direct)), descIndirect, 0}
		if i < direct {
			e = parts[i]
		}
		if i < need-1 {
			e.flags |= descNext
			e.next = a.descs[i+1]
		}
		d.putDesc(d.desc+16*uint64(at), e)
	}
	for i, e := range parts[direct:] {
		if i < len(parts)-direct-1 {
			e.flags |= descNext
			e.next = uint16(i + 1)
		}
		d.putDesc(table+16*uint64(i), e)
	}
	d.put16(d.avail+4+2*uint64(d.availIdx%d.size), a.head)
	d.availIdx++
	d.put16(d.avail+2, d.availIdx)
	d.chains[a.head] = a
	return a, true
}

// harvest takes one request that the device has shown as used.
func (d *driver) harvest() (a *asked, written uint32, ok bool) {
	if d.get16(d.used+2) == d.usedIdx {
		return nil, 0, false
	}
	at := d.used + 4 + 8*uint64(d.usedIdx%d.size)
	a = d.chains[uint16(d.get32(at))]
	if a == nil {
		panic(fmt.Sprintf("descriptor %d is used, and was not available", d.get32(at)))
	}
	d.usedIdx++
	delete(d.chains, a.head)
	d.free = append(d.free, a.descs...)
	return a, d.get32(at + 4), true
}

// bytes returns what the parts of one kind hold, byte for byte.
func (d *driver) bytes(a *asked, write bool) (all []*byte) {
	for _, p := range a.parts {
		if (p.flags&descWrite != 0) == write {
			for i := range uint64(p.len) {
				all = append(all, d.at(p.addr+i))
			}
		}
	}
	return all
}

// same reports whether slices are those bytes of memory.
func same(parts [][]byte, want []*byte) bool {
	n := 0
	for _, p := range parts {
		for i := range p {
			if n == len(want) || want[n] != &p[i] {
				return false
			}
			n++
		}
	}
	return n == len(want)
}

func newRing(tb testing.TB, c Config) *Ring {
	tb.Helper()
	r, err := New(c)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// faults has faults of this goroutine come out as panics, as the worker does.
func faults(tb testing.TB) {
	old := debug.SetPanicOnFault(true)
	tb.Cleanup(func() { debug.SetPanicOnFault(old) })
}
