package virtq

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// TestHostileChains: whatever descriptors say, Pop ends with an error that names
// it, breaks the ring for good, and hands out nothing.
func TestHostileChains(t *testing.T) {
	const table = ramA + 0x4000
	ring := func(d desc) func(*driver) { return func(v *driver) { v.putDesc(v.desc, d) } }
	indirect := func(n int, ds ...desc) func(*driver) {
		return func(v *driver) {
			v.putDesc(v.desc, desc{table, uint32(16 * n), descIndirect, 0})
			for i, d := range ds {
				v.putDesc(table+16*uint64(i), d)
			}
		}
	}
	long := desc{ramA, math.MaxUint32, 0, 0}
	for _, tt := range []struct {
		name string
		make func(*driver)
		want string
	}{
		{"names itself", ring(desc{ramC, 1, descNext, 0}), "has a loop"},
		{"two name each other", func(v *driver) {
			v.putDesc(v.desc, desc{ramC, 1, descNext, 1})
			v.putDesc(v.desc+16, desc{ramC, 1, descNext, 0})
		}, "has a loop"},
		{"a loop of nothing", ring(desc{0, 0, descNext, 0}), "has a loop"},
		{"goes on outside", ring(desc{ramC, 1, descNext, 8}), "goes on at descriptor 8 of 8"},
		{"goes on far outside", ring(desc{ramC, 1, descNext, 65535}), "goes on at descriptor 65535 of 8"},
		{"head outside", func(v *driver) { v.put16(v.avail+4, 8) }, "descriptor 8 of 8 was made available"},
		{"address 0", ring(desc{0, 1, 0, 0}), "not guest memory"},
		{"between regions", ring(desc{ramB + ramBSize, 1, 0, 0}), "not guest memory"},
		{"past the end of a region", ring(desc{ramB + ramBSize - 4, 5, 0, 0}), "not guest memory"},
		{"before a region", ring(desc{ramC - 1, 2, descWrite, 0}), "not guest memory"},
		{"the longest there is", ring(desc{ramC, math.MaxUint32, descWrite, 0}), "not guest memory"},
		{"wraps around", ring(desc{math.MaxUint64 - 1, 4, 0, 0}), "not guest memory"},
		{"wraps around to guest memory", ring(desc{math.MaxUint64, ramA + 0x100, 0, 0}), "not guest memory"},
		{"read after write", func(v *driver) {
			v.putDesc(v.desc, desc{ramC, 1, descNext | descWrite, 1})
			v.putDesc(v.desc+16, desc{ramC, 1, 0, 0})
		}, "to read after one to write"},
		{"lengths over 2^32", indirect(3, desc{ramC, 2, descNext, 1}, long, long), "2^32 bytes|not guest memory"},
		{"indirect of nothing", ring(desc{table, 0, descIndirect, 0}), "indirect table of 0 bytes"},
		{"indirect of a part", ring(desc{table, 24, descIndirect, 0}), "indirect table of 24 bytes"},
		{"indirect too long", ring(desc{table, 16*MaxSize + 16, descIndirect, 0}), "indirect table of 16400 bytes"},
		{"indirect as long as it gets", ring(desc{table, math.MaxUint32 &^ 15, descIndirect, 0}), "indirect table of 4294967280 bytes"},
		{"indirect outside", ring(desc{ramB + ramBSize - 16, 32, descIndirect, 0}), "not guest memory"},
		{"goes on after indirect", ring(desc{table, 16, descIndirect | descNext, 1}), "goes on after an indirect table"},
		{"indirect in indirect", indirect(1, desc{table, 16, descIndirect, 0}), "names another"},
		{"indirect loop", indirect(2, desc{ramC, 1, descNext, 1}, desc{ramC, 1, descNext, 0}), "indirect table of 2 has a loop"},
		{"indirect goes on outside", indirect(2, desc{ramC, 1, descNext, 2}), "descriptor 2 of 2 of an indirect table"},
		{"indirect read after write", indirect(2, desc{ramC, 1, descNext | descWrite, 1}, desc{ramC, 1, 0, 0}), "to read after one to write"},
		{"index far ahead", func(v *driver) { v.put16(v.avail+2, 9) }, "9 ahead in a ring of 8"},
		{"index behind", func(v *driver) { v.put16(v.avail+2, 65535) }, "65535 ahead in a ring of 8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDriver(newGuest(t), 8, 0, false)
			r := newRing(t, d.config())
			d.put16(d.avail+2, 1)
			tt.make(d)
			if !r.Pending() {
				t.Fatal("nothing is pending: this test finds nothing")
			}
			var c Chain
			ok, err := r.Pop(&c)
			found := false
			for want := range strings.SplitSeq(tt.want, "|") {
				found = found || err != nil && strings.Contains(err.Error(), want)
			}
			if ok || !errors.Is(err, ErrRing) || !found {
				t.Fatalf("Pop = %v, %v; want %q", ok, err, tt.want)
			}
			if n := len(c.Readable) + len(c.Writable); n > int(d.size) {
				t.Errorf("%d descriptors were followed in a ring of %d", n, d.size)
			}
			d.putDesc(d.desc, desc{ramC, 1, 0, 0}) // and now it is fine
			d.put16(d.avail+2, 1)
			d.put16(d.avail+4, 0)
			if ok, again := r.Pop(&c); ok || again != err || r.Broken() != err || r.Pending() || r.Enable() {
				t.Errorf("a broken ring goes on: %v, %v", ok, again)
			}
		})
	}
}

// TestNotNegotiated: an indirect table is an error where the driver said that it
// would make none.
func TestNotNegotiated(t *testing.T) {
	d := newDriver(newGuest(t), 8, 0, false)
	cfg := d.config()
	cfg.Indirect = false
	r := newRing(t, cfg)
	d.add([]desc{{addr: ramC, len: 1}}, 0, d.indirectAt)
	var c Chain
	if ok, err := r.Pop(&c); ok || !errors.Is(err, ErrRing) || !strings.Contains(err.Error(), "not negotiated") {
		t.Errorf("Pop = %v, %v", ok, err)
	}
}

// TestTwice: a head that is in flight cannot be made available (Q1); what is in
// flight is answered all the same.
func TestTwice(t *testing.T) {
	d := newDriver(newGuest(t), 8, 0, false)
	r := newRing(t, d.config())
	a, _ := d.add([]desc{{addr: ramC, len: 1}}, 1, 0)
	d.put16(d.avail+4+2, a.head)
	d.put16(d.avail+2, 2)
	var c, other Chain
	if ok, err := r.Pop(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if ok, err := r.Pop(&other); ok || !errors.Is(err, ErrRing) || !strings.Contains(err.Error(), "in flight") {
		t.Fatalf("Pop = %v, %v", ok, err)
	}
	r.Done(&c, 0)
	if call, err := r.Publish(); !call || err != nil || r.InFlight() != 0 {
		t.Errorf("Publish of a broken ring = %v, %v", call, err)
	}
	if b, _, ok := d.harvest(); !ok || b != a {
		t.Error("what was in flight was not answered")
	}
}

// TestLongest: the most that a driver may ask for: a chain of the whole ring and
// of the longest table, and 2^32 bytes less those that there are.
func TestLongest(t *testing.T) {
	d := newDriver(newGuest(t), 64, 0, false)
	r := newRing(t, d.config())
	parts := make([]desc, 63+1024)
	for i := range parts {
		parts[i] = desc{addr: ramB - 1, len: 2, flags: descWrite}
	}
	a, ok := d.add(parts, 63, ramA+0x8000)
	if !ok {
		t.Fatal("no room")
	}
	var c Chain
	if ok, err := r.Pop(&c); !ok || err != nil || !same(c.Writable, d.bytes(a, true)) {
		t.Fatalf("Pop = %v, %v, or other memory", ok, err)
	}
	if len(c.Writable) != 2*len(parts) {
		t.Errorf("%d slices, want %d", len(c.Writable), 2*len(parts))
	}
	r.Done(&c, 0)
	if _, err := r.Publish(); err != nil {
		t.Fatal(err)
	}
	if c.reset(); c.Writable != nil {
		t.Errorf("a chain keeps memory for %d slices", cap(c.Writable))
	}
}

// TestConfig: what a ring may not be.
func TestConfig(t *testing.T) {
	g := newGuest(t)
	good := newDriver(g, 8, 0, true).config()
	odd := append(make([]byte, 1), make([]byte, 128)...)
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no size", func(c *Config) { c.Size = 0 }, "ring of 0 descriptors"},
		{"not a power of two", func(c *Config) { c.Size = 6 }, "ring of 6 descriptors"},
		{"too large", func(c *Config) { c.Size = 2048 }, "ring of 2048 descriptors"},
		{"table misaligned", func(c *Config) { c.DescAddr += 8 }, "descriptor table is at"},
		{"available ring misaligned", func(c *Config) { c.AvailAddr++ }, "available ring is at"},
		{"used ring misaligned", func(c *Config) { c.UsedAddr += 2 }, "used ring is at"},
		{"table at 0", func(c *Config) { c.DescAddr = 0 }, "descriptor table: 0x80 bytes at the frontend's address 0x0: not guest memory"},
		{"used ring outside", func(c *Config) { c.UsedAddr = 1 << 60 }, "used ring"},
		{"used ring at the end", func(c *Config) { c.UsedAddr = userBase + ramCSize - 8*8 - 4 }, "used ring"},
		{"available ring at the end", func(c *Config) { c.AvailAddr = userBase + ramCSize - 2*8 - 4 }, "available ring"},
		{"table wraps around", func(c *Config) { c.DescAddr = math.MaxUint64 - 15 }, "descriptor table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := good
			tt.change(&c)
			if _, err := New(c); !errors.Is(err, ErrRing) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New = %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := NewInflight(odd[1:], 4); err == nil {
		t.Error("a table at an odd address was taken")
	}
	// Without EVENT_IDX the rings are a word shorter.
	c := good
	c.EventIdx, c.UsedAddr = false, userBase+ramCSize-8*8-4
	if _, err := New(c); err != nil {
		t.Errorf("a used ring that just fits: %v", err)
	}
}

// TestHostileInflight: a table that the frontend has filled in.
func TestHostileInflight(t *testing.T) {
	type table = map[int]byte // byte by offset
	for _, tt := range []struct {
		name  string
		bytes table
		used  uint16
		want  string // of New; empty: none
		heads []uint16
	}{
		{name: "version 2", bytes: table{8: 2, 10: 8}, want: "version 2"},
		{name: "another size", bytes: table{8: 1, 10: 4}, want: "table of 4 entries: want 8"},
		{name: "stale, and empty", bytes: table{8: 1, 10: 8, 14: 77, 12: 200}, used: 3},
		{name: "stale, and not empty", bytes: table{8: 1, 10: 8, 14: 77, 16: 1}, used: 3, want: "beyond that of the inflight table"},
		{name: "last batch outside", bytes: table{8: 1, 10: 8, 12: 8, 16: 1}, used: 1, want: "last batch has descriptor 8 of 8"},
		{name: "batch goes on outside", bytes: table{8: 1, 10: 8, 12: 1, 16: 1, 16 + 16 + 6: 9}, used: 2, want: "last batch has descriptor 9 of 8"},
		{name: "batch is a loop", bytes: table{8: 1, 10: 8, 12: 0, 16: 1, 16 + 32: 1}, used: 8, heads: []uint16{2}},
		{name: "equal counters", bytes: table{8: 1, 10: 8, 16: 1, 16 + 48: 255}, heads: []uint16{0, 3}},
		{name: "largest counter", bytes: table{8: 1, 10: 8, 16: 1, 24: 255, 25: 255, 26: 255, 27: 255, 28: 255, 29: 255, 30: 255, 31: 255, 16 + 48: 1}, heads: []uint16{3, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDriver(newGuest(t), 8, tt.used, false)
			for i := range uint64(8) {
				d.putDesc(d.desc+16*i, desc{ramC, 1, 0, 0})
			}
			d.put16(d.avail+2, tt.used+uint16(len(tt.heads)))
			mem, _ := mapped(t, int(InflightSize(1, 8)))
			for at, b := range tt.bytes {
				mem[at] = b
			}
			c := d.config()
			in, err := NewInflight(mem, 8)
			var r *Ring
			if err == nil {
				c.Inflight = in
				r, err = New(c)
			}
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, head := range tt.heads {
				var c Chain
				if ok, err := r.Pop(&c); !ok || err != nil || c.Head != head || !c.Again {
					t.Fatalf("Pop = %v, %v, descriptor %d again %v; want %d", ok, err, c.Head, c.Again, head)
				}
			}
			if r.Pending() {
				t.Error("there is more")
			}
		})
	}
	d := newDriver(newGuest(t), 8, 0, false)
	c := d.config()
	mem, _ := mapped(t, int(InflightSize(1, 16)))
	var err error
	if c.Inflight, err = NewInflight(mem, 4); err != nil {
		t.Fatal(err)
	}
	if _, err := New(c); !errors.Is(err, ErrRing) {
		t.Errorf("a table of 4 for a ring of 8: %v", err)
	}
	clear(mem)
	if c.Inflight, err = NewInflight(mem, 16); err != nil {
		t.Fatal(err)
	}
	mem[16+16*12] = 1
	if _, err := New(c); !errors.Is(err, ErrRing) {
		t.Errorf("descriptor 12 in flight on a ring of 8: %v", err)
	}
}
