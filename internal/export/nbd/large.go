package nbd

import (
	"syscall"

	"vacate/internal/blk"
)

// A read or write that is longer than a layer must accept goes alone:
//
//  1. Everything before it was answered: nothing is in flight, and the slots and
//     all of both buffers are its own.
//  2. A write's payload is received piece by piece, and each piece is written
//     before the next is received. After a piece that failed, or if the request
//     was refused, the rest is received and cleared.
//  3. A read is carried out in rounds, each as many pieces as the send buffer
//     takes, and each round is sent before the next is read. Holes are told as in
//     short reads.
//  4. An error in a later round can be told in an error chunk. Without structured
//     replies the header has promised success by then, and what the
//     specification leaves is to end the connection.

// isLarge reports whether r goes alone.
func isLarge(r *request) bool {
	return r.length > blk.MaxTransfer && (r.typ == cmdRead || r.typ == cmdWrite)
}

// A piece is a part of a large read: its reply, header included, is tx[at:end].
type piece struct {
	at, end int
	off     uint64
	length  uint32
	slot    *slot // nil: a hole
}

// A round is the pieces of a large read that are sent together.
type round struct {
	pieces []piece
	laid   int // bytes of tx
	slots  int // in use
}

// largest number of pieces of a round: for holes, which take no slots.
const maxPieces = 256

// goAlone carries out the request at rx[head:]. REQUIRES: all is quiet.
func (c *conn) goAlone() error {
	c.alone = true
	defer func() { c.alone = false }()
	r, _ := parseRequest(c.rx[c.head:])
	c.head += requestSize
	verdict := c.terms.judge(&r)
	errno := syscall.Errno(0)
	switch {
	case r.typ == cmdWrite:
		var err error
		if errno, err = c.largeWrite(&r, verdict); err != nil {
			return err
		}
	case verdict == admitted:
		return c.largeRead(&r)
	}
	if verdict != admitted {
		c.deny(&r, verdict)
	} else {
		c.answer(&r, errno)
	}
	return c.flush()
}

// carryOut submits what is staged, and waits until all of it is complete.
func (c *conn) carryOut() {
	c.launch()
	for c.inflight > 0 {
		c.mustReap()
	}
}

// largeWrite receives the whole payload, and writes it unless r was refused. The
// error is the connection's, the errno the volume's.
func (c *conn) largeWrite(r *request, v verdict) (syscall.Errno, error) {
	errno := syscall.Errno(0)
	s := &c.slots[0]
	off, left := int64(r.off), int(r.length)
	for left > 0 {
		n := min(left, blk.MaxTransfer)
		if err := c.fillExactly(n); err != nil {
			return 0, err
		}
		payload := c.rx[c.head : c.head+n]
		if v == admitted && errno == 0 {
			part := request{flags: r.flags, typ: cmdWrite, off: uint64(off), length: uint32(n)}
			s.whole, s.left, s.errno = s, 0, 0
			s.prepare(&part, payload)
			c.stage(s)
			c.carryOut()
			errno = s.errno
		} else {
			wipe(payload)
		}
		c.head += n
		off += int64(n)
		left -= n
	}
	return errno, nil
}

// fillExactly receives until rx[head:] holds n bytes, and nothing behind them if
// it must wait at all: so the next piece begins at the front of the buffer and
// need not be moved there.
func (c *conn) fillExactly(n int) error {
	if c.tail-c.head >= n {
		return nil
	}
	c.moveTo(&c.rxUse.rim)
	missing := c.rx[c.tail:n]
	c.tail = n
	return c.recvFull(missing)
}

// largeRead reads and sends r, round by round.
func (c *conn) largeRead(r *request) error {
	defer func() { c.tally.add(&c.server.counters) }()
	g := &c.round
	end := r.off + uint64(r.length)
	for off := r.off; off < end; {
		c.layPieces(r, off)
		c.carryOut()
		good := 0
		for good < len(g.pieces) && g.pieces[good].errno() == 0 {
			off += uint64(g.pieces[good].length)
			good++
		}
		var err error
		if good == len(g.pieces) {
			err = c.sendPieces(r, good, off == end)
		} else {
			err = c.failPieces(r, good)
		}
		wipe(c.tx[:g.laid]) // N3
		if err != nil || good < len(g.pieces) {
			return err
		}
	}
	c.tally.count(r, false)
	return nil
}

// errno says how a piece fared.
func (p *piece) errno() syscall.Errno {
	if p.slot == nil {
		return 0
	}
	return p.slot.errno
}

// layPieces makes a round of what follows off in r: as many pieces as the send
// buffer and the slots take. Each has its place, header included; a simple reply
// has only one header, in front of the first.
func (c *conn) layPieces(r *request, off uint64) {
	g := &c.round
	g.pieces, g.laid, g.slots = g.pieces[:0], 0, 0
	end := r.off + uint64(r.length)
	for off < end {
		length := uint32(min(end-off, blk.MaxTransfer))
		runs := c.survey(r, off, length)
		for _, u := range runs {
			if !c.layPiece(r, off, u) {
				return
			}
			if !u.data {
				c.bypass.Bypassed(int64(u.length), len(runs) == 1)
			}
			off += uint64(u.length)
		}
	}
}

// layPiece adds a run at off to the round, and stages it if it is to be read. It
// reports whether there was room.
func (c *conn) layPiece(r *request, off uint64, u run) bool {
	g := &c.round
	if !u.data {
		if last := len(g.pieces) - 1; last >= 0 && g.pieces[last].slot == nil {
			g.pieces[last].length += u.length
			return true
		}
		if len(g.pieces) == maxPieces || g.laid+holeChunkSize > txSize {
			return false
		}
		g.pieces = append(g.pieces, piece{at: g.laid, end: g.laid + holeChunkSize, off: off, length: u.length})
		g.laid += holeChunkSize
		return true
	}
	header := 0
	if c.terms.structured || off == r.off {
		header = c.dataHeader()
	}
	size := header + int(u.length)
	if len(g.pieces) == maxPieces || g.slots == len(c.slots) || g.laid+size > txSize {
		return false
	}
	s := &c.slots[g.slots]
	g.slots++
	s.whole, s.left, s.errno = s, 0, 0
	s.read(off, c.tx[g.laid+header:g.laid+size])
	c.stage(s)
	g.pieces = append(g.pieces, piece{at: g.laid, end: g.laid + size, off: off, length: u.length, slot: s})
	g.laid += size
	return true
}

// sendPieces sends the first n pieces, all of which were read. last says that
// the last of them is also the last of the request.
func (c *conn) sendPieces(r *request, n int, last bool) error {
	if n == 0 {
		return nil
	}
	pieces := c.round.pieces[:n]
	for i := range pieces {
		p := &pieces[i]
		flags := uint16(0)
		if last && i == n-1 {
			flags = chunkDone
		}
		switch b := c.tx[p.at:]; {
		case p.slot == nil:
			putHole(b, flags, r.cookie, p.off, p.length)
		case c.terms.structured:
			putData(b, flags, r.cookie, p.off, int(p.length))
		case p.end-p.at > int(p.length):
			putSimple(b, r.cookie, 0)
		}
	}
	return c.send(c.tx[:pieces[n-1].end])
}

// failPieces ends r, of whose pieces in this round only the first good were read.
func (c *conn) failPieces(r *request, good int) error {
	p := &c.round.pieces[good]
	value := errorValue(p.errno())
	c.tally.count(r, true)
	if !c.terms.structured {
		if c.round.pieces[0].off != r.off {
			return errHalf
		}
		return c.send(c.tx[:putSimple(c.tx, r.cookie, value)])
	}
	if err := c.sendPieces(r, good, false); err != nil {
		return err
	}
	return c.send(c.tx[:putErrorAt(c.tx, r.cookie, p.off, value, errorText(value))])
}
