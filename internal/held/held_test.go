package held

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"vacate/internal/handoff"
	"vacate/internal/volatile"
)

var lease = volatile.LeaseID([]byte("abcdefghijklmn27"))

func newHeld(t *testing.T) (*Held, *volatile.Keys) {
	t.Helper()
	keys, err := volatile.CreateKeys()
	if err != nil {
		t.Fatal(err)
	}
	h := New(keys)
	t.Cleanup(func() {
		if err := h.Destroy(); err != nil {
			t.Error(err)
		}
		h.Wait()
		if err := keys.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, keys
}

// say sends a message and wants its answer's errno.
func (h *Held) say(t *testing.T, want syscall.Errno, m volatile.Message, file *os.File) (volatile.Message, *os.File) {
	t.Helper()
	asked := m
	m.ID = 42
	give, err := h.Answer(&m, file)
	if err != nil || !m.Reply || m.Kind != asked.Kind || m.Slot != asked.Slot || m.ID != 42 {
		t.Fatalf("%v: %+v, %v", asked.Kind, m, err)
	}
	if m.Errno != want {
		t.Errorf("%v of slot %d, %d: %v, want %v", asked.Kind, asked.Slot, asked.Arg, m.Errno, want)
	}
	if (give != nil) != (want == 0 && m.Carries()) {
		t.Errorf("%v: a descriptor comes: %v", asked.Kind, give != nil)
	}
	return m, give
}

// pipe returns a client's two ends.
func pipe(t *testing.T) (passed *os.File, client net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "client")
	defer f.Close()
	if client, err = net.FileConn(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return os.NewFile(uintptr(fds[0]), "passed"), client
}

func ended(t *testing.T, client net.Conn) {
	t.Helper()
	if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("the client reads %d bytes, %v: want its end", n, err)
	}
}

// TestAnswers goes through what an engine may ask, and when it is refused.
func TestAnswers(t *testing.T) {
	h, keys := newHeld(t)
	of := func(k volatile.Kind, arg uint64) volatile.Message {
		return volatile.Message{Kind: k, Slot: 7, Arg: arg}
	}
	mapping := volatile.Message{Kind: volatile.KindMap, Slot: 7, Blocks: 1 << 20, Lease: lease, Arg: 1}
	var no volatile.Message
	for _, change := range []func(m *volatile.Message){
		func(m *volatile.Message) { m.Slot = volatile.Slots },
		func(m *volatile.Message) { m.Blocks = 0 },
		func(m *volatile.Message) { m.Lease = volatile.LeaseID{} },
		func(m *volatile.Message) { m.Arg = 0 },
		func(m *volatile.Message) { m.Arg = 1 << 63 },
	} {
		no = mapping
		change(&no)
		h.say(t, syscall.EINVAL, no, nil)
	}

	// Without a map there is nothing else.
	refused, client := pipe(t)
	h.say(t, syscall.ENOENT, of(volatile.KindHold, 0), refused)
	ended(t, client)
	refused, client = pipe(t)
	h.say(t, syscall.ENOENT, of(volatile.KindPass, 3), refused)
	ended(t, client)
	for what := range uint64(4) {
		h.say(t, syscall.ENOENT, of(volatile.KindFetch, what), nil)
	}
	h.say(t, 0, of(volatile.KindUnmap, 0), nil)
	if h.Any() {
		t.Error("a lease may be open, before there was one")
	}

	_, bits := h.say(t, 0, mapping, nil)
	h.say(t, syscall.EEXIST, mapping, nil)
	if !h.Any() {
		t.Error("no lease may be open, although one has a map")
	}
	h.say(t, syscall.ENOENT, of(volatile.KindFetch, volatile.FetchListener), nil)
	listener, _ := pipe(t)
	h.say(t, 0, of(volatile.KindHold, 0), listener)
	refused, client = pipe(t)
	h.say(t, syscall.EEXIST, of(volatile.KindHold, 0), refused)
	ended(t, client)
	one, first := pipe(t)
	two, second := pipe(t)
	h.say(t, 0, of(volatile.KindPass, 1), one)
	h.say(t, 0, of(volatile.KindPass, 1<<64-1), two)
	for what, want := range map[uint64]*os.File{volatile.FetchMap: bits, volatile.FetchListener: listener, volatile.FetchConn: one, volatile.FetchConn + 1: two} {
		for range 2 { // it is not taken away
			if m, got := h.say(t, 0, of(volatile.KindFetch, what), nil); got != want || what == volatile.FetchConn+1 && m.Arg != 1<<64-1 {
				t.Errorf("fetching %d: %v, %+v", what, got, m)
			}
		}
	}
	h.say(t, syscall.ENOENT, of(volatile.KindFetch, volatile.FetchConn+2), nil)
	h.say(t, syscall.ENOENT, of(volatile.KindFetch, 1<<64-1), nil)

	h.room = 4 // one map's two, and two connections
	full := mapping
	full.Slot = 8
	h.say(t, syscall.EMFILE, full, nil)
	refused, client = pipe(t)
	h.say(t, syscall.ENOSPC, of(volatile.KindPass, 3), refused)
	ended(t, client)
	if up, _ := h.say(t, 0, volatile.Message{Kind: volatile.KindUp}, nil); up.Arg != volatile.Layout {
		t.Errorf("it says that it knows %d", up.Arg)
	}
	ended(t, first)
	ended(t, second)
	h.say(t, syscall.ENOENT, of(volatile.KindFetch, volatile.FetchConn), nil)
	three, third := pipe(t)
	h.say(t, 0, of(volatile.KindPass, 3), three)

	copy(keys.Slot(7), "secret")
	h.say(t, syscall.EBUSY, of(volatile.KindUnmap, 0), nil)
	wiped, _ := h.say(t, 0, of(volatile.KindWipe, 0), nil)
	if !keys.Empty(7) || !wiped.ReadBack || wiped.StartedNs == 0 || wiped.DoneNs < wiped.StartedNs {
		t.Errorf("key destroyed %v, reported as %+v", keys.Empty(7), wiped)
	}
	h.say(t, 0, of(volatile.KindUnmap, 0), nil)
	ended(t, third)
	if h.Any() || h.passed != 0 {
		t.Errorf("a lease may be open: %v, %d connections", h.Any(), h.passed)
	}
	copy(keys.Slot(7), "secret")
	h.say(t, syscall.EBUSY, mapping, nil)

	for _, k := range []volatile.Kind{volatile.KindControl, volatile.KindLeave, volatile.KindReady, volatile.KindStop, volatile.KindUpgrade} {
		m := of(k, 0)
		if _, err := h.Answer(&m, nil); err == nil {
			t.Errorf("an engine may send a %v", k)
		}
	}
}

// TestPlaces: what is in places stays until it is replaced, given up, or its lease
// ends.
func TestPlaces(t *testing.T) {
	h, _ := newHeld(t)
	of := func(k volatile.Kind, arg uint64) volatile.Message {
		return volatile.Message{Kind: k, Slot: 7, Arg: arg}
	}
	refuse := func(errno syscall.Errno, m volatile.Message) {
		t.Helper()
		f, client := pipe(t)
		h.say(t, errno, m, f)
		ended(t, client)
	}
	refuse(syscall.ENOENT, of(volatile.KindKeep, 0)) // without a map there is nothing else
	h.say(t, 0, of(volatile.KindYield, 0), nil)      // also nothing to give up
	h.say(t, 0, volatile.Message{Kind: volatile.KindMap, Slot: 7, Blocks: 1, Lease: lease, Arg: 1}, nil)
	for _, place := range []uint64{volatile.Places, 1 << 32, 1<<64 - 1, 1<<64 - volatile.FetchPlace + volatile.FetchListener} {
		refuse(syscall.EINVAL, of(volatile.KindKeep, place))
		h.say(t, syscall.EINVAL, of(volatile.KindYield, place), nil)
	}
	h.say(t, syscall.ENOENT, of(volatile.KindFetch, volatile.FetchPlace+volatile.Places), nil)

	clients := make([]net.Conn, volatile.Places)
	for place := range clients {
		h.say(t, syscall.ENOENT, of(volatile.KindFetch, volatile.FetchPlace+uint64(place)), nil)
		var f *os.File
		f, clients[place] = pipe(t)
		h.say(t, 0, of(volatile.KindKeep, uint64(place)), f)
		for range 2 { // it is not taken away
			if _, got := h.say(t, 0, of(volatile.KindFetch, volatile.FetchPlace+uint64(place)), nil); got != f {
				t.Errorf("place %d: %v", place, got)
			}
		}
	}
	h.say(t, 0, volatile.Message{Kind: volatile.KindUp}, nil) // that is about connections of another kind
	again, client := pipe(t)
	h.say(t, 0, of(volatile.KindKeep, 3), again)
	ended(t, clients[3])
	clients[3] = client
	for range 2 { // it may be repeated
		h.say(t, 0, of(volatile.KindYield, 255), nil)
	}
	ended(t, clients[255])
	if h.kept != volatile.Places || h.used() != volatile.Places {
		t.Errorf("%d files are kept, %d held", h.kept, h.used())
	}

	// A quarter of what may be held is not for places.
	h.room = 340 // 255 and 85
	refuse(syscall.ENOSPC, of(volatile.KindKeep, 255))
	another, client := pipe(t)
	h.say(t, 0, of(volatile.KindKeep, 3), another) // instead of one that is there
	ended(t, clients[3])
	clients[3] = client
	for slot := range uint32(4) {
		h.say(t, 0, volatile.Message{Kind: volatile.KindMap, Slot: slot, Blocks: 1, Lease: lease, Arg: 1}, nil)
		l, _ := pipe(t)
		h.say(t, 0, volatile.Message{Kind: volatile.KindHold, Slot: slot}, l)
		for place := range uint64(ownPlaces) { // an export's own, without a frontend
			l, _ := pipe(t)
			h.say(t, 0, volatile.Message{Kind: volatile.KindKeep, Slot: slot, Arg: place}, l)
		}
		l, c := pipe(t)
		h.say(t, syscall.ENOSPC, volatile.Message{Kind: volatile.KindKeep, Slot: slot, Arg: ownPlaces}, l)
		ended(t, c)
	}

	h.say(t, 0, of(volatile.KindUnmap, 0), nil)
	for _, c := range clients[:255] {
		ended(t, c)
	}
	if h.kept != 16 || h.used() != 16 {
		t.Errorf("%d files are kept, %d held", h.kept, h.used())
	}
}

// TestDestroy forgets everything.
func TestDestroy(t *testing.T) {
	h, keys := newHeld(t)
	var clients []net.Conn
	for _, slot := range []uint32{0, 7, 1023} {
		h.say(t, 0, volatile.Message{Kind: volatile.KindMap, Slot: slot, Blocks: 1, Lease: lease, Arg: 1}, nil)
		f, c := pipe(t)
		h.say(t, 0, volatile.Message{Kind: volatile.KindPass, Slot: slot}, f)
		copy(keys.Slot(int(slot)), "secret")
		clients = append(clients, c)
	}
	if err := h.Destroy(); err != nil {
		t.Fatal(err)
	}
	for _, slot := range []int{0, 7, 1023} {
		if !keys.Empty(slot) {
			t.Errorf("the key in slot %d is there", slot)
		}
	}
	for _, c := range clients {
		ended(t, c)
	}
	if h.Any() || h.passed != 0 {
		t.Errorf("a lease may be open: %v, %d connections", h.Any(), h.passed)
	}
}

// TestHandOff: what is written down is what the next program holds.
func TestHandOff(t *testing.T) {
	h, keys := newHeld(t)
	var files []*os.File
	for _, slot := range []uint32{3, 700} {
		_, f := h.say(t, 0, volatile.Message{Kind: volatile.KindMap, Slot: slot, Blocks: 1, Lease: lease, Arg: 1}, nil)
		files = append(files, f)
	}
	listener, _ := pipe(t)
	h.say(t, 0, volatile.Message{Kind: volatile.KindHold, Slot: 700}, listener)
	passed, _ := pipe(t)
	h.say(t, 0, volatile.Message{Kind: volatile.KindPass, Slot: 700, Arg: 9}, passed)

	one, _ := pipe(t)
	two, _ := pipe(t)
	h.say(t, 0, volatile.Message{Kind: volatile.KindKeep, Slot: 700, Arg: 0}, one)
	h.say(t, 0, volatile.Message{Kind: volatile.KindKeep, Slot: 700, Arg: 255}, two)

	next := New(keys)
	if err := next.Inherit(h.Describe()); err != nil {
		t.Fatal(err)
	}
	if !next.Any() || next.maps != 2 || next.passed != 1 || next.slots[3].files[volatile.FetchMap] != files[0] {
		t.Errorf("%d maps, %d connections", next.maps, next.passed)
	}
	if s := next.slots[700]; s.files[volatile.FetchMap] != files[1] || s.files[volatile.FetchListener] != listener || len(s.conns) != 1 || s.conns[0].File.File != passed || s.conns[0].Terms != 9 {
		t.Errorf("%+v", s)
	}
	for place, want := range map[uint64]*os.File{0: one, 255: two} {
		if _, got := next.say(t, 0, volatile.Message{Kind: volatile.KindFetch, Slot: 700, Arg: volatile.FetchPlace + place}, nil); got != want {
			t.Errorf("place %d: %v", place, got)
		}
	}
	if next.kept != 5 || next.used() != h.used() {
		t.Errorf("%d files, %d descriptors, of %d", next.kept, next.used(), h.used())
	}
	if err := next.Inherit([]handoff.Slot{{Slot: volatile.Slots}}); err == nil {
		t.Error("a slot that does not exist is taken over")
	}
}
