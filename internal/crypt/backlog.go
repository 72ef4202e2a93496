package crypt

import (
	"vacate/internal/blk"
	"vacate/internal/mem"
)

// A waiting request has its window already, if it has one: a batch that comes at
// once asks for the first line of all its windows, and so the look-ups of their
// addresses and the way to memory, which take longer than the cipher, are made
// beside each other.
type waiting struct {
	r      *blk.Request
	window []byte // nil: none
}

// A backlog is the requests that have not been started, oldest first.
type backlog struct {
	ring []waiting // length a power of two
	head uint
	n    int
	room int
}

func newBacklog(depth int) backlog {
	size := 1
	for size < depth {
		size *= 2
	}
	return backlog{ring: make([]waiting, size), room: depth}
}

// at returns the i-th oldest. REQUIRES: i < n.
func (b *backlog) at(i int) *waiting {
	return &b.ring[(b.head+uint(i))&uint(len(b.ring)-1)]
}

func (b *backlog) push(r *blk.Request, window []byte) {
	if b.n == b.room {
		panic("crypt: more requests submitted than the queue's depth")
	}
	b.n++
	*b.at(b.n - 1) = waiting{r, window}
}

// pop removes the oldest. REQUIRES: n > 0.
func (b *backlog) pop() {
	*b.at(0) = waiting{}
	b.head++
	b.n--
}

// window asks for the window of r.
func (q *queue) window(r *blk.Request) []byte {
	if q.windows == nil || r.Op != blk.OpRead && r.Op != blk.OpWrite || q.check(r) != 0 {
		return nil
	}
	return q.windows.Window(r.Op, r.Off, r.Len)
}

// fetchAll has the first line of each window fetched, from the first-th request on.
// They are asked for together, so that the tables that say where they are are read
// side by side: a counter between two would have the second wait for the first.
func (q *queue) fetchAll(first int) {
	for ; first < q.waiting.n; first++ {
		if w := q.waiting.at(first).window; w != nil {
			mem.Prefetch(w[:mem.Line])
		}
	}
}

// soon is how much of the next window is fetched while the cipher works on this
// one, in bytes. The processor sees by then that the rest is wanted; all of it
// would keep this one's lines waiting.
const soon = 1 << 10

// fetchNext has the window of the oldest request fetched.
func (q *queue) fetchNext() {
	if q.waiting.n > 0 {
		if w := q.waiting.at(0).window; w != nil {
			mem.Prefetch(w[:soon])
		}
	}
}
