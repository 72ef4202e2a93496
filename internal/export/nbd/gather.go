package nbd

// What gather found behind the last request that it took.
type next uint8

const (
	starved    next = iota // no whole request is left
	enough                 // more may be there, but what was taken is worth a submission
	full                   // no slot, or no room for the reply: something in flight must end first
	held                   // nothing was looked at: replies are to be sent first
	big                    // a read or write that goes alone
	disconnect             // the client leaves
	garbage                // not NBD, or beyond all limits
)

// gather takes requests from the receive buffer, answers those that need no I/O,
// and stages the others. It takes none while replies are still to be sent: a
// client that takes none is given none (O2).
func (c *conn) gather() next {
	c.taken, c.laid = 0, 0
	if !c.out.empty() {
		return held
	}
	for c.laid < batchData && c.taken < batchRequests {
		b := c.rx[c.head:c.tail]
		if len(b) < requestSize {
			return starved
		}
		r, ok := parseRequest(b)
		switch {
		case !ok || r.payload() > maxPayload:
			return garbage
		case r.typ == cmdDisc:
			return disconnect
		case isLarge(&r):
			return big
		}
		size := requestSize + r.payload()
		if len(b) < size {
			return starved
		}
		if !c.take(&r, b[requestSize:size]) {
			return full
		}
		c.head += size
		c.taken++
	}
	return enough
}

// take answers r, or stages it. It returns false, having done nothing, if a slot
// or room is wanting.
func (c *conn) take(r *request, payload []byte) bool {
	if !c.out.room(c.inflight + len(c.submit) + 1) { // O3
		return false
	}
	verdict := c.terms.judge(r)
	switch {
	case verdict != admitted:
		wipe(payload)
		c.deny(r, verdict)
		return true
	case r.typ == cmdCache: // nothing to be done: the drive is the cache
		c.answer(r, 0)
		return true
	case r.typ == cmdRead:
		return c.takeRead(r)
	case len(c.free) == 0:
		return false
	case r.typ == cmdBlockStatus:
		return c.takeStatus(r)
	}
	s := c.slot(r)
	s.prepare(r, payload)
	if r.typ == cmdWrite {
		c.rxUse.keep(&s.place, c.head+requestSize, c.head+requestSize+len(payload))
	}
	c.stage(s)
	return true
}

// takeRead lays out the reply to a read, headers and all, and stages what is to
// be read into it. A reply that is nothing but a hole is sent at once.
func (c *conn) takeRead(r *request) bool {
	runs := c.survey(r, r.off, r.length)
	if len(runs) == 1 && !runs[0].data {
		c.tally.count(r, false)
		c.bypass.Bypassed(int64(r.length), true)
		c.out.add(putHole(c.out.tail(c.tx), chunkDone, r.cookie, r.off, r.length))
		return true
	}
	size, parts := c.replySize(runs)
	if len(c.free) < parts {
		return false
	}
	s := c.free[len(c.free)-1]
	if !c.txUse.put(&s.place, size) {
		return false
	}
	if holes := c.runs.holes; holes > 0 {
		c.bypass.Bypassed(holes, false)
	}
	c.slot(r)
	c.laid += size
	c.layOut(s, runs)
	return true
}

// replySize returns the length of a read's reply, and how many parts of it are
// read.
func (c *conn) replySize(runs []run) (size, parts int) {
	header := c.dataHeader()
	for i := range runs {
		if !runs[i].data {
			size += holeChunkSize
			continue
		}
		size += header + int(runs[i].length)
		parts++
	}
	return size, parts
}

// dataHeader is the length of what goes in front of a read's data.
func (c *conn) dataHeader() int {
	if c.terms.structured {
		return dataChunkSize
	}
	return simpleSize
}

// layOut writes the headers of the reply to the read that s holds, and stages its
// parts.
func (c *conn) layOut(s *slot, runs []run) {
	at, off, cookie := s.place.at, s.request.off, s.request.cookie
	part := s
	for i := range runs {
		r := &runs[i]
		flags := uint16(0)
		if i == len(runs)-1 {
			flags = chunkDone
		}
		switch {
		case !r.data:
			at += putHole(c.tx[at:], flags, cookie, off, r.length)
		default:
			if c.terms.structured {
				at += putData(c.tx[at:], flags, cookie, off, int(r.length))
			} else {
				at += putSimple(c.tx[at:], cookie, 0)
			}
			if part == nil {
				part = c.part(s)
			}
			part.read(off, c.tx[at:at+int(r.length)])
			c.stage(part)
			part = nil
			at += int(r.length)
		}
		off += uint64(r.length)
	}
}

// takeStatus answers a block status. REQUIRES: a slot is free.
func (c *conn) takeStatus(r *request) bool {
	s := c.free[len(c.free)-1]
	if !c.txUse.put(&s.place, statusSize(r)) {
		return false
	}
	c.slot(r)
	c.laid += statusSize(r)
	s.place.end = s.place.at + c.status.put(c.tx[s.place.at:s.place.end], r)
	c.tally.count(r, false)
	c.out.slot(s)
	return true
}
