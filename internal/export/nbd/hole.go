package nbd

import "vacate/internal/blk"

// Clients with structured replies are told of what was never written as holes
// (NBD_REPLY_TYPE_OFFSET_HOLE): nothing is zeroed for them, read or sent. A block
// that is written while a read of it is under way is told in either state, as it
// would be read in either.

// maxRuns is how many runs the reply to one read tells; the last is read whatever
// it is, if more follow.
const maxRuns = 16

// A run is a part of a read, that either is read or is a hole.
type run struct {
	length uint32 // bytes
	data   bool
}

// runs cuts reads into runs. It belongs to one connection.
type runs struct {
	walk func(off, length int64, yield func(off, n int64, written bool) bool)
	tell func(off, n int64, written bool) bool // u.add: made once, so that walking allocates nothing
	list [maxRuns]run
	n    int // of list in use
	most int // 1 ≤ most ≤ maxRuns: no request may need more slots than there are
	left int64

	holes int64 // bytes, of what was surveyed last
}

func (u *runs) init(walk func(int64, int64, func(int64, int64, bool) bool), depth int) {
	u.walk, u.tell, u.most = walk, u.add, min(maxRuns, depth)
}

// survey cuts length bytes at off, which r reads, into runs that tile them. That
// is one, which is read, unless the client understands holes and the volume lets
// them be told. They are good until the next call. It counts nothing: where room is
// wanting for the reply, it is called again.
func (c *conn) survey(r *request, off uint64, length uint32) []run {
	u := &c.runs
	if u.walk != nil && c.bypass != nil && c.terms.structured && r.flags&cmdFlagDF == 0 {
		u.cut(off, length)
		if u.holes == 0 || c.bypass.Bypass() {
			return u.list[:u.n]
		}
	}
	u.holes = 0
	u.list[0] = run{length: length, data: true}
	return u.list[:1]
}

// cut asks the block map.
func (u *runs) cut(off uint64, length uint32) {
	u.n, u.left, u.holes = 0, int64(length), 0
	u.walk(int64(off), int64(length), u.tell)
	if u.left > 0 { // what nobody told of is read
		u.add(0, u.left, true)
	}
	for i := range u.list[:u.n] {
		if r := &u.list[i]; !r.data {
			u.holes += int64(r.length)
		}
	}
}

// add notes the next n bytes. A hole shorter than a block, beside data, is not
// worth its header.
func (u *runs) add(_, n int64, written bool) bool {
	n = min(n, u.left)
	data := written || n < blk.BlockSize && (u.n > 0 || n < u.left)
	u.left -= n
	if u.n > 0 {
		switch last := &u.list[u.n-1]; {
		case last.data == data:
			last.length += uint32(n)
			return u.left > 0
		case u.n == u.most:
			last.data = true
			last.length += uint32(n)
			return u.left > 0
		}
	}
	u.list[u.n] = run{length: uint32(n), data: data}
	u.n++
	return u.left > 0
}
