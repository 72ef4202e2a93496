package nbd

import (
	"syscall"

	"vacate/internal/blk"
)

// A read or write that is longer than a layer must accept goes alone:
//
//  1. Everything before it was answered: the batch is empty.
//  2. A write's payload is received piece by piece, and each piece is written
//     before the next is received. After a piece that failed, or if the request
//     was refused, the rest is received and cleared.
//  3. A read is carried out in rounds, each as many pieces as the send buffer
//     takes, and each round is sent before the next is read.
//  4. An error in a later round can be told in an error chunk. Without structured
//     replies the header has promised success by then, and what the
//     specification leaves is to end the connection.

// isLarge reports whether r goes alone.
func isLarge(r *request) bool {
	return r.length > blk.MaxTransfer && (r.typ == cmdRead || r.typ == cmdWrite)
}

// large carries out the request at rx[head:].
func (c *conn) large() error {
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
		err := c.largeRead(&r)
		c.tally.add(&c.server.counters)
		return err
	}
	return c.replyLarge(&r, verdict, errno)
}

// replyLarge sends the one reply without data to r.
func (c *conn) replyLarge(r *request, v verdict, errno syscall.Errno) error {
	s := &c.batch.slots[0]
	s.request, s.verdict, s.placed, s.blk.Errno = *r, v, false, errno
	c.batch.n = 1
	return c.reply()
}

// largeWrite receives the whole payload, and writes it unless r was refused. The
// error is the connection's, the errno the volume's.
func (c *conn) largeWrite(r *request, v verdict) (syscall.Errno, error) {
	errno := syscall.Errno(0)
	off, left := int64(r.off), int(r.length)
	for left > 0 {
		n := min(left, blk.MaxTransfer)
		if err := c.fillExactly(n); err != nil {
			return 0, err
		}
		piece := c.rx[c.head : c.head+n]
		if v == admitted && errno == 0 {
			s := &c.batch.slots[0]
			s.request = request{flags: r.flags, typ: cmdWrite, off: uint64(off), length: uint32(n)}
			s.prepare(piece, nil)
			c.batch.submit = append(c.batch.submit, &s.blk)
			c.submit()
			errno = s.blk.Errno
		} else {
			wipe(piece)
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
	c.moveToFront()
	missing := c.rx[c.tail:n]
	c.tail = n
	return c.recvFull(missing)
}

// largeRead reads and sends r, round by round.
func (c *conn) largeRead(r *request) error {
	b := &c.batch
	end := r.off + uint64(r.length)
	for off := r.off; off < end; {
		n := c.layPieces(r, off)
		c.submit()
		good := 0
		for good < n && b.slots[good].blk.Errno == 0 {
			off += uint64(b.slots[good].request.length)
			good++
		}
		var err error
		if good == n {
			err = c.sendPieces(n, off == end)
		} else {
			err = c.failPieces(r, good)
		}
		wipe(c.tx[:b.laid]) // N3
		b.laid = 0
		if err != nil || good < n {
			return err
		}
	}
	c.tally.count(r, false)
	return nil
}

// layPieces makes reads of what follows off in r, as many as the send buffer and
// the slots take, and returns how many. Each has its place, header included;
// a simple reply has only one header, in front of the first.
func (c *conn) layPieces(r *request, off uint64) int {
	b := &c.batch
	end := r.off + uint64(r.length)
	n := 0
	for n < len(b.slots) && off < end {
		length := int(min(end-off, blk.MaxTransfer))
		header := 0
		if c.terms.structured || off == r.off {
			header = c.dataHeader()
		}
		if b.laid+header+length+smallReply > len(c.tx) {
			break
		}
		s := &b.slots[n]
		s.request = request{typ: cmdRead, cookie: r.cookie, off: off, length: uint32(length)}
		s.at, s.end = b.laid, b.laid+header+length
		b.laid = s.end
		s.prepare(nil, c.tx[s.at+header:s.end])
		b.submit = append(b.submit, &s.blk)
		off += uint64(length)
		n++
	}
	return n
}

// sendPieces sends the first n pieces, all of which were read. last says that
// the last of them is also the last of the request.
func (c *conn) sendPieces(n int, last bool) error {
	if n == 0 {
		return nil
	}
	b := &c.batch
	for i := range b.slots[:n] {
		s := &b.slots[i]
		length := int(s.request.length)
		if c.terms.structured {
			flags := uint16(0)
			if last && i == n-1 {
				flags = chunkDone
			}
			putData(c.tx[s.at:], flags, s.request.cookie, s.request.off, length)
		} else if s.end-s.at > length {
			putSimple(c.tx[s.at:], s.request.cookie, 0)
		}
	}
	return c.send(c.tx[:b.slots[n-1].end])
}

// failPieces ends r, of whose pieces in the send buffer only the first good were
// read.
func (c *conn) failPieces(r *request, good int) error {
	s := &c.batch.slots[good]
	value := errorValue(s.blk.Errno)
	c.tally.count(r, true)
	if !c.terms.structured {
		if c.batch.slots[0].request.off != r.off {
			return errHalf
		}
		return c.send(c.tx[:putSimple(c.tx, r.cookie, value)])
	}
	if err := c.sendPieces(good, false); err != nil {
		return err
	}
	return c.send(c.tx[:putErrorAt(c.tx, r.cookie, s.request.off, value, errorText(value))])
}
