package nbd

// A place is a part of a buffer that is in use: its bytes at … end-1.
type place struct {
	at, end    int
	prev, next *place // by address; in no arena: nil
}

// gap is the length of what is free behind p.
func (p *place) gap() int { return p.next.at - p.end }

// An arena says which parts of a buffer are in use, so that one that stays in use
// for long holds up nothing but itself. It belongs to one goroutine.
//
//	P1: places do not overlap, and stand in a ring, in the order of their
//	    addresses. Its first and its last are next to the rim, which is both the
//	    end of what lies in front of the buffer and the start of what lies behind.
//	P2: last is the place behind which room is looked for first. In an empty arena
//	    that is the rim: what is emptied often stays at the front, in the
//	    processor's caches, and in one piece.
type arena struct {
	rim  place
	last *place
}

// init makes a an empty arena of a buffer of size bytes.
func (a *arena) init(size int) {
	a.rim = place{at: size, end: 0}
	a.rim.prev, a.rim.next = &a.rim, &a.rim
	a.last = &a.rim
}

func (a *arena) empty() bool { return a.rim.next == &a.rim }

// put finds n bytes for p. It reports whether there are as many in one piece.
func (a *arena) put(p *place, n int) bool {
	if a.last.gap() < n {
		g := &a.rim
		for g.gap() < n {
			if g = g.next; g == &a.rim {
				return false
			}
		}
		a.last = g
	}
	a.keep(p, a.last.end, a.last.end+n)
	return true
}

// keep makes p the bytes at … end-1. REQUIRES: they lie in the gap behind last.
func (a *arena) keep(p *place, at, end int) {
	l := a.last
	p.at, p.end, p.prev, p.next = at, end, l, l.next
	l.next.prev = p
	l.next = p
	a.last = p
}

// drop frees p.
func (a *arena) drop(p *place) {
	p.prev.next, p.next.prev = p.next, p.prev
	if a.last == p {
		a.last = p.prev
	}
	p.prev, p.next = nil, nil
}

// widest returns the place behind which the most is free.
func (a *arena) widest() *place {
	best := a.last
	for g := a.rim.next; g != &a.rim; g = g.next {
		if g.gap() > best.gap() {
			best = g
		}
	}
	if a.rim.gap() > best.gap() {
		best = &a.rim
	}
	return best
}
