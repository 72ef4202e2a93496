package volume_test

import (
	"fmt"
	"math"
	"slices"

	"vacate/internal/blk"
)

// A model is the slow and obvious volume: for each byte, which writes it may
// show. A byte is a register. A read may return a write that began before the
// read ended, unless another write was carried out wholly between that write
// and the read. A write that failed was carried out or not, byte by byte, but
// no later than when it failed.
type model struct {
	clock  int
	writes []change // 0 is what the volume began with: zeros
	runs   []run    // tile the volume
}

// A run is bytes that may show the same writes.
type run struct {
	off, end int64
	show     []uint32 // never changed in place
}

// A change is a write, discard or write-zeroes.
type change struct {
	off, end int64
	zero     bool
	begun    int
	ended    int // never while in flight
}

const never = math.MaxInt

func newModel(size int64) *model {
	m := &model{runs: []run{{end: size}}}
	m.reset()
	return m
}

// reset is a new lease: zeros everywhere.
func (m *model) reset() {
	size := m.runs[len(m.runs)-1].end
	m.writes = []change{{end: size, zero: true}}
	m.runs = []run{{end: size, show: []uint32{0}}}
}

// value is what change id writes at off.
func (m *model) value(id uint32, off int64) byte {
	if m.writes[id].zero {
		return 0
	}
	return byte((uint64(id)<<32 | uint64(off)) * 0x9E3779B97F4A7C15 >> 56)
}

// within splits the runs at off and end, and returns those between.
func (m *model) within(off, end int64) []run {
	for _, at := range []int64{off, end} {
		i := slices.IndexFunc(m.runs, func(r run) bool { return r.off < at && at < r.end })
		if i >= 0 {
			right := m.runs[i]
			right.off, m.runs[i].end = at, at
			m.runs = slices.Insert(m.runs, i+1, right)
		}
	}
	first := slices.IndexFunc(m.runs, func(r run) bool { return r.off == off })
	last := slices.IndexFunc(m.runs, func(r run) bool { return r.end == end })
	return m.runs[first : last+1]
}

// join joins runs that have come to show the same.
func (m *model) join() {
	joined := m.runs[:1]
	for _, r := range m.runs[1:] {
		if last := &joined[len(joined)-1]; slices.Equal(last.show, r.show) {
			last.end = r.end
		} else {
			joined = append(joined, r)
		}
	}
	m.runs = joined
}

// begin notes a change that is submitted, and returns its id.
func (m *model) begin(off, length int64, zero bool) uint32 {
	m.clock++
	id := uint32(len(m.writes))
	m.writes = append(m.writes, change{off, off + length, zero, m.clock, never})
	for i, runs := 0, m.within(off, off+length); i < len(runs); i++ {
		runs[i].show = append(slices.Clip(runs[i].show), id)
	}
	return id
}

// end notes that a change completed. If it was carried out, what ended before it
// began can not be seen any more.
func (m *model) end(id uint32, done bool) {
	m.clock++
	w := &m.writes[id]
	w.ended = m.clock
	if !done {
		return
	}
	for i, runs := 0, m.within(w.off, w.end); i < len(runs); i++ {
		runs[i].show = slices.DeleteFunc(slices.Clone(runs[i].show), func(c uint32) bool {
			return m.writes[c].ended < w.begun
		})
	}
	m.join()
}

// crash ends what is in flight, carried out or not.
func (m *model) crash() {
	m.clock++
	for i := range m.writes {
		m.writes[i].ended = min(m.writes[i].ended, m.clock)
	}
}

// A look is a read in flight.
type look struct {
	off   int64
	begun int
	runs  []run  // what could be seen when it began
	next  uint32 // the first change that was submitted after that
}

func (m *model) look(off, length int64) look {
	m.clock++
	return look{off, m.clock, slices.Clone(m.within(off, off+length)), uint32(len(m.writes))}
}

// check returns why got is not what the read may return. Where nothing changed
// meanwhile, what was seen once is what stays.
func (m *model) check(l *look, got []byte) error {
	m.clock++
	for _, r := range l.runs {
		all := slices.Clone(r.show)
		settled := !slices.ContainsFunc(all, func(c uint32) bool { return m.writes[c].ended > l.begun })
		for c := l.next; c < uint32(len(m.writes)); c++ {
			if w := &m.writes[c]; w.off < r.end && r.off < w.end {
				all, settled = append(all, c), false
			}
		}
		// whole are those that wrote all of the run as it was read: if there is
		// one, as there mostly is, no byte needs a look of its own.
		whole := slices.DeleteFunc(slices.Clone(all), func(c uint32) bool { return !m.wrote(c, r, got[r.off-l.off:]) })
		for off := r.off; off < r.end && len(whole) == 0; off++ {
			b := run{off: off, end: off + 1}
			if !slices.ContainsFunc(all, func(c uint32) bool { return m.wrote(c, b, got[off-l.off:]) }) {
				return fmt.Errorf("byte %d (block %d) reads as %#x, which none of the writes that it may show wrote: %v",
					off, off/blk.BlockSize, got[off-l.off], all)
			}
		}
		if settled && len(whole) == 1 {
			for i, runs := 0, m.within(r.off, r.end); i < len(runs); i++ {
				runs[i].show = whole
			}
		}
	}
	return nil
}

// wrote reports whether change c wrote all of run r, and just what got begins
// with.
func (m *model) wrote(c uint32, r run, got []byte) bool {
	w := &m.writes[c]
	if w.off > r.off || w.end < r.end {
		return false
	}
	for i, b := range got[:r.end-r.off] {
		if m.value(c, r.off+int64(i)) != b {
			return false
		}
	}
	return true
}
