package virtioblk

import (
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/poll"
	"vacate/internal/sys"
)

// TestChangingMemory: descriptors, headers and data change while they are looked
// at. Nothing ends but the ring, and nothing reaches the volume that is outside of
// it.
func TestChangingMemory(t *testing.T) {
	dev := newRAM(1 << 20)
	dev.fail = func(r *blk.Request) syscall.Errno {
		if !r.InRange(int64(len(dev.bytes))) {
			t.Errorf("%v of %d bytes at %d reaches the volume", r.Op, r.Len, r.Off)
		}
		return 0
	}
	rng := rand.New(rand.NewPCG(1, 3))
	g := newGuest(t, 256<<10)
	d := newDriver(g, 16, true)
	first := g.next
	w := served(t, d, Config{Export: dev})
	broken, used := 0, 0
	begun := time.Now()
	for broken < 20 && time.Since(begun) < 2*time.Second || used == 0 && time.Since(begun) < time.Minute {
		w.Stop(0)
		g.put(d.desc, make([]byte, first-d.desc))
		g.next, d.made, d.seen = first, 0, 0
		data := g.alloc(64<<10, 4096)
		for i := range 4 {
			d.free = []uint16{uint16(4*i + 2), uint16(4*i + 1), uint16(4 * i)}
			d.ask(uint32(i%2), uint64(i), []span{{addr: data, n: 8192}}, i%2 == 1, i > 1)
		}
		clear(d.chains)
		r := d.ring()
		if err := w.Start(0, r, d.files); err != nil {
			t.Fatal(err)
		}
		used += mad(d, rng)
		if r := w.Stop(0); r.Broken() != nil {
			broken++
		}
	}
	if used == 0 {
		t.Error("nothing was answered")
	}
	t.Logf("%d requests were answered and %d rings broken", used, broken)
}

// mad makes heads available, as they come back, while another thread changes what
// they name. It returns how many came back.
func mad(d *driver, rng *rand.Rand) (used int) {
	stop := make(chan struct{})
	var done sync.WaitGroup
	changes := rand.New(rand.NewPCG(rng.Uint64(), 4))
	done.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			runtime.Gosched() // on one processor the worker has its turn too
			at := d.desc + changes.Uint64N(16*16)
			if changes.IntN(2) > 0 {
				at = d.used + 4096 + changes.Uint64N(512) // headers and tables
			}
			b := d.g.at(at)
			old := b[0]
			b[0] ^= byte(1 << changes.IntN(8))
			if changes.IntN(4) > 0 {
				b[0] = old
			}
		}
	})
	for lost := 0; used < 2000 && lost < 3; lost++ {
		sys.SignalEvent(d.files.Kick)
		for end := time.Now().Add(time.Millisecond); time.Now().Before(end); runtime.Gosched() {
			if head, _, ok := d.used1(); ok {
				used++
				lost = 0
				if head < d.size {
					d.offer(head)
				}
				break
			}
		}
	}
	close(stop)
	done.Wait()
	return used
}

// FuzzRing: a ring and the memory around it hold anything. The worker answers, or
// breaks the ring; it ends with nothing in flight, and never asks the volume for
// what it does not have.
func FuzzRing(f *testing.F) {
	good := func(typ byte, sector byte, flags ...byte) []byte {
		b := make([]byte, 0, 96)
		b = append(b, typ, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0) // a header, at 0
		for i, fl := range flags {
			b = append(b, byte(16*i), 0x10, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, fl, 0, byte(i+1), 0)
		}
		return b
	}
	f.Add(good(0, 0, 1, 3, 2), uint16(1), true)
	f.Add(good(1, 1, 1, 1, 2), uint16(1), false)
	f.Add(good(8, 0, 1, 2), uint16(2), true)
	f.Add(good(11, 0, 1, 1, 2), uint16(1), true)
	f.Add(good(4, 0, 5), uint16(1), true)
	f.Add(good(4, 0, 1, 1, 1, 1), uint16(9), true)
	m := newFuzzed(f)
	f.Fuzz(func(t *testing.T, image []byte, ahead uint16, eventIdx bool) {
		m.d.g.tb = t
		m.run(t, image, ahead, eventIdx)
	})
}

// fuzzed is what FuzzRing uses again and again.
type fuzzed struct {
	d   *driver
	dev *ram
	w   *Worker
}

func newFuzzed(f *testing.F) *fuzzed {
	dev := newRAM(64 << 10)
	w := &Worker{cfg: Config{Export: dev, Depth: 4}, size: 64 << 10, logical: 512, wake: -1, told: true}
	w.cfg.setDefaults()
	w.furnish()
	var err error
	if w.bounces, err = mem.NewPool(bounceSize, bounceCount, mem.TryLock); err != nil {
		f.Fatal(err)
	}
	if w.queue, err = dev.NewQueue(4); err != nil {
		f.Fatal(err)
	}
	return &fuzzed{d: newDriver(newGuest(f, 16<<10), 8, false), dev: dev, w: w}
}

func (m *fuzzed) run(t *testing.T, image []byte, ahead uint16, eventIdx bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	d, w := m.d, m.w
	clear(d.g.parts[0])
	clear(d.g.parts[1])
	d.made, d.seen, d.eventIdx = 0, 0, eventIdx
	at := uint64(guestBase + 0x3000) // behind the ring; over the rim of the regions
	d.g.put(at, image[:min(len(image), 12<<10)])
	if len(image) > 16 {
		table := image[16:]
		for i := 0; i < 8 && len(table) >= 16; i, table = i+1, table[16:] {
			e := append([]byte(nil), table[:16]...)
			e[2] |= 0x10 // mostly guest memory
			e[1] |= 0x30
			d.g.put(d.desc+16*uint64(i), e)
		}
	}
	for i := range ahead % 16 {
		d.offer(i * (1 + ahead>>12))
	}
	m.dev.fail = func(r *blk.Request) syscall.Errno {
		if !r.InRange(int64(len(m.dev.bytes))) {
			t.Errorf("%v of %d bytes at %d reaches the volume", r.Op, r.Len, r.Off)
		}
		return 0
	}
	r := &ring{q: d.ring(), files: RingFiles{Kick: -1, Call: -1, Err: -1}}
	w.rings = []*ring{r}
	for range 1000 {
		if !w.round() {
			break
		}
	}
	if w.round() || r.inflight != 0 || len(w.free) != 4 || len(w.freeJobs) != 4 || w.bounces.Free() != bounceCount {
		t.Errorf("it does not come to an end: %d in flight, %d parts, %d jobs, %d buffers free",
			r.inflight, len(w.free), len(w.freeJobs), w.bounces.Free())
	}
	if n := r.q.InFlight(); n != 0 && r.broken == nil {
		t.Errorf("%d requests are not published", n)
	}
}

// TestIdle: workers that have been active and have nothing to do take no time.
func TestIdle(t *testing.T) {
	dev := newRAM(1 << 20)
	for range 64 {
		d := newDriver(newGuest(t, 64<<10), 16, true)
		served(t, d, Config{Export: dev, Poll: poll.Max})
		for range 20 {
			d.do(typeFlush, 0, nil, true)
		}
	}
	const span = 400 * time.Millisecond
	least := time.Hour
	for range 5 { // what else the process does is not counted in the quietest
		before := processTime(t)
		time.Sleep(span)
		least = min(least, processTime(t)-before)
	}
	if most := span / 100; least > most {
		t.Errorf("64 idle workers take %v of %v, want at most %v", least, span, most)
	}
}

func processTime(t *testing.T) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestCallsSuppressed: a driver that looks by itself is not called, and a device
// that looks by itself is not kicked.
func TestCallsSuppressed(t *testing.T) {
	dev := newRAM(1 << 20)
	counters := new(Counters)
	d := newDriver(newGuest(t, 4<<20), 64, true)
	served(t, d, Config{Export: dev, Counters: counters})
	d.do(typeFlush, 0, nil, true)
	eventually(t, "it was not called", func() bool { return counters.Stats().Calls == 2 }) // of Start, and of the flush
	for range 100 {                                                                        // used_event stays behind: the driver polls
		before := d.made
		d.ask(typeFlush, 0, nil, true, false)
		d.kick(before)
		eventually(t, "no answer", func() bool { _, _, ok := d.used1(); return ok })
	}
	eventually(t, "the flushes are counted", func() bool { return counters.Stats().Flushes >= 101 }) // after they are answered
	if n := counters.Stats().Calls - 2; n > 0 {
		t.Errorf("a driver that polls was called %d times", n)
	}
	if s := counters.Stats(); s.Kicks == 0 || s.Flushes != 101 {
		t.Errorf("%d kicks and %d flushes are counted", s.Kicks, s.Flushes)
	}
}
