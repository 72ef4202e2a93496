package virtioblk

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/sys"
	"vacate/internal/virtq"
)

// Where the guest's memory lies: two regions that are neighbours for the guest, and
// for nobody else.
const (
	guestBase = 0x10_0000
	userBase  = 0x7000_0000_0000
)

// A guest is its memory, with an allocator that never frees.
type guest struct {
	tb     testing.TB
	file   *os.File
	half   int
	parts  [2][]byte
	memory *virtq.Memory
	next   uint64
}

func newGuest(tb testing.TB, half int) *guest {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "guest"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(2 * half)); err != nil {
		tb.Fatal(err)
	}
	g := &guest{tb: tb, file: f, half: half, next: guestBase}
	var regions []virtq.Region
	for i := range g.parts {
		b, err := syscall.Mmap(int(f.Fd()), int64(i*half), half, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = syscall.Munmap(b) })
		g.parts[i] = b
		at := uint64(guestBase + i*half)
		regions = append(regions, virtq.Region{GuestAddr: at, Size: uint64(half), UserAddr: at + userBase, Host: b})
	}
	if g.memory, err = virtq.NewMemory(regions); err != nil {
		tb.Fatal(err)
	}
	return g
}

// alloc returns the address of n bytes at a multiple of align.
func (g *guest) alloc(n int, align uint64) uint64 {
	at := (g.next + align - 1) &^ (align - 1)
	g.next = at + uint64(n)
	if g.next > guestBase+uint64(2*g.half) {
		g.tb.Fatal("the guest is out of memory")
	}
	return at
}

// at returns the memory at a guest address, up to the end of its region.
func (g *guest) at(addr uint64) []byte {
	off := int(addr - guestBase)
	if off < g.half {
		return g.parts[0][off:]
	}
	return g.parts[1][off-g.half:]
}

func (g *guest) word(addr uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(g.at(addr))))
}

func (g *guest) put(addr uint64, p []byte) {
	for len(p) > 0 {
		n := copy(g.at(addr), p)
		addr, p = addr+uint64(n), p[n:]
	}
}

func (g *guest) get(addr uint64, n int) []byte {
	p := make([]byte, n)
	for done := 0; done < n; {
		done += copy(p[done:], g.at(addr+uint64(done)))
	}
	return p
}

// A span is a part of guest memory that a descriptor names.
type span struct {
	addr  uint64
	n     uint32
	write bool
}

// A driver drives one ring.
type driver struct {
	g        *guest
	size     uint16
	eventIdx bool
	flags    virtq.Config // the ring as the device is told of it

	desc, avail, used uint64
	free              []uint16
	chains            map[uint16][]uint16
	made              uint16 // avail.idx
	seen              uint16 // used.idx
	files             RingFiles
}

func newDriver(g *guest, size uint16, eventIdx bool) *driver {
	d := &driver{
		g: g, size: size, eventIdx: eventIdx, chains: make(map[uint16][]uint16),
		desc: g.alloc(16*int(size), 4096), avail: g.alloc(6+2*int(size), 4096), used: g.alloc(6+8*int(size), 4096),
	}
	for i := range size {
		d.free = append(d.free, size-1-i)
	}
	for _, fd := range []*int{&d.files.Kick, &d.files.Call, &d.files.Err} {
		var err error
		if *fd, err = sys.NewEvent(); err != nil {
			g.tb.Fatal(err)
		}
		n := *fd
		g.tb.Cleanup(func() { _ = sys.CloseFD(n) })
	}
	return d
}

func (d *driver) config() virtq.Config {
	return virtq.Config{
		Size: d.size, DescAddr: d.desc + userBase, AvailAddr: d.avail + userBase, UsedAddr: d.used + userBase,
		Base: d.seen, EventIdx: d.eventIdx, Indirect: true, Memory: d.g.memory, Inflight: d.flags.Inflight,
	}
}

// ring is the device's side of it.
func (d *driver) ring() *virtq.Ring {
	d.g.tb.Helper()
	r, err := virtq.New(d.config())
	if err != nil {
		d.g.tb.Fatal(err)
	}
	return r
}

func (d *driver) putDesc(table uint64, i uint16, s span, flags, next uint16) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], s.addr)
	binary.LittleEndian.PutUint32(b[8:], s.n)
	if s.write {
		flags |= 2
	}
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
	d.g.put(table+16*uint64(i), b[:])
}

// add makes a chain available, and returns its head. It does not kick.
func (d *driver) add(chain []span, indirect bool) uint16 {
	take := func() uint16 {
		if len(d.free) == 0 {
			d.g.tb.Fatal("the driver is out of descriptors")
		}
		i := d.free[len(d.free)-1]
		d.free = d.free[:len(d.free)-1]
		return i
	}
	head := take()
	used := []uint16{head}
	switch {
	case indirect:
		table := d.g.alloc(16*len(chain), 16)
		for i, s := range chain {
			flags := uint16(1)
			if i == len(chain)-1 {
				flags = 0
			}
			d.putDesc(table, uint16(i), s, flags, uint16(i+1))
		}
		d.putDesc(d.desc, head, span{addr: table, n: uint32(16 * len(chain))}, 4, 0)
	default:
		i := head
		for k, s := range chain {
			if k == len(chain)-1 {
				d.putDesc(d.desc, i, s, 0, 0)
				break
			}
			next := take()
			used = append(used, next)
			d.putDesc(d.desc, i, s, 1, next)
			i = next
		}
	}
	d.chains[head] = used
	d.offer(head)
	return head
}

// offer puts a head into the available ring.
func (d *driver) offer(head uint16) {
	var b [2]byte
	binary.LittleEndian.PutUint16(b[:], head)
	d.g.put(d.avail+4+2*uint64(d.made%d.size), b[:])
	d.made++
	atomic.StoreUint32(d.g.word(d.avail), uint32(d.made)<<16)
}

// kick tells the device, if it wants to be told. before is avail.idx as of the last
// kick.
func (d *driver) kick(before uint16) bool {
	var wanted bool
	if d.eventIdx {
		event := uint16(atomic.LoadUint32(d.g.word((d.used+4+8*uint64(d.size))&^3)) >> (8 * ((d.used + 4) & 3)))
		wanted = d.made-event-1 < d.made-before
	} else {
		wanted = atomic.LoadUint32(d.g.word(d.used))&1 == 0
	}
	if wanted {
		sys.SignalEvent(d.files.Kick)
	}
	return wanted
}

// used1 takes the next element of the used ring.
func (d *driver) used1() (head uint16, written uint32, ok bool) {
	if uint16(atomic.LoadUint32(d.g.word(d.used))>>16) == d.seen {
		return 0, 0, false
	}
	e := d.g.at(d.used + 4 + 8*uint64(d.seen%d.size))
	head, written = uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:])
	d.seen++
	d.free = append(d.free, d.chains[head]...)
	delete(d.chains, head)
	return head, written, true
}

// sleepy asks to be called for the next element.
func (d *driver) sleepy() {
	if d.eventIdx {
		var b [2]byte
		binary.LittleEndian.PutUint16(b[:], d.seen)
		d.g.put(d.avail+4+2*uint64(d.size), b[:])
		var barrier atomic.Uint32
		barrier.Swap(1)
	}
}

// await waits, by its call descriptor, for the next used element.
func (d *driver) await() (head uint16, written uint32) {
	d.g.tb.Helper()
	for range 100 {
		d.sleepy()
		if head, written, ok := d.used1(); ok {
			return head, written
		}
		ready := []sys.Ready{{FD: int32(d.files.Call), Events: sys.ReadyRead}}
		errno := sys.WaitReady(ready, 0, int64(5*time.Second))
		if errno != 0 && errno != syscall.EINTR {
			d.g.tb.Fatal(errno)
		}
		if errno == 0 && ready[0].Got == 0 {
			break // a timeout
		}
		sys.ClearEvent(d.files.Call)
	}
	if _, _, ok := d.used1(); ok {
		d.g.tb.Fatal("the device has answered, and did not call")
	}
	d.g.tb.Fatal("the device does not answer")
	return 0, 0
}

// A request is one of this device, as the driver lays it out.
type request struct {
	head   uint16
	data   []span
	status uint64
	n      int
}

// ask makes a request available. data is written by the device unless out.
func (d *driver) ask(typ uint32, sector uint64, data []span, out, indirect bool) *request {
	header := d.g.alloc(17, 16)
	var b [16]byte
	binary.LittleEndian.PutUint32(b[0:], typ)
	binary.LittleEndian.PutUint64(b[8:], sector)
	d.g.put(header, b[:])
	r := &request{data: data, status: header + 16}
	d.g.put(r.status, []byte{0xff})
	chain := []span{{addr: header, n: 16}}
	for _, s := range data {
		s.write = !out
		chain = append(chain, s)
		r.n += int(s.n)
	}
	r.head = d.add(append(chain, span{addr: r.status, n: 1, write: true}), indirect)
	return r
}

func (d *driver) statusOf(r *request) uint8 { return d.g.at(r.status)[0] }

// do makes one request, kicks, and waits for its answer.
func (d *driver) do(typ uint32, sector uint64, data []span, out bool) (status uint8, written uint32) {
	d.g.tb.Helper()
	before := d.made
	r := d.ask(typ, sector, data, out, false)
	d.kick(before)
	head, written := d.await()
	if head != r.head {
		d.g.tb.Fatalf("descriptor %d is used, want %d", head, r.head)
	}
	return d.statusOf(r), written
}

// gather returns what the spans hold.
func (d *driver) gather(data []span) (p []byte) {
	for _, s := range data {
		p = append(p, d.g.get(s.addr, int(s.n))...)
	}
	return p
}

func (d *driver) scatter(data []span, p []byte) {
	for _, s := range data {
		d.g.put(s.addr, p[:s.n])
		p = p[s.n:]
	}
}
