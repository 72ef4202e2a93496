package nbdclient

import (
	"fmt"
	"strings"
	"sync"
)

// A state is what a sector may hold: the generation of the write that put it
// there, and whether that made zeros.
type state uint64

func newState(gen uint64, zeros bool) state {
	s := state(gen << 1)
	if zeros {
		s |= 1
	}
	return s
}

func (s state) gen() uint64 { return uint64(s >> 1) }
func (s state) zeros() bool { return s&1 != 0 }

// What was found in a sector: the state newState(generation, false), foundZeros
// (of any generation), or foundBad.
const (
	foundZeros = state(1)
	foundBad   = ^state(0)
)

// shows reports whether a sector in this state looks like found.
func (s state) shows(found state) bool {
	return s == found || s.zeros() && found == foundZeros
}

func (s state) String() string {
	if s.zeros() {
		return "zeros"
	}
	return fmt.Sprintf("generation %d", s.gen())
}

// A model knows what each sector may hold. Its methods may be called from any
// goroutine.
//
//	V1: no two writes, zeroings or discards of one sector are under way at once,
//	    and none begins while the sector is read.
//	V2: a read sees what the sector held when it began, or what was under way then,
//	    or both ([mixed]): a drive that is mapped into memory is no one's to order.
//	V3: a write that was given up may have landed or not; what is seen first
//	    stays.
//	V4: a write that finds no free place may claim one: nothing else begins there
//	    until it has begun.
type model struct {
	want stamp // of all sectors, but for offset and generation

	mu       sync.Mutex
	gen      uint64
	holds    []state
	writer   []uint16 // 1 + the slot of what is being written; 0: nothing
	readers  []uint16
	flying   []state         // by slot: what it writes
	maybe    map[int][]state // by sector: what given-up writes may have left
	reported map[int]bool    // sectors found wrong since they were last written
	claim    claim
}

// A claim is the place of a write that waits for it (V4). n is 0: there is none.
type claim struct {
	worker, first, n int
	cmd              uint16
}

// newModel models sectors of an export from the offset off on, all of them zeros.
func newModel(want stamp, off int64, sectors, slots int) *model {
	want.off = off
	m := &model{
		want: want, holds: make([]state, sectors), writer: make([]uint16, sectors), readers: make([]uint16, sectors),
		flying: make([]state, slots), maybe: make(map[int][]state), reported: make(map[int]bool),
	}
	for i := range m.holds {
		m.holds[i] = newState(0, true)
	}
	return m
}

// A raced is one state that a sector may have been in when a read of it began.
type raced struct {
	sector int
	state  state
}

// begin admits o of a worker, or refuses it because of what is under way.
func (m *model) begin(worker int, o *op) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &m.claim
	if c.worker != worker && o.first < c.first+c.n && c.first < o.first+o.n {
		return false
	}
	switch {
	case o.cmd == cmdRead:
		for i := o.first; i < o.first+o.n; i++ {
			m.readers[i]++
		}
		m.race(o)
	case o.writes():
		for i := o.first; i < o.first+o.n; i++ {
			if m.writer[i] != 0 || m.readers[i] != 0 {
				return false
			}
		}
		if c.worker == worker && *c == (claim{worker, o.first, o.n, o.cmd}) {
			*c = claim{}
		}
		m.gen++
		o.state = newState(m.gen, o.cmd != cmdWrite)
		m.flying[o.slot] = o.state
		for i := o.first; i < o.first+o.n; i++ {
			m.writer[i] = uint16(o.slot + 1)
		}
	}
	return true
}

// reserve claims the place of o, which was refused, unless another is claimed.
func (m *model) reserve(worker int, o *op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.claim.n == 0 {
		m.claim = claim{worker, o.first, o.n, o.cmd}
	}
}

// reserved makes o the request that the worker has claimed a place for, if it has.
func (m *model) reserved(worker int, o *op) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.claim
	if c.n == 0 || c.worker != worker {
		return false
	}
	o.cmd, o.first, o.n = c.cmd, c.first, c.n
	return true
}

// again is called before a read is sent once more.
func (m *model) again(o *op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.race(o)
}

// race notes for the read o what is under way (V2).
func (m *model) race(o *op) {
	o.racing = o.racing[:0]
	for i := o.first; i < o.first+o.n; i++ {
		if w := m.writer[i]; w != 0 {
			o.racing = append(o.racing, raced{i, m.holds[i]}, raced{i, m.flying[w-1]})
			for _, s := range m.maybe[i] {
				o.racing = append(o.racing, raced{i, s})
			}
		}
	}
}

// landed is called when the write o was answered with success.
func (m *model) landed(o *op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := o.first; i < o.first+o.n; i++ {
		m.holds[i], m.writer[i] = o.state, 0
		delete(m.maybe, i)
		delete(m.reported, i)
	}
}

// giveUp is called when nobody will know how the write o ended.
func (m *model) giveUp(o *op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := o.first; i < o.first+o.n; i++ {
		m.writer[i] = 0
		m.maybe[i] = append(m.maybe[i], o.state)
	}
}

// unread is called when the read o failed.
func (m *model) unread(o *op) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release(o)
}

func (m *model) release(o *op) {
	for i := o.first; i < o.first+o.n; i++ {
		m.readers[i]--
	}
}

// look says what each sector of the read o shows, into o.found. It needs no lock.
func (m *model) look(o *op) {
	o.found = o.found[:0]
	for i := range o.n {
		b := o.buf[i*sectorSize : (i+1)*sectorSize]
		found := foundBad
		if s, whole := readSector(b); whole {
			if s == m.stampOf(o.first+i, s.gen) {
				found = newState(s.gen, false)
			}
		} else if [sectorSize]byte(b) == zeroSector {
			found = foundZeros
		}
		o.found = append(o.found, found)
	}
}

func (m *model) stampOf(sector int, gen uint64) stamp {
	s := m.want
	s.off += int64(sector) * sectorSize
	s.gen = gen
	return s
}

// check judges the read o, after look, and ends it. It returns each sector that
// is wrong, once until it is written again.
func (m *model) check(o *op) []Wrong {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release(o)
	var wrong []Wrong
	racing := o.racing
	for i, found := range o.found {
		sector := o.first + i
		n := 0
		for n < len(racing) && racing[n].sector == sector {
			n++
		}
		b := o.buf[i*sectorSize : (i+1)*sectorSize]
		if m.right(sector, found, racing[:n]) || n > 0 && mixed(b, m.stampOf(sector, 0), m.allowed(sector, racing[:n])) {
			racing = racing[n:]
			continue
		}
		if !m.reported[sector] {
			m.reported[sector] = true
			allowed := m.allowed(sector, racing[:n])
			w := Wrong{Off: m.stampOf(sector, 0).off, Expected: describe(allowed)}
			w.Class, w.Found = classify(b, m.stampOf(sector, 0), allowed)
			wrong = append(wrong, w)
		}
		racing = racing[n:]
	}
	return wrong
}

// right reports whether found is right, and makes it stay (V3).
func (m *model) right(sector int, found state, racing []raced) bool {
	if len(racing) > 0 {
		for _, r := range racing {
			if r.state.shows(found) {
				return true
			}
		}
		return false
	}
	holds := m.holds[sector]
	maybe, open := m.maybe[sector]
	if !open {
		return holds.shows(found)
	}
	for _, s := range append([]state{holds}, maybe...) {
		if s.shows(found) {
			m.holds[sector] = s
			delete(m.maybe, sector)
			return true
		}
	}
	return false
}

func (m *model) allowed(sector int, racing []raced) []state {
	if len(racing) == 0 {
		return append([]state{m.holds[sector]}, m.maybe[sector]...)
	}
	var all []state
	for _, r := range racing {
		all = append(all, r.state)
	}
	return all
}

func describe(states []state) string {
	var all []string
	for _, s := range states {
		all = append(all, s.String())
	}
	return strings.Join(all, " or ")
}
