package virtq

import (
	"testing"

	"pgregory.net/rapid"
)

// TestRingModel drives a ring beside a slow model: random chains, direct and
// indirect and both, across regions; indexes that wrap; calls and kicks with and
// without EVENT_IDX; and engines that are abandoned at any moment, whose
// successors begin with what was in flight, in order.
func TestRingModel(t *testing.T) {
	g := newGuest(t)
	table, _ := mapped(t, int(InflightSize(1, 64)))
	rapid.Check(t, func(t *rapid.T) {
		clear(table)
		for _, r := range g.regions {
			clear(r.Host)
		}
		size := uint16(1) << rapid.IntRange(0, 6).Draw(t, "log size")
		base := rapid.OneOf(rapid.Uint16Range(65500, 65535), rapid.Uint16Range(0, 5)).Draw(t, "base")
		m := &machine{driver: newDriver(g, size, base, rapid.Bool().Draw(t, "event index"))}
		m.tableMem = table[:InflightSize(1, int(size))]
		m.restart(t)
		t.Repeat(map[string]func(*rapid.T){
			"add": m.add, "pop": m.pop, "done": m.done, "publish": m.publish,
			"harvest": m.harvest, "enable": m.enable, "disable": m.disable, "restart": m.restart,
		})
		for len(m.again)+len(m.fresh)+len(m.flying)+len(m.staged) > 0 { // all is answered in the end
			m.pop(t)
			for len(m.flying) > 0 {
				m.done(t)
			}
			m.publish(t)
		}
		m.harvest(t)
		if len(m.chains) != 0 || len(m.free) != int(size) {
			t.Fatalf("%d requests were never answered", len(m.chains))
		}
	})
}

type machine struct {
	*driver
	ring     *Ring
	tableMem []byte

	fresh   []*asked // available, and never popped, oldest first
	table   []*asked // popped, and not used, in the order in which they were first popped
	again   []*asked // of these, what a successor has not popped yet
	flying  []*flight
	staged  []*flight
	written map[*asked]uint32
	told    uint16 // used.idx at the last publish
}

// flight is a request that was popped.
type flight struct {
	*asked
	chain *Chain
}

// restart abandons the engine, and lets another one take over.
func (m *machine) restart(t *rapid.T) {
	c := m.config()
	c.Base = rapid.Uint16().Draw(t, "a base that nobody knows")
	var err error
	if c.Inflight, err = NewInflight(m.tableMem, m.size); err != nil {
		t.Fatal(err)
	}
	if m.ring, err = New(c); err != nil {
		t.Fatal(err)
	}
	m.again = append([]*asked(nil), m.table...)
	m.flying, m.staged, m.written = nil, nil, map[*asked]uint32{}
	m.told = m.get16(m.used + 2)
	if m.ring.Resubmit() != len(m.again) {
		t.Fatalf("%d requests to do again, want %d", m.ring.Resubmit(), len(m.again))
	}
}

// part draws a piece of guest memory, away from the ring and its tables.
func part(t *rapid.T) desc {
	at := rapid.OneOf(
		rapid.Uint64Range(ramA+0x8000, ramB+ramBSize-0x3000),
		rapid.Uint64Range(ramB-3, ramB+3), // across the two regions
		rapid.Uint64Range(ramC, ramC+ramCSize-0x2100),
	).Draw(t, "address")
	n := rapid.OneOf(rapid.Uint32Range(0, 8), rapid.Uint32Range(0, 0x2000)).Draw(t, "length")
	return desc{addr: at, len: n}
}

func (m *machine) add(t *rapid.T) {
	parts := make([]desc, rapid.IntRange(1, 8).Draw(t, "parts"))
	readable := rapid.IntRange(0, len(parts)).Draw(t, "readable")
	for i := range parts {
		if parts[i] = part(t); i >= readable {
			parts[i].flags = descWrite
		}
	}
	if len(m.free) == 0 {
		return
	}
	direct := rapid.IntRange(0, len(parts)).Draw(t, "direct")
	if a, ok := m.driver.add(parts, direct, m.indirectAt+m.spacing*uint64(m.free[0])); ok {
		m.fresh = append(m.fresh, a)
	}
}

func (m *machine) pop(t *rapid.T) {
	var want *asked
	again := len(m.again) > 0
	switch {
	case again:
		want, m.again = m.again[0], m.again[1:]
	case len(m.fresh) > 0:
		want, m.fresh = m.fresh[0], m.fresh[1:]
		m.table = append(m.table, want)
	}
	if got := m.ring.Pending(); got != (want != nil) {
		t.Fatalf("Pending = %v, want %v", got, want != nil)
	}
	f := &flight{asked: want, chain: new(Chain)}
	ok, err := m.ring.Pop(f.chain)
	if err != nil || ok != (want != nil) {
		t.Fatalf("Pop = %v, %v; want %v", ok, err, want != nil)
	}
	if !ok {
		return
	}
	c := f.chain
	readable, writable := m.bytes(want, false), m.bytes(want, true)
	if c.Head != want.head || c.Again != again || !same(c.Readable, readable) || !same(c.Writable, writable) {
		t.Fatalf("popped descriptor %d (again: %v), or its memory is not what the driver named; want %d (%v)", c.Head, c.Again, want.head, again)
	}
	if c.ReadLen != uint64(len(readable)) || c.WriteLen != uint64(len(writable)) {
		t.Fatalf("%d bytes to read and %d to write, want %d and %d", c.ReadLen, c.WriteLen, len(readable), len(writable))
	}
	m.flying = append(m.flying, f)
}

func (m *machine) done(t *rapid.T) {
	if len(m.flying) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.flying)-1).Draw(t, "which")
	f := m.flying[i]
	m.flying = append(m.flying[:i:i], m.flying[i+1:]...)
	m.written[f.asked] = rapid.Uint32().Draw(t, "written")
	m.ring.Done(f.chain, m.written[f.asked])
	m.staged = append(m.staged, f)
	if m.get16(m.used+2) != m.told {
		t.Fatal("a request is shown as used before Publish")
	}
}

// publish expects a call as 2.7.7.2 says it: with EVENT_IDX when one of the new
// entries is the one that used_event names.
func (m *machine) publish(t *rapid.T) {
	event := m.told - 3 + rapid.Uint16Range(0, 8).Draw(t, "used_event")
	flags := rapid.Uint16Range(0, 1).Draw(t, "flags")
	m.put16(m.avail, flags)
	if m.eventIdx {
		m.put16(m.avail+4+2*uint64(m.size), event)
	}
	want := false
	for i := range uint16(len(m.staged)) {
		want = want || (m.told+i == event)
	}
	if !m.eventIdx {
		want = flags == 0 && len(m.staged) > 0
	}
	call, err := m.ring.Publish()
	if err != nil || call != want {
		t.Fatalf("Publish of %d at %d = %v, %v; used_event is %d, flags %d: want %v", len(m.staged), m.told, call, err, event, flags, want)
	}
	for _, f := range m.staged {
		for i, a := range m.table {
			if a == f.asked {
				m.table = append(m.table[:i:i], m.table[i+1:]...)
				break
			}
		}
	}
	m.told += uint16(len(m.staged))
	m.staged = nil
	if got := m.get16(m.used + 2); got != m.told {
		t.Fatalf("the used index is %d, want %d", got, m.told)
	}
	if m.ring.InFlight() != len(m.flying) {
		t.Fatalf("%d in flight, want %d", m.ring.InFlight(), len(m.flying))
	}
}

func (m *machine) harvest(t *rapid.T) {
	for {
		a, written, ok := m.driver.harvest()
		if !ok {
			break
		}
		if want, known := m.written[a]; known && written != want { // else by a predecessor
			t.Fatalf("%d bytes written, want %d", written, want)
		}
	}
	if m.usedIdx != m.told {
		t.Fatalf("the driver is at %d, the device at %d", m.usedIdx, m.told)
	}
}

func (m *machine) enable(t *rapid.T) {
	want := len(m.again)+len(m.fresh) > 0
	if got := m.ring.Enable(); got != want {
		t.Fatalf("Enable = %v, want %v", got, want)
	}
	if m.eventIdx {
		if got := m.get16(m.used + 4 + 8*uint64(m.size)); got != m.ring.Base() {
			t.Fatalf("avail_event is %d, want %d", got, m.ring.Base())
		}
	} else if got := m.get16(m.used); got != 0 {
		t.Fatalf("used.flags are %d after Enable", got)
	}
	if got, want := m.ring.Base(), m.availIdx-uint16(len(m.fresh)); got != want {
		t.Fatalf("Base = %d, want %d", got, want)
	}
}

func (m *machine) disable(t *rapid.T) {
	m.ring.Disable()
	if got := m.get16(m.used); !m.eventIdx && got != noNotify {
		t.Fatalf("used.flags are %d after Disable", got)
	}
	if got := m.get16(m.used + 2); got != m.told {
		t.Fatalf("the used index is %d, want %d", got, m.told)
	}
}

// TestWrap: a ring that goes around its indexes thousands of times more often
// than its size.
func TestWrap(t *testing.T) {
	g := newGuest(t)
	for _, eventIdx := range []bool{false, true} {
		for _, r := range g.regions {
			clear(r.Host)
		}
		d := newDriver(g, 4, 65000, eventIdx)
		r := newRing(t, d.config())
		c := new(Chain)
		calls := 0
		for i := range 70_000 {
			a, ok := d.add([]desc{{addr: ramC, len: 16}, {addr: ramC + 64, len: 1, flags: descWrite}}, 2, 0)
			if !ok {
				t.Fatal("no room")
			}
			d.put16(d.avail+4+2*4, uint16(65000+i)) // used_event: the next
			if ok, err := r.Pop(c); !ok || err != nil || c.Head != a.head {
				t.Fatalf("request %d: %v, %v, descriptor %d", i, ok, err, c.Head)
			}
			r.Done(c, uint32(i))
			call, err := r.Publish()
			if err != nil {
				t.Fatal(err)
			}
			if call {
				calls++
			}
			if b, n, ok := d.harvest(); !ok || b != a || n != uint32(i) {
				t.Fatalf("request %d was not answered", i)
			}
		}
		if r.Base() != uint16((65000+70_000)%65536) || calls != 70_000 && eventIdx {
			t.Errorf("ends at %d, with %d calls", r.Base(), calls)
		}
	}
}

// TestNoAllocations: none from Pop to Publish, with all that can be logged and
// noted, direct and indirect.
func TestNoAllocations(t *testing.T) {
	faults(t)
	g := newGuest(t)
	d := newDriver(g, 64, 7, true)
	cfg := d.config()
	table, _ := mapped(t, int(InflightSize(1, 64)))
	var err error
	if cfg.Inflight, err = NewInflight(table, 64); err != nil {
		t.Fatal(err)
	}
	cfg.Log, cfg.LogUsed, cfg.LogAddr = NewLog(make([]byte, 64)), true, d.used
	r := newRing(t, cfg)
	parts := []desc{{addr: ramC, len: 16}, {addr: ramB - 512, len: 1024, flags: descWrite}, {addr: ramC + 64, len: 1, flags: descWrite}}
	for i := range 32 {
		if _, ok := d.add(parts, 3*(i%2), d.indirectAt+d.spacing*uint64(i)); !ok {
			break
		}
	}
	var heads []uint16
	for at := d.usedIdx; at != d.availIdx; at++ {
		heads = append(heads, d.get16(d.avail+4+2*uint64(at%64)))
	}
	d.availIdx = d.usedIdx
	chains := make([]Chain, len(heads))
	if n := testing.AllocsPerRun(100, func() {
		for _, head := range heads { // the same again
			d.put16(d.avail+4+2*uint64(d.availIdx%64), head)
			d.availIdx++
		}
		d.put16(d.avail+2, d.availIdx)
		for i := range chains {
			if ok, err := r.Pop(&chains[i]); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		for i := range chains {
			r.Done(&chains[i], 1025)
		}
		if _, err := r.Publish(); err != nil {
			t.Fatal(err)
		}
		r.Enable()
		r.Disable()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
