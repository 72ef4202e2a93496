package virtq

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

// split is a guest each part of whose ring is in a file of its own, which can be
// cut.
type split struct {
	*driver
	files map[string]*os.File
	cfg   Config
}

const (
	partDesc, partAvail, partUsed, partData = 0x10000, 0x20000, 0x30000, 0x40000
	partTable                               = 0x50000
)

func newSplit(t *testing.T, eventIdx bool) *split {
	s := &split{files: map[string]*os.File{}}
	g := &guest{}
	for name, at := range map[string]uint64{"desc": partDesc, "avail": partAvail, "used": partUsed, "data": partData, "table": partTable} {
		b, f := mapped(t, 0x1000)
		s.files[name] = f
		g.regions = append(g.regions, Region{at, 0x1000, at, b})
	}
	var err error
	if g.mem, err = NewMemory(g.regions); err != nil {
		t.Fatal(err)
	}
	s.driver = newDriverAt(g, eventIdx)
	in, f := mapped(t, 0x1000)
	s.files["inflight"] = f
	log, f := mapped(t, 0x1000)
	s.files["log"] = f
	s.cfg = s.config()
	if s.cfg.Inflight, err = NewInflight(in[:InflightSize(1, 8)], 8); err != nil {
		t.Fatal(err)
	}
	s.cfg.Log, s.cfg.LogUsed, s.cfg.LogAddr = NewLog(log), true, partUsed
	return s
}

func newDriverAt(g *guest, eventIdx bool) *driver {
	d := &driver{guest: g, size: 8, eventIdx: eventIdx, chains: map[uint16]*asked{}, desc: partDesc, avail: partAvail, used: partUsed}
	for i := range d.size {
		d.free = append(d.free, i)
	}
	return d
}

func (s *split) cut(t *testing.T, part string) {
	t.Helper()
	if err := s.files[part].Truncate(0); err != nil {
		t.Fatal(err)
	}
}

// TestFaults: whichever part of a ring goes away, at whichever step, the ring
// breaks with an error, then or at a later step, and nothing else happens.
func TestFaults(t *testing.T) {
	for _, tt := range []struct{ part, step string }{
		{"avail", "new"}, {"used", "new"}, {"inflight", "new"},
		{"used", "disable"},
		{"used", "enable"}, {"avail", "enable"}, {"log", "enable"},
		{"avail", "pending"},
		{"avail", "pop"}, {"desc", "pop"}, {"table", "pop"}, {"inflight", "pop"},
		{"used", "done"}, {"inflight", "done"}, {"log", "done"},
		{"used", "publish"}, {"inflight", "publish"}, {"log", "publish"}, {"avail", "publish"},
	} {
		for _, eventIdx := range []bool{false, true} {
			t.Run(tt.part+" at "+tt.step, func(t *testing.T) {
				faults(t)
				s := newSplit(t, eventIdx)
				r, err := s.live(t, func(step string) {
					if step == tt.step {
						s.cut(t, tt.part)
					}
				})
				broke(t, err)
				if r == nil {
					return
				}
				broke(t, r.Broken())
				if r.InFlight() != 0 || r.Pending() || r.Enable() {
					t.Errorf("a broken ring has %d in flight, or goes on", r.InFlight())
				}
				if tt.part != "used" && tt.step == "done" && s.get16(s.used+2) != 0 {
					t.Error("a ring that is gone has published")
				}
			})
		}
	}
}

// live is the life of a ring with one request. It calls at before each step, and
// returns the first error.
func (s *split) live(t *testing.T, at func(step string)) (*Ring, error) {
	at("new")
	r, err := New(s.cfg)
	if err != nil {
		return nil, err
	}
	at("disable")
	r.Disable()
	at("enable")
	if r.Enable() && r.Broken() == nil {
		t.Error("there is a request before one was made")
	}
	if r.Broken() != nil {
		return r, r.Broken()
	}
	s.driver.add([]desc{{addr: partData, len: 16}, {addr: partData + 16, len: 1, flags: descWrite}}, 1, partTable)
	at("pending")
	if !r.Pending() {
		t.Error("nothing is pending")
	}
	at("pop")
	var c Chain
	if ok, err := r.Pop(&c); err != nil || !ok {
		return r, err
	}
	at("done")
	r.Done(&c, 1)
	at("publish")
	call, err := r.Publish()
	if call {
		t.Error("the driver of a broken ring is to be called")
	}
	return r, err
}

func broke(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrRing) || !errors.Is(err, syscall.EFAULT) {
		t.Errorf("%v, want a broken ring, and EFAULT", err)
	}
}

// TestFaultsLate: what a worker may still do with a ring that is gone.
func TestFaultsLate(t *testing.T) {
	faults(t)
	s := newSplit(t, true)
	r := newRing(t, s.cfg)
	var c [3]Chain
	for i := range c {
		s.driver.add([]desc{{addr: partData, len: 1}}, 1, 0)
		if ok, err := r.Pop(&c[i]); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	r.Done(&c[0], 0)
	s.cut(t, "used")
	for i := range c[1:] {
		r.Done(&c[1+i], 0)
	}
	for range 2 {
		if _, err := r.Publish(); r.Broken() == nil || r.InFlight() != 0 || err != nil && !errors.Is(err, syscall.EFAULT) {
			t.Errorf("Publish = %v, %d in flight", err, r.InFlight())
		}
	}
	if _, err := NewInflight(s.cfg.Inflight.mem, 8); err != nil {
		t.Error(err)
	}
	s.cut(t, "inflight")
	if _, err := NewInflight(s.cfg.Inflight.mem, 8); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("an inflight table that is gone: %v", err)
	}
}

func load(p *int) int { return *p }

// TestOtherPanics: what is no fault on the ring's memory goes on.
func TestOtherPanics(t *testing.T) {
	d := newDriver(newGuest(t), 8, 0, false)
	r := newRing(t, d.config())
	for name, f := range map[string]func(){
		"done, and never popped": func() { r.Done(&Chain{}, 0) },
		"a bug": func() {
			var err error
			defer r.caught(&err)
			panic("bug")
		},
		"a nil pointer": func() {
			faults(t)
			var err error
			defer r.caught(&err)
			_ = load(nil)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
