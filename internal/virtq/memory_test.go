package virtq

import (
	"errors"
	"math"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestNewMemory(t *testing.T) {
	host := make([]byte, 0x1000)
	region := func(guest, user uint64) Region { return Region{guest, 0x1000, user, host} }
	for _, tt := range []struct {
		name    string
		regions []Region
		want    string
	}{
		{"none", nil, ""},
		{"side by side", []Region{region(0x2000, 0x9000), region(0x1000, 0x8000)}, ""},
		{"at 0", []Region{region(0, 0)}, ""},
		{"the last page but one", []Region{region(math.MaxUint64-0x1fff, 0)}, ""},
		{"empty", []Region{{0x1000, 0, 0x1000, nil}}, "is empty"},
		{"other size here", []Region{{0x1000, 0x2000, 0x1000, host}}, "has 0x1000 bytes here"},
		{"wraps around", []Region{region(math.MaxUint64-0xffe, 0)}, "wraps around"},
		{"wraps around at the frontend", []Region{region(0, math.MaxUint64-0xffe)}, "wraps around"},
		{"same", []Region{region(0x1000, 0), region(0x1000, 0x5000)}, "overlap"},
		{"overlap at the end", []Region{region(0x1000, 0), region(0x1fff, 0x5000)}, "overlap"},
		{"overlap at the start", []Region{region(0x1fff, 0), region(0x1000, 0x5000)}, "overlap"},
		{"overlap at the frontend", []Region{region(0x1000, 0x5000), region(0x8000, 0x5800)}, "overlap"},
	} {
		_, err := NewMemory(tt.regions)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestGuest compares look-ups of ranges with those of each byte.
func TestGuest(t *testing.T) {
	g := newGuest(t)
	edges := []uint64{0, ramA, ramB, ramB + ramBSize, ramC, ramC + ramCSize, math.MaxUint64}
	rapid.Check(t, func(t *rapid.T) {
		addr := rapid.SampledFrom(edges).Draw(t, "edge") + uint64(rapid.Int64Range(-70, 70).Draw(t, "beside"))
		n := rapid.Uint64Range(0, 200).Draw(t, "n")
		var want []*byte
		for i := range n {
			if b := g.at(addr + i); b != nil && addr+i >= addr {
				want = append(want, b)
			}
		}
		before := [][]byte{{1}}
		got, err := g.mem.Guest(before, addr, n)
		if good := uint64(len(want)) == n; good != (err == nil) {
			t.Fatalf("%d bytes at %#x: %v, want good = %v", n, addr, err, good)
		}
		if err != nil {
			if !errors.Is(err, ErrMemory) || len(got) != 1 {
				t.Fatalf("%v, with %d slices", err, len(got))
			}
			return
		}
		if !same(got[1:], want) {
			t.Fatalf("%d bytes at %#x are other memory", n, addr)
		}
	})
}

func TestUser(t *testing.T) {
	g := newGuest(t)
	for _, r := range g.regions {
		for _, tt := range []struct {
			addr, n uint64
			good    bool
		}{
			{r.UserAddr, r.Size, true}, {r.UserAddr, 0, true}, {r.UserAddr + r.Size - 1, 1, true}, {r.UserAddr + r.Size - 1, 2, false},
			{r.UserAddr + r.Size, 1, false}, {r.UserAddr - 1, 2, false}, {r.UserAddr, math.MaxUint64, false}, {r.UserAddr + 8, math.MaxUint64 - 4, false},
		} {
			b, err := g.mem.User(tt.addr, tt.n)
			if (err == nil) != tt.good || err != nil && !errors.Is(err, ErrMemory) {
				t.Errorf("%#x bytes at %#x: %v, want good = %v", tt.n, tt.addr, err, tt.good)
			} else if tt.good && (uint64(len(b)) != tt.n || tt.n > 0 && &b[0] != &r.Host[tt.addr-r.UserAddr]) {
				t.Errorf("%#x bytes at %#x: other memory", tt.n, tt.addr)
			}
		}
	}
	if got := g.mem.Regions(); len(got) != 3 || got[0].GuestAddr != ramA || got[2].GuestAddr != ramC {
		t.Errorf("Regions = %+v", got)
	}
}

// TestLogMark compares with a slow model, for logs of any length at any address.
func TestLogMark(t *testing.T) {
	whole := make([]byte, 64)
	rapid.Check(t, func(t *rapid.T) {
		clear(whole)
		from := rapid.IntRange(0, 8).Draw(t, "from")
		mem := whole[from : from+rapid.IntRange(0, 40).Draw(t, "length")]
		l := NewLog(mem)
		want := make([]byte, len(mem))
		for range rapid.IntRange(1, 4).Draw(t, "marks") {
			addr := rapid.OneOf(rapid.Uint64Range(0, 40*8*LogPage), rapid.Uint64Range(math.MaxUint64-9000, math.MaxUint64)).Draw(t, "address")
			n := rapid.OneOf(rapid.Uint64Range(0, 3*LogPage), rapid.Just(uint64(math.MaxUint64))).Draw(t, "n")
			l.Mark(addr, n)
			for page := range uint64(8 * len(mem)) {
				if start := page * LogPage; n > 0 && start+LogPage-1 >= addr && (n >= math.MaxUint64-addr || start <= addr+n-1) {
					want[page/8] |= 1 << (page % 8)
				}
			}
		}
		for i := range whole {
			b := byte(0)
			if i >= from && i-from < len(want) {
				b = want[i-from]
			}
			if whole[i] != b {
				t.Fatalf("byte %d of the log at %d is %08b, want %08b", i-from, from, whole[i], b)
			}
		}
	})
}

// TestLogTogether: marks of many goroutines, none of which is lost.
func TestLogTogether(t *testing.T) {
	mem, _ := mapped(t, 64)
	l := NewLog(mem)
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			for page := g; page < 512; page += 8 {
				l.Mark(page*LogPage+17, 1)
			}
		})
	}
	wg.Wait()
	for i, b := range mem {
		if b != 0xff {
			t.Fatalf("byte %d is %08b", i, b)
		}
	}
}

// TestLogOfRing: all that a request and its answer write is in the log: the
// writable parts, the used element, the index and avail_event; and nothing that
// is only read. A ring that is made marks what a predecessor may not have.
func TestLogOfRing(t *testing.T) {
	g := newGuest(t)
	d := newDriver(g, 256, 0, true)
	cfg := d.config()
	mem := make([]byte, (ramC+ramCSize)/LogPage/8+8)
	cfg.Log, cfg.LogUsed, cfg.LogAddr = NewLog(mem), true, d.used
	r := newRing(t, cfg)
	pages := func() (all []uint64) {
		for i, b := range mem {
			for bit := range 8 {
				if b&(1<<bit) != 0 {
					all = append(all, uint64(8*i+bit)*LogPage)
				}
			}
		}
		clear(mem)
		return all
	}
	if p := pages(); len(p) != 1 || p[0] != d.used&^(LogPage-1) {
		t.Errorf("after New: %#x, the used ring is at %#x", p, d.used)
	}
	d.add([]desc{{addr: ramA + 0x9000, len: 1}, {addr: ramC + LogPage - 1, len: 2, flags: descWrite}}, 2, 0)
	var c Chain
	if ok, err := r.Pop(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if p := pages(); p != nil {
		t.Errorf("after Pop: %#x", p)
	}
	r.Done(&c, 1)
	if p := pages(); len(p) != 2 || p[0] != ramC || p[1] != ramC+LogPage {
		t.Errorf("after Done: %#x", p)
	}
	publish(t, r)
	if p := pages(); len(p) != 1 || p[0] != d.used&^(LogPage-1) {
		t.Errorf("after Publish: %#x, the used ring is at %#x", p, d.used)
	}
	r.Enable()
	if p, event := pages(), d.used+4+8*256; len(p) != 1 || p[0] != event&^(LogPage-1) {
		t.Errorf("after Enable: %#x, avail_event is at %#x", p, event)
	}
}
