package nbd

import (
	"fmt"

	"vacate/internal/blk"
)

// What gather found behind the last request that it took.
type next uint8

const (
	full       next = iota // the batch is full: more may be there already
	starved                // no whole request is left
	big                    // a read or write that goes alone
	disconnect             // the client leaves
	garbage                // not NBD, or beyond all limits
)

// A batch is what is carried out at once: one submission, one send. It belongs
// to its connection.
//
//	A1: slots[:n] are the requests taken since the last reply.
//	A2: tx[:laid] is laid out: the place of each read's header and data, and each
//	    whole answer to a block status, in the order of the slots.
//	A3: laid + n·smallReply ≤ len(tx): all other replies fit behind.
type batch struct {
	slots    []slot
	n        int
	submit   []*blk.Request // those of slots[:n] that go down
	inflight int
	laid     int
	status   statusWriter
}

// A slot holds one request from when it is taken until it is answered.
type slot struct {
	blk     blk.Request
	batch   *batch
	request request
	verdict verdict
	placed  bool // tx[at:end] is its reply's place
	at, end int
}

func (b *batch) init(c *conn, depth int) {
	*b = batch{slots: make([]slot, depth), submit: make([]*blk.Request, 0, depth)}
	for i := range b.slots {
		s := &b.slots[i]
		s.batch, s.blk.Done = b, s
	}
	b.status.init(c.server.cfg.Map)
}

// Complete is called by the volume when a slot's request is done.
func (s *slot) Complete(r *blk.Request) {
	s.batch.inflight--
	if checked && s.batch.inflight < 0 {
		panic("nbd: request completed twice")
	}
	if r.Op == blk.OpWrite {
		wipe(r.Buf) // N2
	}
	r.Buf = nil
}

// gather takes requests from the receive buffer until the batch is full or no
// whole request is left.
func (c *conn) gather() next {
	for c.batch.n < len(c.batch.slots) {
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
	}
	return full
}

// take gives r a slot, and a place in the send buffer if its reply has data. It
// returns false if the send buffer has no room left.
func (c *conn) take(r *request, payload []byte) bool {
	b := &c.batch
	verdict := c.terms.judge(r)
	data := 0
	if verdict == admitted {
		data = c.replySize(r)
	}
	if b.laid+data+(b.n+1)*smallReply > len(c.tx) {
		return false
	}
	s := &b.slots[b.n]
	b.n++
	s.request, s.verdict = *r, verdict
	s.placed, s.at, s.end = data > 0, b.laid, b.laid+data
	s.blk.Errno = 0
	b.laid += data
	switch {
	case verdict != admitted:
		wipe(payload)
	case r.typ == cmdBlockStatus:
		s.end = s.at + b.status.put(c.tx[s.at:s.end], r)
		b.laid = s.end
	case r.typ != cmdCache: // nothing to be done: the drive is the cache
		s.prepare(payload, c.tx[s.end-s.dataLen():s.end])
		b.submit = append(b.submit, &s.blk)
	}
	return true
}

// replySize is how much room in tx the reply to r needs if that has data.
func (c *conn) replySize(r *request) int {
	switch r.typ {
	case cmdRead:
		return c.dataHeader() + int(r.length)
	case cmdBlockStatus:
		return statusSize(r)
	}
	return 0
}

// dataHeader is the length of what goes in front of a read's data.
func (c *conn) dataHeader() int {
	if c.terms.structured {
		return dataChunkSize
	}
	return simpleSize
}

// dataLen is how many bytes the slot reads.
func (s *slot) dataLen() int {
	if s.request.typ == cmdRead {
		return int(s.request.length)
	}
	return 0
}

// prepare fills in the volume's request. A read goes straight to its place behind
// its reply's header; where that lies is of no matter to crypt, whose kernel
// copies have aligned buffers of their own.
func (s *slot) prepare(payload, place []byte) {
	q := &s.blk
	q.Off, q.Len, q.Buf = int64(s.request.off), int64(s.request.length), nil
	q.Flags = 0
	if s.request.flags&cmdFlagFUA != 0 {
		q.Flags = blk.FUA
	}
	switch s.request.typ {
	case cmdRead:
		q.Op, q.Buf, q.Flags = blk.OpRead, place, 0
	case cmdWrite:
		q.Op, q.Buf = blk.OpWrite, payload
	case cmdFlush:
		q.Op, q.Flags = blk.OpFlush, 0
	case cmdTrim:
		q.Op = blk.OpDiscard
	case cmdWriteZeroes:
		q.Op = blk.OpWriteZeroes
		if s.request.flags&cmdFlagNoHole != 0 {
			q.Flags |= blk.NoHole
		}
	default:
		panic(fmt.Sprintf("nbd: command %d has no request", s.request.typ))
	}
}

// carryOut does what the batch asks and sends the replies.
func (c *conn) carryOut() error {
	c.submit()
	return c.reply()
}

// submit hands the batch down, and waits until all of it is complete.
func (c *conn) submit() {
	b := &c.batch
	if len(b.submit) == 0 {
		return
	}
	b.inflight = len(b.submit)
	c.queue.Submit(b.submit)
	for b.inflight > 0 {
		if c.queue.Reap(true) == 0 && b.inflight > 0 {
			panic("nbd: Reap returned with requests in flight")
		}
	}
	b.submit = b.submit[:0]
}

// reply sends the replies to all slots, first those that have a place, then the
// others, and empties the batch. A read that failed leaves a gap.
func (c *conn) reply() error {
	b := &c.batch
	end, data, gaps := b.laid, false, false
	for i := range b.slots[:b.n] {
		s := &b.slots[i]
		failed := s.verdict != admitted || s.blk.Errno != 0
		c.tally.count(&s.request, failed)
		switch {
		case failed:
			end += c.putFailure(c.tx[end:], s)
			gaps = gaps || s.placed
		case !s.placed:
			end += putSimple(c.tx[end:], s.request.cookie, 0)
		case s.request.typ == cmdRead:
			c.putReadHeader(s)
		}
		data = data || s.request.typ == cmdRead && s.placed
	}
	err := c.sendBatch(end, gaps)
	if data {
		wipe(c.tx[:b.laid]) // N3
	}
	b.n, b.laid = 0, 0
	c.tally.add(&c.server.counters)
	return err
}

// sendBatch sends tx[:end], without the places of reads that failed.
func (c *conn) sendBatch(end int, gaps bool) error {
	at := 0
	if gaps {
		for i := range c.batch.slots[:c.batch.n] {
			s := &c.batch.slots[i]
			if s.placed && s.blk.Errno != 0 {
				if err := c.send(c.tx[at:s.at]); err != nil {
					return err
				}
				at = s.end
			}
		}
	}
	return c.send(c.tx[at:end])
}

func (c *conn) putReadHeader(s *slot) {
	if c.terms.structured {
		putData(c.tx[s.at:], chunkDone, s.request.cookie, s.request.off, int(s.request.length))
	} else {
		putSimple(c.tx[s.at:], s.request.cookie, 0)
	}
}

// putFailure writes the reply to a request that was refused or that failed.
func (c *conn) putFailure(b []byte, s *slot) int {
	value, text := verdicts[s.verdict].errno, verdicts[s.verdict].text
	if s.verdict == admitted {
		value = errorValue(s.blk.Errno)
		text = errorText(value)
	}
	if c.terms.structured {
		return putError(b, s.request.cookie, value, text)
	}
	return putSimple(b, s.request.cookie, value)
}
