package nbd

import (
	"syscall"

	"vacate/internal/sys"
)

// An outbox holds the replies that are to be sent, in the order in which their
// requests were done. A reply with data lies at its place in tx; all others are
// written one behind the other into the part of tx behind the arena's, and so
// make one piece of what is sent.
//
//	O1: parts[first:] are to be sent, and of the first of them sent bytes were.
//	O2: requests are only taken while it is empty; so it is bounded by what was
//	    in flight and what one gather answers.
//	O3: tx[small:] has smallReply bytes for each request in flight.
type outbox struct {
	parts []part
	first int
	sent  int // bytes
	small int // where the next small reply goes
	front int // where small replies begin
	end   int // of tx
}

// A part is tx[at:end].
type part struct {
	at, end int
	slot    *slot // the slot whose reply it is, released when it was sent; nil: small replies
}

// init has small replies go to tx[front:end].
func (o *outbox) init(depth, front, end int) {
	*o = outbox{parts: make([]part, 0, 2*depth+1), small: front, front: front, end: end}
}

func (o *outbox) empty() bool { return len(o.parts) == 0 }

// room reports whether n small replies fit.
func (o *outbox) room(n int) bool { return o.small+n*smallReply <= o.end }

// tail is where the next small reply is written.
func (o *outbox) tail(tx []byte) []byte { return tx[o.small:o.end] }

// add takes note of a small reply of n bytes.
func (o *outbox) add(n int) {
	o.small += n
	if last := len(o.parts) - 1; last >= 0 && o.parts[last].slot == nil {
		o.parts[last].end += n
	} else {
		o.parts = append(o.parts, part{at: o.small - n, end: o.small})
	}
}

// slot takes note of a reply that lies at its place.
func (o *outbox) slot(s *slot) {
	o.parts = append(o.parts, part{at: s.place.at, end: s.place.end, slot: s})
}

// answer adds the reply without data to r, which was carried out or failed.
func (c *conn) answer(r *request, errno syscall.Errno) {
	c.tally.count(r, errno != 0)
	if errno == 0 {
		c.out.add(putSimple(c.out.tail(c.tx), r.cookie, 0))
		return
	}
	value := errorValue(errno)
	c.putFailure(r.cookie, value, errorText(value))
}

// deny adds the reply to r, which is not carried out.
func (c *conn) deny(r *request, v verdict) {
	c.tally.count(r, true)
	c.putFailure(r.cookie, verdicts[v].errno, verdicts[v].text)
}

func (c *conn) putFailure(cookie uint64, value uint32, text string) {
	if b := c.out.tail(c.tx); c.terms.structured {
		c.out.add(putError(b, cookie, value, text))
	} else {
		c.out.add(putSimple(b, cookie, value))
	}
}

// flush sends what there is to be sent, as much as the socket takes: what lies in
// one piece with one send(2), and else with one sendmsg(2).
func (c *conn) flush() error {
	if c.out.empty() {
		return nil
	}
	c.tally.add(&c.server.counters)
	for !c.out.empty() {
		c.compose()
		n, errno := c.pieces.SendNow(c.fd)
		switch errno {
		case 0:
			c.sent(n)
		case syscall.EAGAIN:
			return nil
		default:
			return errno
		}
	}
	return nil
}

// compose puts what is to be sent into as few pieces as it makes.
func (c *conn) compose() {
	o := &c.out
	c.pieces.Reset()
	at := o.parts[o.first].at + o.sent
	end := o.parts[o.first].end
	for _, p := range o.parts[o.first+1:] {
		if p.at == end {
			end = p.end
			continue
		}
		if !c.pieces.Add(c.tx[at:end]) {
			return
		}
		at, end = p.at, p.end
	}
	c.pieces.Add(c.tx[at:end])
}

// sendWait sends at least one byte, and waits for it. REQUIRES: something is to
// be sent, and nothing is in flight, which a client could hold up then.
func (c *conn) sendWait() error {
	p := &c.out.parts[c.out.first]
	n, errno := sys.Send(c.fd, c.tx[p.at+c.out.sent:p.end])
	if errno != 0 {
		return errno
	}
	c.sent(n)
	return nil
}

// sent takes note that n bytes were sent, and frees what they lay in.
func (c *conn) sent(n int) {
	o := &c.out
	for n > 0 {
		p := &o.parts[o.first]
		left := p.end - p.at - o.sent
		if n < left {
			o.sent += n
			return
		}
		n -= left
		o.sent = 0
		o.first++
		if s := p.slot; s != nil {
			if s.request.typ == cmdRead {
				wipe(c.tx[p.at:p.end]) // N3
			}
			c.txUse.drop(&s.place)
			c.vacate(s)
		}
	}
	if o.first == len(o.parts) {
		o.parts, o.first, o.small = o.parts[:0], 0, o.front
	}
}

// discard drops what is still to be sent.
func (c *conn) discard() {
	for o := &c.out; !o.empty(); {
		p := &o.parts[o.first]
		c.sent(p.end - p.at - o.sent)
	}
}
