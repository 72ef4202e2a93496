package nbd

import (
	"syscall"

	"vacate/internal/mem"
	"vacate/internal/sys"
)

// The receive buffer. What was received and not yet used lies in the widest gap
// between payloads of writes in flight, or in the gap that they left it; with none
// in flight that is the whole buffer.

// missing is how much of the request at rx[head:] is still to come, as far as is
// known. REQUIRES: it is not whole.
func (c *conn) missing() int {
	have := c.tail - c.head
	if have < requestSize {
		return requestSize - have
	}
	r, _ := parseRequest(c.rx[c.head:])
	return requestSize + r.payload() - have
}

// window makes room behind rx[:tail] for the rest of the request at rx[head:], and
// returns what may be received into: once the server leaves, no more than that
// rest. It is nil if there is no room until writes complete.
func (c *conn) window(leaving bool) []byte {
	have, missing := c.tail-c.head, c.missing()
	limit := c.rxUse.last.next.at
	if have <= smallMove || c.tail+missing > limit {
		if g := c.rxUse.widest(); g.gap() > limit-c.head {
			c.moveTo(g)
			limit = g.next.at
		}
	}
	if leaving {
		limit = min(limit, c.tail+missing)
	}
	if c.tail+missing > limit {
		return nil
	}
	return c.rx[c.tail:min(limit, c.tail+max(missing, batchData))]
}

// moveTo moves rx[head:tail] to the start of the gap behind g, and clears where it
// was (N2).
func (c *conn) moveTo(g *place) {
	from, to := c.head, g.end
	n := mem.Copy(c.rx[to:], c.rx[from:c.tail])
	switch {
	case to <= from:
		wipe(c.rx[max(to+n, from):c.tail])
	default:
		wipe(c.rx[from:min(to, c.tail)])
	}
	c.rxUse.last, c.head, c.tail = g, to, to+n
}

// receive receives into p, which lies at rx[tail:], what is there. It reports
// whether that was something, be it the end.
func (c *conn) receive(p []byte) bool {
	n, errno := sys.RecvNow(c.fd, p)
	if errno == syscall.EAGAIN {
		return false
	}
	c.received(n, errno)
	return true
}

// received takes note of what a call said that should have received at least one
// byte.
func (c *conn) received(n int, errno syscall.Errno) {
	n, c.over = judge(n, errno)
	c.tail += n
}
