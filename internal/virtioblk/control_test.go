package virtioblk

import (
	"errors"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sys"
	"vacate/internal/virtq"
)

// eventually waits for something that another thread does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// TestStopDrains: W1. What was popped is carried out and published; what was not
// stays for whoever serves the ring next.
func TestStopDrains(t *testing.T) {
	dev := newRAM(1 << 20)
	dev.hold = true
	d := newDriver(newGuest(t, 1<<20), 64, true)
	w := served(t, d, Config{Export: dev, Depth: 4})
	data := []span{{addr: d.g.alloc(4096, 4096), n: 4096}}
	for range 6 {
		d.ask(typeIn, 0, data, false, false)
	}
	sys.SignalEvent(d.files.Kick)
	eventually(t, "four are not begun", func() bool { return dev.begun.Load() == 4 })
	stop := &order{what: orderStop} // as Stop gives it
	if err := w.give(stop); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stop.done:
		t.Fatal("Stop did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	for range 10 {
		dev.held <- struct{}{}
	}
	<-stop.done
	r := stop.ring
	if r == nil || r.InFlight() != 0 || r.Base() != 4 {
		t.Fatalf("the ring comes back with %d in flight, at %d; want 0, 4", r.InFlight(), r.Base())
	}
	n := 0
	for ; ; n++ {
		if _, _, ok := d.used1(); !ok {
			break
		}
	}
	if n != 4 {
		t.Errorf("%d are used, want 4", n)
	}
	for i := range w.jobs { // the thread has replied, and sleeps
		if c := &w.jobs[i].chain; c.Readable != nil || c.Writable != nil || w.jobs[i].data.list != nil || w.parts[i].data.list != nil {
			t.Errorf("job %d still names memory of the ring", i)
		}
	}
	if again := w.Stop(0); again != nil {
		t.Error("a ring that is stopped is stopped again")
	}
	if err := w.Start(0, r, d.files); err != nil {
		t.Fatal(err)
	}
	d.await()
	d.await()
}

// TestTakeover: what a predecessor left in flight is done again first, and the
// driver is called without having kicked (V4).
func TestTakeover(t *testing.T) {
	table := make([]byte, virtq.InflightSize(1, 64))
	inflight := func() *virtq.Inflight {
		fly, err := virtq.NewInflight(table, 64)
		if err != nil {
			t.Fatal(err)
		}
		return fly
	}
	dev := newRAM(1 << 20)
	d := newDriver(newGuest(t, 1<<20), 64, true)
	d.flags.Inflight = inflight()
	dead := d.ring()
	heads := map[uint16]bool{}
	for i := range 5 {
		b := d.g.alloc(512, 512)
		d.g.put(b, []byte{byte(i + 1)})
		r := d.ask(typeOut, uint64(i), []span{{addr: b, n: 512}}, true, i%2 == 0)
		heads[r.head] = true
	}
	for range 3 { // popped, and then its engine is killed
		if ok, err := dead.Pop(new(virtq.Chain)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	counters := new(Counters)
	d.flags.Inflight = inflight()
	w := served(t, d, Config{Export: dev, Counters: counters})
	for range 5 {
		head, _ := d.await()
		if !heads[head] {
			t.Errorf("descriptor %d is used twice, or never was in flight", head)
		}
		delete(heads, head)
	}
	for i := range 5 {
		if dev.contents()[512*i] != byte(i+1) {
			t.Errorf("write %d is lost", i)
		}
	}
	eventually(t, "they are counted", func() bool { return counters.Stats().Reads+counters.Stats().Writes >= 5 }) // after they are answered
	if n := counters.Stats().Resubmitted; n != 3 {
		t.Errorf("%d are counted as resubmitted, want 3", n)
	}
	if n := w.Stop(0).Resubmit(); n != 0 {
		t.Errorf("%d are still to be resubmitted", n)
	}
}

// TestSignal: other descriptors, while the ring is served; and none.
func TestSignal(t *testing.T) {
	dev := newRAM(1 << 20)
	d := newDriver(newGuest(t, 1<<20), 16, false)
	w := served(t, d, Config{Export: dev})
	old := d.files
	other := newDriver(d.g, 16, false)
	d.files = other.files
	if err := w.Signal(0, d.files); err != nil {
		t.Fatal(err)
	}
	for sys.ClearEvent(old.Call) == 0 {
		continue
	}
	if s, _ := d.do(typeFlush, 0, nil, true); s != statusOK {
		t.Errorf("status %d", s)
	}
	if sys.ClearEvent(old.Call) == 0 {
		t.Error("the old call descriptor is signalled")
	}
	if err := w.Signal(0, RingFiles{Kick: -1, Call: d.files.Call, Err: -1}); err != nil {
		t.Fatal(err)
	}
	for range 3 { // a driver that does not kick
		d.ask(typeFlush, 0, nil, true, false)
		d.await()
	}
	if err := w.Signal(7, d.files); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("descriptors for a ring that is not started: %v, want ENOENT", err)
	}
	r, p, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer p.Close()
	if err := w.Signal(0, RingFiles{Kick: int(r.Fd()), Call: -1, Err: -1}); !errors.Is(err, sys.ErrNoEvent) {
		t.Errorf("a pipe for a kick descriptor: %v, want ErrNoEvent", err)
	}
}

// TestQuit: nothing more is begun, and what was popped is answered.
func TestQuit(t *testing.T) {
	dev := newRAM(8 << 20)
	dev.hold = true
	d := newDriver(newGuest(t, 4<<20), 16, true)
	w := served(t, d, Config{Export: dev, Depth: 2})
	n := uint32(2 << 20) // eight parts
	long := d.ask(typeIn, 0, []span{{addr: d.g.alloc(int(n), 4096), n: n}}, false, false)
	sys.SignalEvent(d.files.Kick)
	eventually(t, "nothing is begun", func() bool { return dev.begun.Load() == 2 })
	w.Quit()
	d.ask(typeFlush, 0, nil, true, false)
	sys.SignalEvent(d.files.Kick)
	w.Hurry()
	dev.held <- struct{}{}
	dev.held <- struct{}{}
	if head, _ := d.await(); head != long.head || d.statusOf(long) != statusIOErr {
		t.Errorf("descriptor %d with status %d, want %d with IOERR", head, d.statusOf(long), long.head)
	}
	if r := w.Stop(0); r.Base() != 1 {
		t.Errorf("after Quit %d were popped, want 1", r.Base())
	}
	if n := dev.begun.Load(); n != 2 {
		t.Errorf("%d parts were begun, want 2", n)
	}
}

// TestClose: W2, with rings that were not stopped, and requests in flight.
func TestClose(t *testing.T) {
	dev := newRAM(1 << 20)
	dev.hold = true
	d := newDriver(newGuest(t, 1<<20), 16, true)
	w := served(t, d, Config{Export: dev})
	r := d.ask(typeIn, 0, []span{{addr: d.g.alloc(4096, 1), n: 4096}}, false, false)
	sys.SignalEvent(d.files.Kick)
	eventually(t, "it is not begun", func() bool { return dev.begun.Load() == 1 })
	closed := make(chan error, 2)
	for range 2 {
		go func() { closed <- w.Close() }()
	}
	select {
	case <-closed:
		t.Fatal("Close did not wait")
	case <-time.After(20 * time.Millisecond):
	}
	dev.held <- struct{}{}
	for range 2 {
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
	if d.statusOf(r) != statusOK || dev.queues.Load() != 0 {
		t.Errorf("status %d, %d queues open; want 0, 0", d.statusOf(r), dev.queues.Load())
	}
	if err := w.Start(0, d.ring(), d.files); !errors.Is(err, ErrClosed) {
		t.Errorf("a start after Close: %v, want ErrClosed", err)
	}
	if w.Stop(0) != nil {
		t.Error("a ring is stopped after Close")
	}
	w.Quit()
	w.Hurry()
}

// TestNothingLeft: a worker that could not be made leaves nothing behind.
func TestNothingLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, cfg := range []Config{
		{},
		{Export: newRAM(1 << 20), ID: "0123456789abcdefghijk"},
		{Export: newRAM(1 << 20), Depth: -1},
		{Export: newRAM(1 << 20), Poll: time.Second},
		{Export: newRAM(1000)},
		{Export: noQueue{newRAM(1 << 20)}},
	} {
		cfg.Lock = mem.TryLock
		if w, err := NewWorker(cfg); err == nil {
			t.Errorf("a worker was made of %+v", cfg)
			w.Close()
		}
	}
	eventually(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= before })
}

type noQueue struct{ blk.Device }

func (noQueue) NewQueue(int) (blk.Queue, error) { return nil, syscall.ENOMEM }

// TestFullCall: a driver that lets its call descriptor overflow, and makes it
// block, holds its own ring up and nothing else: orders are carried out.
func TestFullCall(t *testing.T) {
	dev := newRAM(1 << 20)
	d := newDriver(newGuest(t, 1<<20), 16, false)
	w := served(t, d, Config{Export: dev})
	eventually(t, "the driver is not called", func() bool { return sys.ClearEvent(d.files.Call) == 0 })
	full := [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := syscall.Write(d.files.Call, full[:]); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(d.files.Call, false); err != nil {
		t.Fatal(err)
	}
	d.ask(typeFlush, 0, nil, true, false)
	sys.SignalEvent(d.files.Kick)
	eventually(t, "it is not answered", func() bool { _, _, ok := d.used1(); return ok })
	done := make(chan *virtq.Ring, 1)
	go func() { done <- w.Stop(0) }()
	select {
	case r := <-done:
		if r == nil {
			t.Error("the ring is not given back")
		}
	case <-time.After(time.Minute):
		_ = syscall.SetNonblock(d.files.Call, true)
		sys.ClearEvent(d.files.Call)
		t.Fatal("Stop waits for the driver")
	}
}

// TestSharedThread: rings of one worker, many requests each.
func TestSharedThread(t *testing.T) {
	dev := newRAM(1 << 20)
	first := newDriver(newGuest(t, 1<<20), 16, true)
	w := served(t, first, Config{Export: dev})
	drivers := []*driver{first}
	for i := 1; i < 6; i++ {
		d := newDriver(newGuest(t, 1<<20), 16, i%2 == 0)
		if err := w.Start(i, d.ring(), d.files); err != nil {
			t.Fatal(err)
		}
		drivers = append(drivers, d)
	}
	for range 50 {
		for _, d := range drivers {
			before := d.made
			d.ask(typeFlush, 0, nil, true, false)
			d.ask(typeIn, 0, nil, false, false)
			d.kick(before)
		}
		for _, d := range drivers {
			d.await()
			d.await()
		}
	}
}

// TestWriteThrough: each write is to reach the medium.
func TestWriteThrough(t *testing.T) {
	dev := newRAM(1 << 20)
	d := newDriver(newGuest(t, 1<<20), 16, true)
	w := served(t, d, Config{Export: dev})
	data := []span{{addr: d.g.alloc(4096, 1), n: 4096}}
	d.do(typeOut, 0, data, true)
	w.WriteThrough(true)
	d.do(typeOut, 0, data, true)
	d.do(typeIn, 0, data, false)
	if n := dev.fua.Load(); n != 1 {
		t.Errorf("%d requests with FUA, want 1", n)
	}
}

// hung is a device whose Submit does not return until release is closed.
type hung struct {
	blk.Device
	entered chan struct{}
	release chan struct{}
}

func (d hung) NewQueue(depth int) (blk.Queue, error) {
	q, err := d.Device.NewQueue(depth)
	return hungQueue{q, d}, err
}

type hungQueue struct {
	blk.Queue
	d hung
}

func (q hungQueue) Submit(reqs []*blk.Request) {
	select {
	case q.d.entered <- struct{}{}:
	default:
	}
	<-q.d.release
	q.Queue.Submit(reqs)
}

// TestStartWaitsForNothing: who starts rings, as at a take-over, is not held up by a
// drive that hangs under another one.
func TestStartWaitsForNothing(t *testing.T) {
	dev := hung{newRAM(1 << 20), make(chan struct{}, 1), make(chan struct{})}
	first := newDriver(newGuest(t, 1<<20), 16, true)
	w := served(t, first, Config{Export: dev})
	first.ask(typeIn, 0, []span{{addr: first.g.alloc(512, 512), n: 512}}, false, false)
	sys.SignalEvent(first.files.Kick)
	<-dev.entered
	second := newDriver(newGuest(t, 1<<20), 16, true)
	started, ring := make(chan error, 1), second.ring()
	go func() { started <- w.Start(1, ring, second.files) }()
	select {
	case err := <-started:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("Start waits for the drive")
	}
	w.Quit()
	close(dev.release)
	if w.Stop(0) == nil || w.Stop(1) == nil {
		t.Error("a ring is not given back")
	}
}
