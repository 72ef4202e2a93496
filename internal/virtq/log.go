package virtq

import (
	"math"
	"sync/atomic"
	"unsafe"
)

// LogPage is the unit of the dirty log, in bytes (vhost-user: Migration).
const LogPage = 4096

// A Log is the dirty log of a migration: a bit for each page of guest memory,
// which the frontend takes away as it copies the page. It may be used from any
// goroutine.
type Log struct {
	base unsafe.Pointer
	mem  []byte
}

// NewLog returns the log that lies in mem, a mapping that stays as long as the
// log is used. Marking faults where the frontend has cut its file.
func NewLog(mem []byte) *Log { return &Log{base: unsafe.Pointer(unsafe.SliceData(mem)), mem: mem} }

// Mark notes that the pages of n bytes at a guest address were written, after
// they were. Pages that the log has no bit for are left out: the frontend, who
// made it, does not want to know of them.
func (l *Log) Mark(addr, n uint64) {
	if n == 0 {
		return
	}
	last := uint64(math.MaxUint64)
	if addr <= math.MaxUint64-(n-1) {
		last = addr + (n - 1)
	}
	last /= LogPage
	if end := 8 * uint64(len(l.mem)); last >= end {
		last = end - 1 // of an empty log: the loop's first look ends it
	}
	for page := addr / LogPage; page <= last && page/8 < uint64(len(l.mem)); page++ {
		// The frontend's words are bytes to us: any log works. The four bytes
		// around one, aligned, are in its page.
		p := unsafe.Add(l.base, page/8)
		skew := uintptr(p) & 3
		word := (*uint32)(unsafe.Add(p, -int(skew)))
		bit := uint32(1) << (8*skew + uintptr(page%8))
		touch(p)
		if atomic.LoadUint32(word)&bit == 0 {
			atomic.OrUint32(word, bit)
		}
	}
}
