package vhostuser

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"vacate/internal/sys"
	"vacate/internal/virtioblk"
)

// TestGarbage sends what is not the protocol: the connection ends, and the next
// frontend is served.
func TestGarbage(t *testing.T) {
	g := newGuest(t, 1<<20)
	many := slices.Repeat([]int{g.fd}, 9)
	for name, tt := range map[string]struct {
		b     []byte
		files []int
	}{
		"version 0":             {raw(reqSetOwner, 0, nil), nil},
		"version 2":             {raw(reqSetOwner, 2, nil), nil},
		"a reply":               {raw(reqSetOwner, flagsVersion|flagsReply, nil), nil},
		"4 GiB":                 {le.AppendUint32(raw(reqSetOwner, flagsVersion, nil)[:8], 0xffffffff), nil},
		"too long":              {raw(reqSetMemTable, flagsVersion, make([]byte, maxPayload+1)), nil},
		"text":                  {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), nil},
		"short":                 {raw(reqSetFeatures, flagsVersion, make([]byte, 7)), nil},
		"long":                  {raw(reqSetFeatures, flagsVersion, make([]byte, 9)), nil},
		"short state":           {raw(reqSetVringNum, flagsVersion, make([]byte, 4)), nil},
		"short address":         {raw(reqSetVringAddr, flagsVersion, make([]byte, 39)), nil},
		"empty memory table":    {raw(reqSetMemTable, flagsVersion, nil), nil},
		"memory without files":  {raw(reqSetMemTable, flagsVersion, g.table()), nil},
		"memory with 2 files":   {raw(reqSetMemTable, flagsVersion, g.table()), []int{g.fd, g.fd}},
		"9 regions":             {raw(reqSetMemTable, flagsVersion, append(u64(9), make([]byte, 8*regionSize)...)), many},
		"2^32-1 regions":        {raw(reqSetMemTable, flagsVersion, append(u64(1<<32-1), g.region()...)), []int{g.fd}},
		"region without a file": {raw(reqAddMemReg, flagsVersion, append(u64(0), g.region()...)), nil},
		"features with a file":  {raw(reqSetFeatures, flagsVersion, u64(0)), []int{g.fd}},
		"kick without a file":   {raw(reqSetVringKick, flagsVersion, u64(0)), nil},
		"kick with and without": {raw(reqSetVringKick, flagsVersion, u64(vringNoFD)), []int{newEvent(t)}},
		"kick's upper bits":     {raw(reqSetVringKick, flagsVersion, u64(1<<40)), []int{newEvent(t)}},
		"20 files":              {raw(reqSetVringKick, flagsVersion, u64(0)), slices.Repeat([]int{g.fd}, 20)},
		"unknown":               {raw(99, flagsVersion, nil), nil},
		"unknown 0":             {raw(0, flagsVersion, nil), nil},
		"status":                {raw(39, flagsVersion, u64(1)), nil}, // not offered
		"unasked refusal":       {raw(reqSetVringNum, flagsVersion, state(0, 100)), nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			f := w.connect()
			f.send(tt.b, tt.files...)
			f.ended()
			w.connect().ask(reqGetFeatures, nil)
			if st := w.server.Stats(); st.Garbage != 1 {
				t.Errorf("%+v", st)
			}
			if w.keeper.count() != 2 { // session file, and the second connection
				t.Errorf("the keeper has %d descriptors", w.keeper.count())
			}
		})
	}
}

// TestRefusals asks for what cannot be: the acknowledgement says so, nothing
// changes, and the session goes on.
func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	file, pipe := newGuest(t, 1<<20), newPipe(t)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	nullFD, err := sys.Descriptor(null)
	if err != nil {
		t.Fatal(err)
	}
	timer, err := timerFD()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(timer)
	tcp, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(tcp)
	readOnly, err := os.Open(sys.ProgramPath(g.fd))
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	readFD, err := sys.Descriptor(readOnly)
	if err != nil {
		t.Fatal(err)
	}
	region := func(guest, size, user, off uint64) []byte { return append(u64(0), u64s(guest, size, user, off)...) }
	const far = 1 << 40
	before, places := w.record(), w.keeper.count()
	for _, tt := range []struct {
		name    string
		request uint32
		payload []byte
		files   []int
	}{
		{"features", reqSetFeatures, u64(1 << 35), nil}, // IN_ORDER, which Cloud Hypervisor knows
		{"protocol features", reqSetProtocolFeatures, u64(1 << 16), nil},
		{"ring 2 of 2", reqSetVringNum, state(2, 128), nil},
		{"ring 2^32-1", reqSetVringEnable, state(1<<32-1, 1), nil},
		{"kick of ring 255", reqSetVringKick, u64(255), []int{newEvent(t)}},
		{"address of ring 9", reqSetVringAddr, g.addr(9, 0), nil},
		{"size 0", reqSetVringNum, state(1, 0), nil},
		{"size 3", reqSetVringNum, state(1, 3), nil},
		{"size 2048", reqSetVringNum, state(1, 2048), nil},
		{"size 65536", reqSetVringNum, state(1, 65536), nil},
		{"size 2^32-1", reqSetVringNum, state(1, 1<<32-1), nil},
		{"size of a ring that runs", reqSetVringNum, state(0, 64), nil},
		{"base of a ring that runs", reqSetVringBase, state(0, 7), nil},
		{"base 65536", reqSetVringBase, state(1, 65536), nil},
		{"enable 2", reqSetVringEnable, state(1, 2), nil},
		{"a file as kick", reqSetVringKick, u64(1), []int{file.fd}},
		{"a pipe as call", reqSetVringCall, u64(1), []int{pipe}},
		{"a timer as kick", reqSetVringKick, u64(1), []int{timer}},
		{"a device as err", reqSetVringErr, u64(1), []int{nullFD}},
		{"a device as channel", reqSetBackendReqFD, nil, []int{nullFD}},
		{"an event as channel", reqSetBackendReqFD, nil, []int{newEvent(t)}},
		{"another network as channel", reqSetBackendReqFD, nil, []int{tcp}},
		{"memory beyond the file", reqAddMemReg, region(far, 1<<20+1, guestAt+far, 0), []int{file.fd}},
		{"offset beyond the file", reqAddMemReg, region(far, 4096, guestAt+far, 1<<20), []int{file.fd}},
		{"offset that wraps", reqAddMemReg, region(far, 4096, guestAt+far, 1<<64-4096), []int{file.fd}},
		{"size that wraps", reqAddMemReg, region(far, 1<<64-1, guestAt+far, 1), []int{file.fd}},
		{"guest address that wraps", reqAddMemReg, region(1<<64-4096, 8192, guestAt+far, 0), []int{file.fd}},
		{"user address that wraps", reqAddMemReg, region(far, 8192, 1<<64-4096, 0), []int{file.fd}},
		{"empty region", reqAddMemReg, region(far, 0, guestAt+far, 0), []int{file.fd}},
		{"region over another", reqAddMemReg, region(4096, 8192, guestAt+far, 0), []int{file.fd}},
		{"region over another, for the frontend", reqAddMemReg, region(far, 8192, guestAt+4096, 0), []int{file.fd}},
		{"a device as memory", reqAddMemReg, region(far, 4096, guestAt+far, 0), []int{nullFD}},
		{"an event as memory", reqAddMemReg, region(far, 4096, guestAt+far, 0), []int{newEvent(t)}},
		{"memory that cannot be written", reqAddMemReg, region(far, 4096, guestAt+far, 0), []int{readFD}},
		{"a table over itself", reqSetMemTable, append(u64(2), append(g.region(), g.region()...)...), []int{g.fd, g.fd}},
		{"no such region", reqRemMemReg, region(far, 4096, guestAt+far, 0), nil},
		{"inflight too short", reqSetInflightFD, append(u64s(4096, 0), 2, 0, 0, 4), []int{file.fd}},
		{"inflight beyond the file", reqSetInflightFD, append(u64s(1<<20, 4096), 2, 0, 128, 0), []int{file.fd}},
		{"inflight at an odd place", reqSetInflightFD, append(u64s(1<<16, 4), 2, 0, 128, 0), []int{file.fd}},
		{"inflight of 3 queues", reqSetInflightFD, append(u64s(1<<20, 0), 3, 0, 128, 0), []int{file.fd}},
		{"inflight of 0 queues", reqSetInflightFD, append(u64s(1<<20, 0), 0, 0, 128, 0), []int{file.fd}},
		{"inflight of 100", reqSetInflightFD, append(u64s(1<<20, 0), 2, 0, 100, 0), []int{file.fd}},
		{"unknown", 99, nil, nil},
	} {
		if got := f.ack(tt.request, tt.payload, tt.files...); got == 0 {
			t.Errorf("%s: accepted", tt.name)
		}
	}
	if after := w.record(); after != before || w.keeper.count() != places {
		t.Errorf("what was refused has changed the session: %+v, was %+v", after, before)
	}
	if !w.worker.running(0) {
		t.Error("the ring does not run any more")
	}
	for i := range uint64(31) {
		f.must(reqAddMemReg, region(far*(i+1), 4096, guestAt+far*(i+1), 0), file.fd)
	}
	if f.ack(reqAddMemReg, region(far*40, 4096, guestAt+far*40, 0), file.fd) == 0 {
		t.Error("there is room for a 33rd region")
	}
}

func newPipe(t *testing.T) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	fd, err := sys.Descriptor(w)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func timerFD() (int, error) {
	fd, _, errno := syscall.Syscall(syscall.SYS_TIMERFD_CREATE, 1, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// TestBadRings: rings that are not where they should be do not run, and their
// drivers are told. The frontend may mend them.
func TestBadRings(t *testing.T) {
	g := newGuest(t, 1<<20)
	at := func(desc, used, avail uint64) []byte { return append(state(0, 0), u64s(desc, used, avail, 0)...) }
	for name, addr := range map[string][]byte{
		"outside":             at(guestAt+1<<30, guestAt+0x2000, guestAt+0x1000),
		"over the end":        at(guestAt+1<<20-16, guestAt+0x2000, guestAt+0x1000),
		"misaligned":          at(guestAt+8, guestAt+0x2000, guestAt+0x1000),
		"misaligned used":     at(guestAt, guestAt+0x2002, guestAt+0x1000),
		"used at 2^64":        at(guestAt, 1<<64-4, guestAt+0x1000),
		"available at 2^64":   at(guestAt, guestAt+0x2000, 1<<64-2),
		"guest's, not user's": at(0, 0x2000, 0x1000),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, nil)
			f := w.connect()
			f.negotiate()
			f.must(reqSetMemTable, g.table(), g.fd)
			broken := newEvent(t)
			f.must(reqSetVringErr, u64(0), broken)
			f.must(reqSetVringNum, state(0, 128))
			f.must(reqSetVringAddr, addr)
			f.must(reqSetVringKick, u64(0), newEvent(t))
			f.must(reqSetVringEnable, state(0, 1))
			if w.worker.running(0) {
				t.Error("it runs")
			}
			if errno := sys.ClearEvent(broken); errno != 0 {
				t.Errorf("the driver was not told: %v", errno)
			}
			f.must(reqSetVringAddr, g.addr(0, 0))
			if !w.worker.running(0) {
				t.Error("mended, it does not run")
			}
		})
	}
}

// TestTruncated cuts the guest's memory under a session: its rings do not run, and
// nothing else happens.
func TestTruncated(t *testing.T) {
	w := newWorld(t, nil)
	f := w.connect()
	f.negotiate()
	g := newGuest(t, 1<<20)
	f.must(reqSetMemTable, g.table(), g.fd)
	f.start(g, 0, newEvent(t), newEvent(t))
	f.send(raw(reqGetInflightFD, flagsVersion, append(u64s(0, 0), 2, 0, 128, 0)))
	r := f.receive()
	defer syscall.Close(r.files[0])
	own := newGuest(t, 1<<20) // an inflight region of the frontend's own
	f.must(reqSetInflightFD, append(u64s(1<<20, 0), 2, 0, 128, 0), own.fd)
	if err := errors.Join(g.f.Truncate(0), own.f.Truncate(0)); err != nil {
		t.Fatal(err)
	}
	f.must(reqSetVringEnable, state(0, 0))
	f.must(reqSetVringEnable, state(0, 1))
	if w.worker.running(0) {
		t.Error("a ring without memory runs")
	}
	f.must(reqSetOwner, nil)
}

// TestDisorder sends 10,000 messages in no order, with whatever in them. The server
// answers or hangs up, and serves whoever comes next; nothing is left behind.
func TestDisorder(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, nil)
	g := newGuest(t, 1<<20)
	events := []int{newEvent(t), newEvent(t), newEvent(t)}
	goroutines := runtime.NumGoroutine()
	sessions := 1
	f := w.connect()
	f.tell(reqSetProtocolFeatures, u64(allProtocol))
	sent := 0
	for sent < 10000 {
		sent++
		err := f.trySend(scramble(rnd, g, events))
		if err == nil && rnd.IntN(8) == 0 {
			err = f.drain()
		}
		if err != nil {
			_ = f.conn.Close() // it has hung up
			f = w.connect()
			sessions++
			if err := f.trySend(raw(reqSetProtocolFeatures, flagsVersion, u64(allProtocol)), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = f.conn.Close() // likewise
	t.Logf("%d sessions", sessions)
	last := w.connect()
	if got := le.Uint64(last.ask(reqGetFeatures, nil)); got != virtioblk.Features(false, 2)|featureProtocol {
		t.Errorf("features %#x", got)
	}
	_ = last.conn.Close()
	eventually(t, "everything given up", func() bool {
		return w.keeper.count() == 1 && w.server.Stats().Connections == 0 && w.server.Stats().Rings == 0 && runtime.NumGoroutine() <= goroutines
	})
	if rings := len(w.worker.rings); rings != 0 {
		t.Errorf("%d rings run", rings)
	}
}

// scramble is a message that is more or less one.
func scramble(rnd *rand.Rand, g *guest, events []int) (b []byte, files []int) {
	request := uint32(rnd.IntN(40))
	if rnd.IntN(3) == 0 {
		request = []uint32{reqSetVringKick, reqSetVringCall, reqSetVringEnable, reqSetVringNum, reqSetVringAddr, reqGetVringBase, reqSetMemTable}[rnd.IntN(7)]
	}
	form := forms[request]
	n := form.min
	if rnd.IntN(50) == 0 {
		n = rnd.IntN(maxPayload + 2)
	}
	payload := make([]byte, n)
	for i := range payload {
		if rnd.IntN(6) == 0 {
			payload[i] = byte(rnd.Uint32())
		}
	}
	i := rnd.Uint32N(3)
	switch request {
	case reqSetFeatures:
		payload = u64((virtioblk.Features(false, 2) | featureProtocol) & rnd.Uint64())
	case reqSetProtocolFeatures:
		payload = u64(protoOffered)
	case reqSetVringNum:
		payload = state(i, 1<<rnd.Uint32N(12))
	case reqSetVringBase, reqGetVringBase:
		payload = state(i, rnd.Uint32N(70000))
	case reqSetVringEnable:
		payload = state(i, rnd.Uint32N(2))
	case reqSetVringAddr:
		payload = g.addr(i, rnd.Uint32N(2))
	case reqSetVringKick, reqSetVringCall, reqSetVringErr:
		payload = u64(uint64(i))
		files = []int{events[rnd.IntN(len(events))]}
	case reqSetMemTable:
		payload, files = g.table(), []int{g.fd}
	case reqAddMemReg, reqRemMemReg:
		payload, files = append(u64(0), u64s(1<<30, 4096, guestAt+1<<30, 0)...), []int{g.fd}
	case reqSetLogBase, reqSetInflightFD:
		payload = append(u64s(4096, 0), 1, 0, 128, 0)[:max(form.min, 16)]
		files = []int{g.fd}
	case reqSetLogFD, reqSetBackendReqFD:
		files = events[:1]
	}
	if rnd.IntN(40) == 0 {
		files = append(files, g.fd)
	}
	b = raw(request, flagsVersion|uint32(rnd.IntN(2))*flagsNeedReply, payload)
	if rnd.IntN(200) == 0 {
		b = b[:rnd.IntN(len(b))] // it dies in the middle of it
	}
	return b, files
}

func (f *frontend) trySend(b []byte, files []int) error {
	if len(b) == 0 {
		return net.ErrClosed
	}
	var oob []byte
	if len(files) > 0 {
		oob = syscall.UnixRights(files...)
	}
	if err := f.conn.SetWriteDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	_, _, err := f.conn.WriteMsgUnix(b, oob, nil)
	return err
}

// drain takes the replies that are there.
func (f *frontend) drain() error {
	if err := f.conn.SetReadDeadline(time.Now().Add(2 * time.Millisecond)); err != nil {
		return err
	}
	b, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, on, _, _, err := f.conn.ReadMsgUnix(b, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil || n == 0 {
			return net.ErrClosed
		}
		msgs, err := syscall.ParseSocketControlMessage(oob[:on])
		if err != nil {
			return err
		}
		for i := range msgs {
			fds, err := syscall.ParseUnixRights(&msgs[i])
			if err != nil {
				return err
			}
			for _, fd := range fds {
				_ = sys.CloseFD(fd)
			}
		}
	}
}
