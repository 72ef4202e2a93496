package nbd

import "encoding/binary"

// contextID is the id that base:allocation has on every connection.
const contextID = 1

// statusHead is what stands in front of the descriptors: chunk header and
// context id.
const statusHead = chunkSize + 4

// statusSize is room for the longest answer to the block status r.
func statusSize(r *request) int {
	if r.flags&cmdFlagReqOne != 0 {
		return statusHead + descriptorSize
	}
	return statusHead + maxDescriptors*descriptorSize
}

// A statusWriter puts what the block map tells into descriptors. It belongs to
// one batch.
type statusWriter struct {
	walk func(off, length int64, yield func(off, n int64, written bool) bool)
	tell func(off, n int64, written bool) bool // w.add: made once, so that walking allocates nothing

	b    []byte // descriptors
	n    int    // bytes of b in use
	next int64  // bytes: where the next range begins
	end  int64
}

func (w *statusWriter) init(walk func(int64, int64, func(int64, int64, bool) bool)) {
	w.walk, w.tell = walk, w.add
}

// put writes the answer to r to the front of b and returns its length.
func (w *statusWriter) put(b []byte, r *request) int {
	w.b, w.n = b[statusHead:], 0
	w.next, w.end = int64(r.off), int64(r.off)+int64(r.length)
	if w.walk != nil {
		w.walk(w.next, w.end-w.next, w.tell)
	}
	if w.n == 0 {
		// At least one descriptor is due, and "allocated" is always true enough.
		w.add(w.next, w.end-w.next, true)
	}
	n := w.n
	w.b = nil
	putChunk(b, chunkDone, chunkBlockStatus, r.cookie, 4+n)
	binary.BigEndian.PutUint32(b[chunkSize:], contextID)
	return statusHead + n
}

// add notes one range. It returns false when no more can be told.
func (w *statusWriter) add(off, n int64, written bool) bool {
	if off != w.next || n <= 0 {
		panic("nbd: block map skipped a part of the range")
	}
	n = min(n, w.end-w.next)
	flags := uint32(stateHole | stateZero)
	if written {
		flags = 0
	}
	if last := w.n - descriptorSize; last >= 0 && binary.BigEndian.Uint32(w.b[last+4:]) == flags {
		length := binary.BigEndian.Uint32(w.b[last:])
		binary.BigEndian.PutUint32(w.b[last:], length+uint32(n))
	} else {
		if w.n == len(w.b) {
			return false
		}
		binary.BigEndian.PutUint32(w.b[w.n:], uint32(n))
		binary.BigEndian.PutUint32(w.b[w.n+4:], flags)
		w.n += descriptorSize
	}
	w.next += n
	return w.next < w.end
}
