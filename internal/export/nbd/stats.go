package nbd

import "sync/atomic"

// Stats is what a server has done so far.
type Stats struct {
	Connections int    // open now, those in the handshake included
	Accepted    uint64 // connections
	Refused     uint64 // connections, by Allow, by Admit or for want of memory
	Garbage     uint64 // connections ended because of what the client sent
	Passed      uint64 // connections that Leave brought to a message boundary
	Adopted     uint64 // connections that another server had accepted

	Reads, Writes, Flushes, Trims, Zeroes, Statuses uint64 // requests, the failed ones included
	ReadBytes, WriteBytes                           uint64 // of requests that were carried out
	Errors                                          uint64 // requests answered with an error
}

// counters is the shared form of Stats. Connections add to it once a batch.
type counters struct {
	accepted, refused, garbage atomic.Uint64
	passed, adopted            atomic.Uint64
	commands                   [cmdBlockStatus + 1]atomic.Uint64
	readBytes, writeBytes      atomic.Uint64
	errors                     atomic.Uint64
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	c := &s.counters
	return Stats{
		Connections: n,
		Accepted:    c.accepted.Load(),
		Refused:     c.refused.Load(),
		Garbage:     c.garbage.Load(),
		Passed:      c.passed.Load(),
		Adopted:     c.adopted.Load(),
		Reads:       c.commands[cmdRead].Load(),
		Writes:      c.commands[cmdWrite].Load(),
		Flushes:     c.commands[cmdFlush].Load(),
		Trims:       c.commands[cmdTrim].Load(),
		Zeroes:      c.commands[cmdWriteZeroes].Load(),
		Statuses:    c.commands[cmdBlockStatus].Load(),
		ReadBytes:   c.readBytes.Load(),
		WriteBytes:  c.writeBytes.Load(),
		Errors:      c.errors.Load(),
	}
}

// A tally is what one connection has done since it last added it up.
type tally struct {
	commands              [cmdBlockStatus + 1]uint32
	readBytes, writeBytes uint64
	errors                uint32
}

// count notes one request and how it ended.
func (t *tally) count(r *request, failed bool) {
	if int(r.typ) < len(t.commands) {
		t.commands[r.typ]++
	}
	switch {
	case failed:
		t.errors++
	case r.typ == cmdRead:
		t.readBytes += uint64(r.length)
	case r.typ == cmdWrite:
		t.writeBytes += uint64(r.length)
	}
}

// add moves the tally into the server's counters.
func (t *tally) add(c *counters) {
	for i, n := range t.commands {
		if n > 0 {
			c.commands[i].Add(uint64(n))
		}
	}
	if t.readBytes > 0 {
		c.readBytes.Add(t.readBytes)
	}
	if t.writeBytes > 0 {
		c.writeBytes.Add(t.writeBytes)
	}
	if t.errors > 0 {
		c.errors.Add(uint64(t.errors))
	}
	*t = tally{}
}
