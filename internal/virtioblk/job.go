package virtioblk

import (
	"encoding/binary"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/virtq"
	"vacate/internal/xts"
)

// What a request asks for, as far as it is known.
const (
	kindRead = iota
	kindWrite
	kindFlush
	kindDiscard
	kindZeroes
	kindID
	kinds    // how many
	kindNone = kinds
)

// A job is one request of a driver, from Pop until its element is in the used ring.
type job struct {
	w      *Worker
	ring   *ring
	chain  virtq.Chain
	kind   uint8
	op     blk.Op
	flags  blk.Flags
	code   uint8 // the status to come
	parts  int   // in flight, or staged
	flying int64 // bytes of them
	queued bool  // it waits for room to stage more
	bytes  int64 // of a read or write

	counts int64 // bytes: the part at this place of the request, or the next, counts as one

	off  int64  // bytes: what is staged next begins here
	left int64  // bytes to be staged, of a read or write
	data cursor // in the driver's memory, of off

	segments [maxSegments]segment // of a discard or write zeroes
	listed   int                  // of segments in use
	next     int                  // of segments, to be staged
}

// A segment is a range of a discard or write zeroes, judged.
type segment struct {
	off, len int64 // bytes
	flags    blk.Flags
}

// A part is one request to the volume.
type part struct {
	blk    blk.Request
	job    *job
	bounce []byte // nil: the driver's memory itself
	data   cursor // where a bounced read goes
}

// header is the start of each request (5.2.6).
type header struct {
	typ    uint32
	sector uint64
}

// fetch has the header and the place of the status fetched.
func (j *job) fetch() {
	if b := j.chain.Readable; len(b) > 0 {
		mem.Prefetch(b[0][:min(len(b[0]), headerSize)])
	}
	if b := j.chain.Writable; len(b) > 0 {
		last := b[len(b)-1]
		mem.PrefetchStore(last[len(last)-min(len(last), 1):])
	}
}

// readHeader reads the header once. The driver may have cut it anywhere. It reports
// false if there is none, or if it faults.
func (j *job) readHeader(h *header) (ok bool) {
	defer j.caught(&ok)
	var b [headerSize]byte
	c := cursor{list: j.chain.Readable}
	if c.copyOut(b[:]) < headerSize {
		return false
	}
	j.data = c
	h.typ = binary.LittleEndian.Uint32(b[0:])
	h.sector = binary.LittleEndian.Uint64(b[8:])
	return true
}

// caught makes a fault on the request's memory a false in ok. It is deferred by
// what touches that memory, and nothing else. What else panics is no fault of the
// driver.
func (j *job) caught(ok *bool) {
	p := recover()
	if p == nil {
		return
	}
	if !j.faulted(p) {
		panic(p)
	}
	*ok = false
}

// faulted reports whether p, which recover has returned, is a fault on the request's
// memory.
func (j *job) faulted(p any) bool {
	for _, list := range [...][][]byte{j.chain.Readable, j.chain.Writable} {
		for _, b := range list {
			if mem.FaultIn(p, b) {
				return true
			}
		}
	}
	return false
}

// begin judges what was popped. Afterwards it has something to be staged, or is
// answered by its code.
func (j *job) begin() {
	j.kind, j.code, j.parts, j.flying, j.bytes, j.left, j.listed, j.next, j.flags = kindNone, statusIOErr, 0, 0, 0, 0, 0, 0, 0
	var h header
	if j.chain.WriteLen == 0 || !j.readHeader(&h) {
		return
	}
	switch h.typ {
	case typeIn:
		j.kind, j.op = kindRead, blk.OpRead
		j.data = cursor{list: j.chain.Writable}
		j.transfer(h.sector, j.chain.WriteLen-1)
	case typeOut:
		j.kind, j.op = kindWrite, blk.OpWrite
		if j.w.through.Load() {
			j.flags = blk.FUA
		}
		j.transfer(h.sector, j.chain.ReadLen-headerSize)
	case typeFlush, typeFlushOut:
		j.kind, j.op, j.code = kindFlush, blk.OpFlush, statusOK
		j.segments[0] = segment{}
		j.listed = 1
	case typeDiscard:
		j.kind, j.op = kindDiscard, blk.OpDiscard
		j.list()
	case typeWriteZeroes:
		j.kind, j.op = kindZeroes, blk.OpWriteZeroes
		j.list()
	case typeGetID:
		j.kind = kindID
		j.putID()
	default:
		j.code = statusUnsupp
	}
}

// changes reports whether the request may not be carried out on a read-only
// volume.
func (j *job) changes() bool {
	return j.kind == kindWrite || j.kind == kindDiscard || j.kind == kindZeroes
}

// admits reports whether the volume has the n bytes at a sector, at both ends at a
// logical block, and may be changed if it is to be.
func (j *job) admits(sector, n uint64) bool {
	w := j.w
	switch {
	case j.changes() && w.cfg.ReadOnly:
		return false
	case n%blk.SectorSize != 0, n%uint64(w.logical) != 0:
		return false
	case sector > blk.MaxVolume/blk.SectorSize, sector*blk.SectorSize%uint64(w.logical) != 0:
		return false
	}
	off := sector * blk.SectorSize
	return off <= uint64(w.size) && n <= uint64(w.size)-off
}

// transfer judges a read or write of n bytes.
func (j *job) transfer(sector, n uint64) {
	if !j.admits(sector, n) {
		return
	}
	j.code, j.counts = statusOK, 0
	j.off, j.left, j.bytes = int64(sector*blk.SectorSize), int64(n), int64(n)
}

// list judges a discard or write zeroes (5.2.6.2): all of its segments before any
// is carried out.
func (j *job) list() {
	n := j.chain.ReadLen - headerSize
	if n == 0 || n%segmentSize != 0 || n > maxSegments*segmentSize {
		return
	}
	var b [maxSegments * segmentSize]byte
	if !j.readData(b[:n]) {
		return
	}
	listed := 0
	for b := b[:n]; len(b) > 0; b = b[segmentSize:] {
		sector, sectors := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
		flags := binary.LittleEndian.Uint32(b[12:])
		if flags&^flagUnmap != 0 || flags != 0 && j.kind == kindDiscard {
			j.code = statusUnsupp
			return
		}
		s := segment{off: int64(sector * blk.SectorSize), len: int64(sectors) * blk.SectorSize}
		if sectors > maxSectors || !j.admits(sector, uint64(s.len)) {
			return
		}
		if j.kind == kindZeroes && flags&flagUnmap == 0 {
			s.flags = blk.NoHole
		}
		if s.len > 0 {
			j.segments[listed] = s
			listed++
		}
	}
	j.code, j.listed = statusOK, listed
}

// readData reads what the driver has sent behind the header, once.
func (j *job) readData(p []byte) (ok bool) {
	defer j.caught(&ok)
	return j.data.copyOut(p) == len(p)
}

// putID answers GET_ID.
func (j *job) putID() {
	var id [IDSize]byte
	copy(id[:], j.w.cfg.ID)
	c := cursor{list: j.chain.Writable}
	if j.writeData(&c, id[:min(IDSize, j.chain.WriteLen-1)]) {
		j.code = statusOK
	}
}

// writeData writes p to the driver's memory at c, and leaves nothing of it in
// registers.
func (j *job) writeData(c *cursor, p []byte) (ok bool) {
	defer xts.ClearVectors()
	defer j.caught(&ok)
	return c.copyIn(p) == len(p)
}

// fail notes that a part failed; nothing more of the job is begun.
func (j *job) fail(errno syscall.Errno) {
	if j.code == statusOK {
		j.code = statusOf(errno)
	}
	j.left, j.next = 0, j.listed
}

// statusOf is the status for an error of the volume. EFAULT is one of guest memory.
func statusOf(errno syscall.Errno) uint8 {
	switch errno {
	case 0:
		return statusOK
	case syscall.EOPNOTSUPP:
		return statusUnsupp
	}
	return statusIOErr
}
