package vhostclient

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"vacate/internal/sys"
)

// A Queue is the driver's side of one split ring (virtio 1.2, 2.7), and belongs to
// one goroutine at a time.
//
//  1. Add writes descriptors, Publish makes them available and notifies the device
//     if it wants that.
//  2. Take returns what the device has used; Arm asks for an interrupt, and Wait
//     sleeps until there is one.
//
// The device may be replaced between any two steps: nothing here is told.
type Queue struct {
	Size      int
	Kick      *os.File // eventfds
	Call, Err *os.File

	m        *Memory
	eventIdx bool
	indirect bool

	desc  []descriptor
	avail []byte // flags, index, ring, used_event
	used  []byte // flags, index, ring, avail_event

	free      []uint16 // descriptors that are free
	chain     [][]uint16
	requests  []*Request // by head
	InFlight  int        // requests that the device has
	staged    uint16     // our available index
	published uint16     // as the device sees it
	taken     uint16     // used elements that were taken
	seen      uint16     // the used index as last read

	areas  []byte // per head: header, range, status
	tables []byte // per head: an indirect table

	kickFD  int
	waitFor [1]sys.Ready
}

type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// Places in a head's area.
const (
	areaSize   = 64
	areaRange  = 16
	areaStatus = 32
)

// MaxParts is how many pieces the data of a request may have.
const MaxParts = 62

const tableSize = (MaxParts + 2) * 16

// A Request is one request of a block device. Its data lies in the [Memory]; it
// belongs to the device from Add until Take returns it.
type Request struct {
	Type   uint32
	Sector uint64
	Data   [][]byte // pieces of 1 byte and more, MaxParts at most

	// Of TypeDiscard and TypeWriteZeroes, instead of Data.
	Sectors uint32
	Flags   uint32

	Status  byte
	Written uint32 // bytes, as the device says
	Sent    time.Time
	Tag     int // the caller's
}

func newQueue(m *Memory, size int, eventIdx, indirect bool) (q *Queue, err error) {
	q = &Queue{Size: size, m: m, eventIdx: eventIdx, indirect: indirect}
	alloc := func(n int) (b []byte) {
		if err == nil {
			b, err = m.Alloc(n)
		}
		return b
	}
	desc := alloc(16 * size)
	q.avail, q.used = alloc(8+2*size), alloc(8+8*size)
	q.areas, q.tables = alloc(areaSize*size), alloc(tableSize*size)
	for _, f := range []**os.File{&q.Kick, &q.Call, &q.Err} {
		if err == nil {
			*f, err = newEvent()
		}
	}
	if err != nil {
		return nil, err
	}
	q.desc = unsafe.Slice((*descriptor)(unsafe.Pointer(unsafe.SliceData(desc))), size)
	q.chain, q.requests = make([][]uint16, size), make([]*Request, size)
	for i := range size {
		q.free = append(q.free, uint16(size-1-i))
		q.chain[i] = make([]uint16, 0, MaxParts+2)
	}
	q.kickFD = int(q.Kick.Fd())
	q.waitFor[0] = sys.Ready{FD: int32(q.Call.Fd()), Events: sys.ReadyRead}
	return q, nil
}

func (q *Queue) close() {
	for _, f := range []*os.File{q.Kick, q.Call, q.Err} {
		_ = f.Close() // nothing is written
	}
}

// word is the aligned 32 bits at b[at:], which the device shares.
func word(b []byte, at int) *uint32 { return (*uint32)(unsafe.Pointer(&b[at])) }

// DeviceIndex is the device's used index now.
func (q *Queue) DeviceIndex() uint16 { return uint16(atomic.LoadUint32(word(q.used, 0)) >> 16) }

// driverIndex is the driver's available index now.
func (q *Queue) driverIndex() uint16 { return uint16(atomic.LoadUint32(word(q.avail, 0)) >> 16) }

// Add stages a request; false says that the ring has no room.
func (q *Queue) Add(r *Request) bool {
	ranged := r.Type == TypeDiscard || r.Type == TypeWriteZeroes
	parts := len(r.Data)
	if ranged {
		parts = 1
	}
	if parts > MaxParts {
		panic("vhostclient: a request in too many pieces")
	}
	need := parts + 2
	if q.indirect {
		need = 1
	}
	if len(q.free) < need {
		return false
	}
	head := q.free[len(q.free)-1]
	area := q.areas[int(head)*areaSize:][:areaSize]
	binary.LittleEndian.PutUint32(area, r.Type)
	binary.LittleEndian.PutUint32(area[4:], 0)
	binary.LittleEndian.PutUint64(area[8:], r.Sector)
	area[areaStatus] = statusUnset
	c := q.begin(head)
	c.put(area[:16], 0)
	switch {
	case ranged:
		binary.LittleEndian.PutUint64(area[8:], 0)
		binary.LittleEndian.PutUint64(area[areaRange:], r.Sector)
		binary.LittleEndian.PutUint32(area[areaRange+8:], r.Sectors)
		binary.LittleEndian.PutUint32(area[areaRange+12:], r.Flags)
		c.put(area[areaRange:areaRange+16], 0)
	default:
		flags := uint16(descWrite)
		if r.Type == TypeOut {
			flags = 0
		}
		for _, d := range r.Data {
			c.put(d, flags)
		}
	}
	c.put(area[areaStatus:areaStatus+1], descWrite)
	c.end()
	r.Status, r.Written = statusUnset, 0
	q.requests[head] = r
	binary.LittleEndian.PutUint16(q.avail[4+2*(int(q.staged)%q.Size):], head)
	q.staged++
	q.InFlight++
	return true
}

// A chainWriter writes a chain's descriptors: into the ring, or into a table.
type chainWriter struct {
	q     *Queue
	head  uint16
	table []descriptor // nil: the ring
	n     int
}

func (q *Queue) begin(head uint16) chainWriter {
	c := chainWriter{q: q, head: head}
	q.chain[head] = q.chain[head][:0]
	if q.indirect {
		c.table = unsafe.Slice((*descriptor)(unsafe.Pointer(&q.tables[int(head)*tableSize])), MaxParts+2)
	}
	return c
}

func (c *chainWriter) put(b []byte, flags uint16) {
	d := descriptor{addr: c.q.m.Guest(b), len: uint32(len(b)), flags: flags | descNext}
	if c.table != nil {
		d.next = uint16(c.n + 1)
		c.table[c.n] = d
		c.n++
		return
	}
	q := c.q
	at := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	if c.n > 0 {
		q.desc[q.chain[c.head][c.n-1]].next = at
	}
	q.desc[at] = d
	q.chain[c.head] = append(q.chain[c.head], at)
	c.n++
}

func (c *chainWriter) end() {
	q := c.q
	if c.table == nil {
		q.desc[q.chain[c.head][c.n-1]].flags &^= descNext
		return
	}
	c.table[c.n-1].flags &^= descNext
	q.free = q.free[:len(q.free)-1]
	q.chain[c.head] = append(q.chain[c.head], c.head)
	q.desc[c.head] = descriptor{
		addr: q.m.Guest(q.tables[int(c.head)*tableSize:][:16*c.n]), len: uint32(16 * c.n), flags: descIndirect,
	}
}

// Publish makes what was added available (2.7.13), and notifies the device if it
// wants that.
func (q *Queue) Publish() error {
	if q.staged == q.published {
		return nil
	}
	old := q.published
	flags := atomic.LoadUint32(word(q.avail, 0)) & 0xffff
	// An exchange on amd64, and so a barrier before the load below (2.7.13.4.1).
	atomic.SwapUint32(word(q.avail, 0), flags|uint32(q.staged)<<16)
	q.published = q.staged
	wanted := atomic.LoadUint32(word(q.used, 0))&usedNoNotify == 0
	if q.eventIdx {
		event := uint16(atomic.LoadUint32(word(q.used, 4+8*q.Size)))
		wanted = q.published-event-1 < q.published-old // vring_need_event
	}
	if wanted {
		return q.Notify()
	}
	return nil
}

// Notify kicks the device, wanted or not.
func (q *Queue) Notify() error {
	one := [8]byte{1}
	_, err := syscall.Write(q.kickFD, one[:])
	return err
}

// Take returns a request that the device has used; nil if there is none. An error
// says that the device has answered what it was not asked, or twice.
func (q *Queue) Take() (*Request, error) {
	if q.taken == q.seen {
		if q.seen = q.DeviceIndex(); q.taken == q.seen {
			return nil, nil
		}
		if n := int(q.seen - q.taken); n > q.InFlight {
			return nil, fmt.Errorf("vhost-user: the used index is %d, %d more than taken: %d requests are in flight", q.seen, n, q.InFlight)
		}
	}
	at := 4 + 8*(int(q.taken)%q.Size)
	id, written := binary.LittleEndian.Uint32(q.used[at:]), binary.LittleEndian.Uint32(q.used[at+4:])
	if id >= uint32(q.Size) || q.requests[id] == nil {
		return nil, fmt.Errorf("vhost-user: used element %d names descriptor %d, of which nothing is in flight: it was answered twice, or never asked", q.taken, id)
	}
	q.taken++
	r := q.requests[id]
	q.requests[id] = nil
	q.InFlight--
	chain := q.chain[id]
	for i := len(chain) - 1; i >= 0; i-- {
		q.free = append(q.free, chain[i])
	}
	r.Status, r.Written = q.areas[int(id)*areaSize+areaStatus], written
	return r, nil
}

// Mute asks for no interrupts.
func (q *Queue) Mute() {
	if q.eventIdx { // as far away as it can be
		atomic.StoreUint32(word(q.avail, 4+2*q.Size), uint32(q.taken+0x8000))
		return
	}
	q.setFlags(availNoInterrupt)
}

// Arm asks for an interrupt with the next request that is used, and reports whether
// one has been meanwhile: then there may be none.
func (q *Queue) Arm() bool {
	if q.eventIdx {
		atomic.SwapUint32(word(q.avail, 4+2*q.Size), uint32(q.taken))
	} else {
		q.setFlags(0)
	}
	return q.DeviceIndex() != q.taken
}

func (q *Queue) setFlags(flags uint32) {
	atomic.SwapUint32(word(q.avail, 0), uint32(q.published)<<16|flags)
}

// Wait sleeps until there is an interrupt, or for most if that is not 0; it reports
// whether there was one.
func (q *Queue) Wait(most time.Duration) (bool, error) {
	errno := sys.WaitReady(q.waitFor[:], 0, int64(most))
	switch {
	case errno == syscall.EINTR || errno == 0 && q.waitFor[0].Got == 0:
		return false, nil
	case errno != 0:
		return false, errno
	}
	var b [8]byte
	_, err := syscall.Read(int(q.waitFor[0].FD), b[:])
	if err == syscall.EINTR || err == syscall.EAGAIN { // the server may share it, and have read it
		return false, nil
	}
	return err == nil, err
}

// wake ends a Wait. It may be called from any goroutine.
func (q *Queue) wake() {
	one := [8]byte{1}
	_, _ = syscall.Write(int(q.waitFor[0].FD), one[:]) // a full counter wakes as well
}

// errno returns what the status means; 0 is success.
func (r *Request) errno() syscall.Errno {
	switch r.Status {
	case StatusOK:
		return 0
	case StatusUnsupp:
		return syscall.EOPNOTSUPP
	case StatusIOErr:
		return syscall.EIO
	}
	return syscall.EPROTO // none that there is, or none at all
}

// table is the descriptor table as bytes.
func table(q *Queue) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(q.desc))), 16*len(q.desc))
}
