package volatile

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/sys"
)

// peer returns a link and the keeper's end of it.
func peer(t testing.TB) (*Link, *sys.PacketConn) {
	t.Helper()
	a, b, err := sys.PacketPair()
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLink(a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := sys.NewPacketConn(b)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	return l, c
}

func recv(t testing.TB, c *sys.PacketConn) (m Message) {
	t.Helper()
	var b [MessageSize]byte
	f, err := c.Recv(b[:])
	if err != nil || f != nil {
		t.Errorf("receiving a request: %v, %v", f, err)
		return
	}
	if err := m.Decode(&b); err != nil {
		t.Error(err)
	}
	return m
}

func send(t testing.TB, c *sys.PacketConn, m Message, f *os.File) {
	t.Helper()
	var b [MessageSize]byte
	m.Encode(&b)
	if err := c.Send(b[:], f); err != nil {
		t.Errorf("sending %+v: %v", m, err)
	}
}

func TestLinkCalls(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	mapFile, err := CreateMap(100, 1, testLease)
	if err != nil {
		t.Fatal(err)
	}
	defer mapFile.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m := recv(t, c)
		if m.Kind != KindMap || m.Slot != 3 || m.Blocks != 100 || m.Arg != 5 || m.Lease != testLease || m.Reply {
			t.Errorf("request %+v", m)
		}
		m.Reply = true
		send(t, c, m, mapFile)
		m = recv(t, c)
		send(t, c, Message{Kind: KindWipe, Reply: true, Slot: m.Slot, ID: m.ID, StartedNs: 10, DoneNs: 20, ReadBack: true}, nil)
		m = recv(t, c)
		send(t, c, Message{Kind: KindWipe, Reply: true, Slot: m.Slot, ID: m.ID}, nil) // not read back
		m = recv(t, c)
		send(t, c, Message{Kind: KindUnmap, Reply: true, Slot: m.Slot, ID: m.ID, Errno: syscall.EBUSY}, nil)
		m = recv(t, c)
		send(t, c, Message{Kind: KindMap, Reply: true, ID: m.ID}, nil) // without a descriptor
		m = recv(t, c)
		send(t, c, Message{Kind: KindMap, Reply: true, ID: m.ID, Errno: syscall.EEXIST}, mapFile)
	}()
	f, err := l.Map(3, 100, 5, testLease)
	if err != nil {
		t.Fatal(err)
	}
	m, err := OpenMap(f)
	if err != nil || m.Blocks() != 100 {
		t.Fatalf("the passed map: %v", err)
	}
	m.Close()
	if w, err := l.Wipe(7); err != nil || w != (Wiped{10, 20, true}) {
		t.Errorf("Wipe: %+v, %v", w, err)
	}
	if w, err := l.Wipe(7); !errors.Is(err, syscall.EIO) || w.ReadBack {
		t.Errorf("a wipe that was not read back: %+v, %v", w, err)
	}
	if err := l.Unmap(7); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("Unmap: %v", err)
	}
	if f, err := l.Map(1, 1, 1, testLease); !errors.Is(err, ErrFormat) || f != nil {
		t.Errorf("a map without a descriptor: %v, %v", f, err)
	}
	if f, err := l.Map(1, 1, 1, testLease); !errors.Is(err, syscall.EEXIST) || f != nil {
		t.Errorf("a refused map: %v, %v", f, err)
	}
	for _, slot := range []int{-1, Slots} {
		if _, err := l.Wipe(slot); !errors.Is(err, ErrSlot) {
			t.Errorf("Wipe(%d): %v", slot, err)
		}
	}
	<-done
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if _, err := l.Wipe(1); !errors.Is(err, ErrLink) {
		t.Errorf("Wipe on a closed link: %v", err)
	}
}

// TestLinkAnswersInAnyOrder has many calls under way and answers the last first.
func TestLinkAnswersInAnyOrder(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if w, err := l.Wipe(i); err != nil || w.StartedNs != int64(i) {
				t.Errorf("Wipe(%d): %+v, %v", i, w, err)
			}
		})
	}
	var got []Message
	for range n {
		got = append(got, recv(t, c))
	}
	for i := n - 1; i >= 0; i-- {
		send(t, c, Message{Kind: KindWipe, Reply: true, ID: got[i].ID, StartedNs: int64(got[i].Slot), ReadBack: true}, nil)
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestL5WipePasses: however many leases ask their keeper, a wipe has few before it.
func TestL5WipePasses(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	var asked sync.WaitGroup
	for i := range 4 * mostCalls {
		asked.Go(func() {
			if f, err := l.FetchPlace(i, 1); f != nil || err != nil {
				t.Errorf("FetchPlace: %v, %v", f, err)
			}
		})
	}
	for under := 0; under < mostCalls; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		under = len(l.waiting)
		l.mu.Unlock()
	}
	time.Sleep(20 * time.Millisecond) // for those that are too many
	asked.Go(func() {
		if _, err := l.Wipe(1); err != nil {
			t.Errorf("Wipe: %v", err)
		}
	})
	var got []Message
	for len(got) == 0 || got[len(got)-1].Kind != KindWipe {
		got = append(got, recv(t, c))
	}
	if n := len(got) - 1; n > mostCalls {
		t.Errorf("%d calls stand before a wipe", n)
	}
	for n := range 4*mostCalls + 1 {
		if n >= len(got) {
			got = append(got, recv(t, c))
		}
		m := Message{Kind: got[n].Kind, Reply: true, ID: got[n].ID, Errno: syscall.ENOENT}
		if m.Kind == KindWipe {
			m.Errno, m.ReadBack = 0, true
		}
		send(t, c, m, nil)
	}
	asked.Wait()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestLinkControlNewestOnly(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	mine := make([]*os.File, 3)
	for i := range mine {
		a, b, err := sys.StreamPair()
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		mine[i] = a
		send(t, c, Message{Kind: KindControl}, b)
		b.Close()
	}
	for i := range 2 { // the engine took neither: they are closed
		if n, err := mine[i].Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("connection %d is still open: %d, %v", i, n, err)
		}
	}
	f := <-l.Control()
	if _, err := f.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	b := make([]byte, 5)
	if n, err := mine[2].Read(b); string(b[:n]) != "hello" || err != nil {
		t.Errorf("over the newest came %q, %v", b[:n], err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if f, ok := <-l.Control(); ok {
		t.Errorf("a connection over a closed link: %v", f)
	}
}

// TestLinkEnds: whatever ends the link, calls that wait and calls that come get
// ErrLink, and nothing is left behind.
func TestLinkEnds(t *testing.T) {
	for name, end := range map[string]func(c *sys.PacketConn){
		"keeper gone":  func(c *sys.PacketConn) { c.Shutdown() },
		"short packet": func(c *sys.PacketConn) { c.Send(make([]byte, 63), nil) },
		"long packet":  func(c *sys.PacketConn) { c.Send(make([]byte, 65), nil) },
		"garbage":      func(c *sys.PacketConn) { c.Send(make([]byte, 64), os.Stderr) },
		"no such call": func(c *sys.PacketConn) {
			m := Message{Kind: KindWipe, Reply: true, ID: 99}
			var b [MessageSize]byte
			m.Encode(&b)
			c.Send(b[:], nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			l, c := peer(t)
			defer c.Close()
			errs := make(chan error)
			go func() { errs <- l.Unmap(1) }()
			recv(t, c)
			end(c)
			if err := <-errs; !errors.Is(err, ErrLink) {
				t.Errorf("the call that waited: %v", err)
			}
			if err := l.Unmap(1); !errors.Is(err, ErrLink) {
				t.Errorf("the call after: %v", err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNewLinkWantsPackets(t *testing.T) {
	a, b, err := sys.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := NewLink(a); !errors.Is(err, syscall.EPROTOTYPE) {
		t.Errorf("a stream socket for a link: %v", err)
	}
}

func FuzzMessage(f *testing.F) {
	var b [MessageSize]byte
	(&Message{Kind: KindMap, Slot: 1, ID: 2, Blocks: 3, Lease: testLease}).Encode(&b)
	f.Add(b[:])
	(&Message{Kind: KindWipe, Reply: true, ID: 2, StartedNs: 1, DoneNs: 2, ReadBack: true, Errno: 5}).Encode(&b)
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, in []byte) {
		var b, again [MessageSize]byte
		copy(b[:], in)
		var m Message
		if err := m.Decode(&b); err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		if m.Encode(&again); again != b {
			t.Fatalf("%+v encoded differently", m)
		}
	})
}
