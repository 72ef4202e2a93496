package virtioblk

import (
	"encoding/binary"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/blk"
	"vacate/internal/mem"
	"vacate/internal/sys"
)

// TestLongRequests: requests that are as long as they get leave room for others, of
// their own ring and of the other one of the worker, and get on beside them.
func TestLongRequests(t *testing.T) {
	const depth, long = 32, 64 << 20
	dev := newRAM(long)
	dev.hold = true
	g := newGuest(t, 4<<20)
	first, second := newDriver(g, 128, true), newDriver(g, 16, true)
	w := served(t, first, Config{Export: dev, Depth: depth})
	if err := w.Start(1, second.ring(), second.files); err != nil {
		t.Fatal(err)
	}
	buf := g.alloc(1<<20, 4096) // the parts may as well go to the same place
	var data []span
	for range long >> 20 {
		data = append(data, span{addr: buf, n: 1 << 20})
	}
	for range 2 {
		first.ask(typeIn, 0, data, false, true)
	}
	sys.SignalEvent(first.files.Kick)
	eventually(t, "the long ones are not begun", func() bool { return dev.begun.Load() == 2*maxFlying/blk.MaxTransfer })
	time.Sleep(10 * time.Millisecond)
	if n := dev.begun.Load(); n != 2*maxFlying/blk.MaxTransfer {
		t.Errorf("%d parts of two requests are begun at once", n)
	}
	first.ask(typeIn, 0, []span{{addr: buf, n: 512}}, false, false)
	second.ask(typeIn, 0, []span{{addr: buf, n: 512}}, false, false)
	sys.SignalEvent(first.files.Kick)
	sys.SignalEvent(second.files.Kick)
	eventually(t, "the short ones wait for the long ones", func() bool { return dev.begun.Load() == 2*maxFlying/blk.MaxTransfer+2 })
	release := func(n int64) {
		for range n {
			dev.held <- struct{}{}
		}
	}
	release(dev.begun.Load())
	first.await()
	second.await()

	// A flood of short ones, and the long ones end all the same.
	release(1 << 15)
	begun, room := dev.begun.Load(), g.next
	for n := 0; len(first.chains) > 0; n++ {
		if n > 20*2*long/blk.MaxTransfer {
			t.Fatalf("after %d short requests, %d parts of long ones were begun", n, dev.begun.Load()-begun-int64(n))
		}
		before := second.made
		second.ask(typeFlush, 0, nil, true, false)
		second.kick(before)
		second.await()
		g.next = room
		for _, _, ok := first.used1(); ok; _, _, ok = first.used1() {
			continue
		}
	}
}

// TestManyPieces: a request in more parts than the worker has leaves room for
// others.
func TestManyPieces(t *testing.T) {
	const depth = 8
	dev := newRAM(1 << 20)
	dev.hold = true
	g := newGuest(t, 4<<20)
	d := newDriver(g, 128, true)
	served(t, d, Config{Export: dev, Depth: depth})
	var data []span
	for range 64 {
		data = append(data, span{addr: g.alloc(8192, 8192), n: 4096})
	}
	d.ask(typeIn, 0, data, false, true)
	sys.SignalEvent(d.files.Kick)
	eventually(t, "it is not begun", func() bool { return dev.begun.Load() == depth-depth/4 })
	d.ask(typeFlush, 0, nil, true, false)
	sys.SignalEvent(d.files.Kick)
	eventually(t, "the flush waits", func() bool { return dev.begun.Load() == depth-depth/4+1 })
	for range 100 {
		dev.held <- struct{}{}
	}
	d.await()
	d.await()
}

// TestVainKicks: a kick descriptor that is always signalled, as a semaphore is that
// was counted up, costs next to nothing; requests are found all the same, and
// kicks count again then.
func TestVainKicks(t *testing.T) {
	const semaphore = 1 // EFD_SEMAPHORE
	fd, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, semaphore, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	defer sys.CloseFD(int(fd))
	if _, err := syscall.Write(int(fd), binary.LittleEndian.AppendUint64(nil, 1<<40)); err != nil {
		t.Fatal(err)
	}
	dev := newRAM(1 << 20)
	counters := new(Counters)
	d := newDriver(newGuest(t, 1<<20), 16, true)
	w := served(t, d, Config{Export: dev, Counters: counters})
	honest := d.files
	d.files.Kick = int(fd)
	if err := w.Signal(0, d.files); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it does not kick", func() bool { return counters.Stats().Kicks > maxVain })
	time.Sleep(50 * time.Millisecond)
	if n := counters.Stats().Kicks; n > maxVain+1 {
		t.Errorf("%d kicks woke the thread", n)
	}
	for range 3 {
		d.ask(typeFlush, 0, nil, true, false)
		d.await()
	}
	if err := w.Signal(0, honest); err != nil {
		t.Fatal(err)
	}
	d.files = honest
	if s, _ := d.do(typeFlush, 0, nil, true); s != statusOK {
		t.Errorf("status %d", s)
	}
}

// poisoned is what the runtime panics with where memory is broken: the kernel names
// the page, and not what of it was touched (mm/memory-failure.c).
type poisoned uintptr

func (p poisoned) Error() string { return "poisoned" }
func (p poisoned) Addr() uintptr { return uintptr(p) }

// TestBrokenMemory: a fault on the request's memory is its error, wherever in its
// page that is; another one is not.
func TestBrokenMemory(t *testing.T) {
	r, err := mem.Map(8192, mem.TryLock)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	j := new(job)
	j.chain.Readable = [][]byte{r.Bytes()[0x340:0x350]}
	first := uintptr(unsafe.Pointer(unsafe.SliceData(r.Bytes())))
	touch := func(at uintptr) (ok bool) {
		defer j.caught(&ok)
		panic(poisoned(at))
	}
	if touch(first) || touch(first+0x345) {
		t.Error("a fault is no error")
	}
	defer func() {
		if recover() == nil {
			t.Error("a fault on other memory is an error of the request")
		}
	}()
	touch(first + 4096)
}
