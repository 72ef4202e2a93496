package virtioblk

import (
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sys"
	"vacate/internal/virtq"
)

// header puts a header into guest memory.
func (d *driver) header(typ uint32, sector uint64) uint64 {
	at := d.g.alloc(16, 16)
	var b [16]byte
	binary.LittleEndian.PutUint32(b[0:], typ)
	binary.LittleEndian.PutUint64(b[8:], sector)
	d.g.put(at, b[:])
	return at
}

// TestChains: requests that are laid out in every way, or in none.
func TestChains(t *testing.T) {
	for _, tt := range []struct {
		name    string
		chain   func(d *driver) []span
		status  int // -1: there is no status byte
		written uint32
	}{
		{"header cut in three, data and status in one", func(d *driver) []span {
			h, b := d.header(typeIn, 1), d.g.alloc(513, 1)
			return []span{{h, 1, false}, {h + 1, 14, false}, {h + 15, 1, false}, {b, 513, true}}
		}, statusOK, 513},
		{"header and data in one", func(d *driver) []span {
			h := d.header(typeOut, 1)
			d.g.alloc(512, 1)
			return []span{{h, 16 + 512, false}, {d.g.alloc(1, 1), 1, true}}
		}, statusOK, 1},
		{"empty descriptors everywhere", func(d *driver) []span {
			h, b := d.header(typeIn, 1), d.g.alloc(513, 1)
			return []span{{h, 0, false}, {h, 16, false}, {h, 0, false}, {b, 512, true}, {b, 0, true}, {b + 512, 1, true}, {b, 0, true}}
		}, statusOK, 513},
		{"more room than a flush needs", func(d *driver) []span {
			return []span{{d.header(typeFlush, 0), 16, false}, {d.g.alloc(8, 1), 8, true}}
		}, statusOK, 0},
		{"short header", func(d *driver) []span {
			return []span{{d.header(typeIn, 0), 15, false}, {d.g.alloc(513, 1), 513, true}}
		}, statusIOErr, 0},
		{"no header", func(d *driver) []span { return []span{{d.g.alloc(513, 1), 513, true}} }, statusIOErr, 0},
		{"no status", func(d *driver) []span { return []span{{d.header(typeIn, 0), 16, false}} }, -1, 0},
		{"no status of a write", func(d *driver) []span {
			return []span{{d.header(typeOut, 0), 16, false}, {d.g.alloc(512, 1), 512, false}}
		}, -1, 0},
		{"data and status overlap the header", func(d *driver) []span {
			h := d.header(typeIn, 0)
			d.g.alloc(512, 1)
			return []span{{h, 16, false}, {h, 512, true}, {h, 1, true}}
		}, statusOK, 513},
		{"nothing at all", func(d *driver) []span { return []span{{d.g.alloc(1, 1), 0, false}} }, -1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := newRAM(1 << 20)
			d := newDriver(newGuest(t, 1<<20), 16, false)
			served(t, d, Config{Export: dev})
			before := d.made
			chain := tt.chain(d)
			last := span{}
			for _, s := range chain {
				if s.write && s.n > 0 {
					last = s
				}
			}
			head := d.add(chain, false)
			d.kick(before)
			got, written := d.await()
			if got != head || written != tt.written {
				t.Errorf("descriptor %d, %d bytes; want %d, %d", got, written, head, tt.written)
			}
			if tt.status >= 0 {
				if s := d.g.at(last.addr + uint64(last.n) - 1)[0]; int(s) != tt.status {
					t.Errorf("status %d, want %d", s, tt.status)
				}
			}
			if s, _ := d.do(typeIn, 0, []span{{addr: d.g.alloc(512, 1), n: 512}}, false); s != statusOK {
				t.Errorf("the next request has status %d", s)
			}
		})
	}
}

// waitReady waits until an event descriptor is signalled.
func waitReady(t *testing.T, fd int, what string) {
	t.Helper()
	ready := []sys.Ready{{FD: int32(fd), Events: sys.ReadyRead}}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if errno := sys.WaitReady(ready, 0, int64(time.Second)); errno == 0 && ready[0].Got != 0 {
			return
		}
	}
	t.Fatal(what)
}

// TestBrokenRing: what cannot be a ring costs that ring, whose err descriptor says
// so; the other ring of the worker goes on (V1).
func TestBrokenRing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(d *driver)
	}{
		{"a loop", func(d *driver) {
			d.putDesc(d.desc, 3, span{addr: guestBase, n: 16}, 1, 3)
			d.offer(3)
		}},
		{"no guest memory", func(d *driver) {
			d.putDesc(d.desc, 0, span{addr: 1 << 60, n: 16}, 0, 0)
			d.offer(0)
		}},
		{"out of the table", func(d *driver) { d.offer(d.size) }},
		{"index far ahead", func(d *driver) { d.made += 1000; d.offer(0) }},
		{"the ring's memory is gone", func(d *driver) {
			if err := d.g.file.Truncate(0); err != nil {
				d.g.tb.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := newRAM(1 << 20)
			bad, good := newDriver(newGuest(t, 1<<20), 16, true), newDriver(newGuest(t, 1<<20), 16, true)
			broken := make(chan error, 1)
			counters := new(Counters)
			w := served(t, good, Config{Export: dev, Counters: counters, Broken: func(index int, err error) {
				if index != 1 {
					err = errors.New("of another ring")
				}
				broken <- err
			}})
			if err := w.Start(1, bad.ring(), bad.files); err != nil {
				t.Fatal(err)
			}
			if s, _ := bad.do(typeFlush, 0, nil, true); s != statusOK {
				t.Fatal("it is broken before it was spoilt")
			}
			tt.spoil(bad)
			sys.SignalEvent(bad.files.Kick)
			waitReady(t, bad.files.Err, "the ring is not reported as broken")
			if err := <-broken; !errors.Is(err, virtq.ErrRing) {
				t.Errorf("broken by %v, want ErrRing", err)
			}
			for range 3 {
				if s, _ := good.do(typeFlush, 0, nil, true); s != statusOK {
					t.Errorf("a request of the other ring has status %d", s)
				}
			}
			if r := w.Stop(1); r == nil || r.Broken() == nil {
				t.Error("Stop does not return the broken ring")
			}
			if n := counters.Stats().Broken; n != 1 {
				t.Errorf("%d rings are counted as broken, want 1", n)
			}
		})
	}
}

// TestFaults: memory that goes away under a request is that request's error (V2).
func TestFaults(t *testing.T) {
	const page = 4096
	for _, tt := range []struct {
		name                 string
		header, data, status bool // what lies in memory that is gone
		typ                  uint32
		odd                  bool // bounced
		n                    uint32
		want                 uint8
	}{
		{name: "header", header: true, typ: typeIn, n: page, want: statusIOErr},
		{name: "data of a read", data: true, typ: typeIn, n: page, want: statusIOErr},
		{name: "data of a write", data: true, typ: typeOut, n: page, want: statusIOErr},
		{name: "data of a bounced read", data: true, typ: typeIn, odd: true, n: page, want: statusIOErr},
		{name: "data of a bounced write", data: true, typ: typeOut, odd: true, n: page, want: statusIOErr},
		{name: "ranges of a discard", data: true, typ: typeDiscard, n: 16, want: statusIOErr},
		{name: "id", data: true, typ: typeGetID, n: 20, want: statusIOErr},
		{name: "status", status: true, typ: typeFlush},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := newRAM(1 << 20)
			g := newGuest(t, 1<<20)
			d := newDriver(g, 16, true)
			lost := uint64(guestBase + g.half + g.half/2) // what is to be cut off
			if err := g.file.Truncate(int64(g.half + g.half/2)); err != nil {
				t.Fatal(err)
			}
			served(t, d, Config{Export: dev})
			place := func(gone bool, n uint32) uint64 {
				if lost += page; gone {
					return lost
				}
				return g.alloc(int(n), 16)
			}
			for range 3 { // it is the request's, not the ring's
				before := d.made
				h := place(tt.header, 16)
				if !tt.header {
					h = d.header(tt.typ, 0)
				}
				data := []span{{place(tt.data, tt.n), tt.n, tt.typ != typeOut && tt.typ != typeDiscard}}
				if tt.odd {
					first := data[0]
					first.n = 100
					data[0].addr, data[0].n = data[0].addr+100, tt.n-100
					data = []span{first, data[0]}
				}
				if tt.typ == typeFlush {
					data = nil
				}
				status := place(tt.status, 1)
				d.add(append(append([]span{{h, 16, false}}, data...), span{status, 1, true}), false)
				d.kick(before)
				_, written := d.await()
				if tt.status {
					if written != 0 {
						t.Errorf("%d bytes are said to be written", written)
					}
				} else if s := g.at(status)[0]; s != tt.want {
					t.Errorf("status %d, want %d", s, tt.want)
				}
			}
			if s, _ := d.do(typeIn, 0, []span{{addr: g.alloc(page, page), n: page}}, false); s != statusOK {
				t.Errorf("a request of memory that is there has status %d", s)
			}
		})
	}
}

// TestErrors: what the volume says, and what the driver hears.
func TestErrors(t *testing.T) {
	for errno, want := range map[syscall.Errno]uint8{
		syscall.EIO: statusIOErr, syscall.EFAULT: statusIOErr, syscall.ENOSPC: statusIOErr,
		syscall.ESHUTDOWN: statusIOErr, syscall.EOPNOTSUPP: statusUnsupp,
	} {
		dev := newRAM(2 << 20)
		d := newDriver(newGuest(t, 2<<20), 16, true)
		served(t, d, Config{Export: dev})
		calls := 0
		n := uint32(1 << 20) // several parts, of which the second fails
		data := []span{{addr: d.g.alloc(int(n), 4096), n: n}}
		dev.mu.Lock()
		dev.fail = failSecond(&calls, errno)
		dev.mu.Unlock()
		if s, _ := d.do(typeOut, 0, data, true); s != want {
			t.Errorf("%v: status %d, want %d", errno, s, want)
		}
		dev.mu.Lock()
		dev.fail = nil
		dev.mu.Unlock()
		if s, _ := d.do(typeOut, 0, data, true); s != statusOK {
			t.Errorf("after %v: status %d", errno, s)
		}
	}
}
