package drive

import (
	"errors"
	"fmt"
	"syscall"

	"vacate/internal/blk"
	"vacate/internal/sys"
)

// The engine "mmap": the data area of a drive that is memory (a file on tmpfs, or
// on memory that is mapped as it is, DAX) is part of the engine's own memory.
//
//  1. Open maps the data area once for all queues; Close unmaps it.
//  2. Whoever can work in place asks a queue for a window, and needs no system
//     call, no submission and no copy.
//  3. All else is submitted, and carried out as the engine "pread" does it: the
//     file and its mapping are the same bytes.
//  4. It is only for drives with nothing to flush: what is stored through a mapping
//     is written back by nobody, and no flush would wait for it.
//
// The mapping holds the drive's open file description, and so its fence, until
// the last thread of the process has ended: no store comes after it.

// mapArea maps the data area, and falls back to "pread" where that fails.
func (d *Drive) mapArea() {
	if d.info.Engine != EngineMmap {
		return
	}
	area, err := d.t.mapped(d.offset, d.size)
	if err != nil {
		d.info.Engine, d.info.EngineWhy = EnginePread, "not mapped: "+err.Error()
		return
	}
	d.area = area
}

// mapped maps n bytes at off.
func (t *target) mapped(off, n int64) ([]byte, error) {
	if int64(int(n)) != n {
		return nil, fmt.Errorf("%d bytes are more than this machine can address", n)
	}
	return sys.MapStorage(t.fd, off, int(n), t.dax)
}

// mappable returns nil if requests to a drive of this flush class may go through
// a mapping, else why not.
func (t *target) mappable(class FlushClass) error {
	switch {
	case !t.inMemory() && !t.dax:
		return errors.New("the drive is not a file in memory: a mapping would go through the page cache")
	case class != FlushNone:
		return fmt.Errorf("no flush waits for what is stored through a mapping, and the flush class is %q", class)
	}
	return nil
}

// A mapQueue is a [blk.Queue] of the engine "mmap", and a [blk.Windower].
type mapQueue struct{ queue }

// Window implements [blk.Windower].
func (q *mapQueue) Window(op blk.Op, off, n int64) []byte {
	d := q.d
	q.look(false) // nothing becomes longer through a mapping
	if off < 0 || n <= 0 || n > blk.MaxTransfer || off > d.size-n || (off|n)&(blk.BlockSize-1) != 0 || d.offset+off+n > d.limit.Load() {
		return nil
	}
	switch op {
	case blk.OpRead:
		q.count.reads.Add(1)
		q.count.readBytes.Add(uint64(n))
	case blk.OpWrite:
		q.count.writes.Add(1)
		q.count.writeBytes.Add(uint64(n))
	default:
		return nil
	}
	return d.area[off : off+n : off+n]
}

// Faulted implements [blk.Windower].
func (q *mapQueue) Faulted(op blk.Op, off, n int64) {
	if op == blk.OpRead {
		q.count.reads.Add(^uint64(0))
		q.count.readBytes.Add(-uint64(n))
	} else {
		q.count.writes.Add(^uint64(0))
		q.count.writeBytes.Add(-uint64(n))
	}
	q.failed(&blk.Error{Op: op, Off: off, Len: n, Errno: syscall.EIO})
}
