package volatile

import (
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vacate/internal/sys"
)

// recvFile receives a request that carries a descriptor.
func recvFile(t testing.TB, c *sys.PacketConn) (m Message, f *os.File) {
	t.Helper()
	var b [MessageSize]byte
	f, err := c.Recv(b[:])
	if err != nil {
		t.Errorf("receiving a request: %v", err)
		return
	}
	if err := m.Decode(&b); err != nil {
		t.Error(err)
	}
	if (f != nil) != m.Carries() {
		t.Errorf("a %v with the descriptor %v", m.Kind, f)
	}
	return m, f
}

// A pipe tells whether a descriptor that was given away is closed.
type pipe struct{ r, w *os.File }

func newPipe(t testing.TB) pipe {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return pipe{r, w}
}

// checkClosed closes this end, and checks that there is no other.
func (p pipe) checkClosed(t testing.TB) {
	t.Helper()
	p.w.Close()
	if err := p.r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if n, err := p.r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("a passed descriptor is still open: %d, %v", n, err)
	}
}

// says checks that f is a descriptor of this pipe, and closes f.
func (p pipe) says(t testing.TB, f *os.File, text string) {
	t.Helper()
	if f == nil {
		t.Errorf("no descriptor, want one to say %q", text)
		return
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Error(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(p.r, b); string(b) != text || err != nil {
		t.Errorf("through the descriptor came %q, %v, want %q", b, err, text)
	}
}

func TestLinkHolds(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	listener, conn := newPipe(t), newPipe(t)
	go func() { // the keeper
		held := map[uint64]*os.File{}
		var terms uint64
		for range 6 {
			m, f := recvFile(t, c)
			reply := Message{Kind: m.Kind, Reply: true, Slot: m.Slot, ID: m.ID}
			switch m.Kind {
			case KindHold:
				held[FetchListener] = f
			case KindPass:
				held[FetchConn], terms = f, m.Arg
			case KindFetch:
				f = held[m.Arg]
				if reply.Arg = terms; f == nil {
					reply.Errno = syscall.ENOENT
				}
			}
			if m.Slot != 9 {
				t.Errorf("%v of slot %d", m.Kind, m.Slot)
			}
			if !reply.Carries() {
				f = nil
			}
			send(t, c, reply, f)
		}
		closeFile(held[FetchListener])
		closeFile(held[FetchConn])
	}()
	if err := l.Hold(9, listener.w); err != nil {
		t.Error(err)
	}
	if err := l.Pass(9, conn.w, 1<<63|5); err != nil {
		t.Error(err)
	}
	if f, err := l.FetchListener(9); err != nil {
		t.Error(err)
	} else {
		listener.says(t, f, "listener")
	}
	if f, terms, err := l.FetchConn(9, 0); err != nil || terms != 1<<63|5 {
		t.Errorf("connection 0: terms %#x, %v", terms, err)
	} else {
		conn.says(t, f, "connection")
	}
	if f, terms, err := l.FetchConn(9, 1); f != nil || terms != 0 || err != nil {
		t.Errorf("connection 1 of one: %v, %#x, %v", f, terms, err)
	}
	if f, err := l.FetchMap(9); f != nil || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a map that is not there: %v, %v", f, err)
	}
	listener.w.WriteString("x") // Hold and Pass left them with the caller
	listener.checkRest(t, "x")
	conn.checkClosed(t)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestLinkPlaces: what is put into a place comes out of it, and out of no other.
func TestLinkPlaces(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	one, two := newPipe(t), newPipe(t)
	go func() { // the keeper
		held := map[uint64]*os.File{}
		for range 9 {
			m, f := recvFile(t, c)
			reply := Message{Kind: m.Kind, Reply: true, Slot: m.Slot, ID: m.ID}
			switch m.Kind {
			case KindKeep:
				closeFile(held[m.Arg])
				held[m.Arg] = f
			case KindYield:
				closeFile(held[m.Arg])
				delete(held, m.Arg)
			case KindFetch:
				if f = held[m.Arg-FetchPlace]; f == nil {
					reply.Errno = syscall.ENOENT
				}
			}
			if m.Slot == 8 {
				f, reply.Errno = nil, syscall.EIO
			}
			if !reply.Carries() {
				f = nil
			}
			send(t, c, reply, f)
		}
	}()
	keep := func(place int, f *os.File) {
		t.Helper()
		if err := l.Keep(9, place, f); err != nil {
			t.Error(err)
		}
	}
	fetch := func(place int) *os.File {
		t.Helper()
		f, err := l.FetchPlace(9, place)
		if err != nil {
			t.Error(err)
		}
		return f
	}
	keep(0, one.w)
	keep(Places-1, two.w)
	one.says(t, fetch(0), "one")
	two.says(t, fetch(Places-1), "two")
	keep(0, nil)
	if f := fetch(0); f != nil {
		t.Errorf("a place that was given up holds %v", f)
	}
	one.checkClosed(t)
	keep(Places-1, nil)
	two.w.WriteString("x") // Keep left it with the caller
	two.checkRest(t, "x")
	if f, err := l.FetchPlace(8, 0); f != nil || !errors.Is(err, syscall.EIO) {
		t.Errorf("a keeper that refuses: %v, %v", f, err)
	}
	if err := l.Keep(8, 0, nil); !errors.Is(err, syscall.EIO) {
		t.Errorf("a keeper that refuses: %v", err)
	}
	for _, place := range []int{-1, Places} { // nobody is asked
		if f, err := l.FetchPlace(9, place); f != nil || !errors.Is(err, ErrFormat) {
			t.Errorf("place %d: %v, %v", place, f, err)
		}
		if err := l.Keep(9, place, nil); !errors.Is(err, ErrFormat) {
			t.Errorf("place %d: %v", place, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// checkRest reads text and then the end.
func (p pipe) checkRest(t testing.TB, text string) {
	t.Helper()
	p.w.Close()
	if b, err := io.ReadAll(p.r); string(b) != text || err != nil {
		t.Errorf("%q, %v, want %q and the end", b, err, text)
	}
}

func TestLinkFetchErrors(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	p := newPipe(t)
	go func() {
		for i := range 6 {
			m := recv(t, c)
			reply := Message{Kind: KindFetch, Reply: true, Slot: m.Slot, ID: m.ID}
			if i == 1 { // refused, and yet with a descriptor
				reply.Errno = syscall.ENOENT
				send(t, c, reply, p.w)
				continue
			}
			if i > 2 {
				reply.Errno = syscall.EMFILE
			}
			send(t, c, reply, nil)
		}
	}()
	if f, err := l.FetchListener(1); f != nil || !errors.Is(err, ErrFormat) {
		t.Errorf("a listening socket without a descriptor: %v, %v", f, err)
	}
	if f, err := l.FetchListener(1); f != nil || err != nil {
		t.Errorf("no listening socket: %v, %v", f, err)
	}
	if f, _, err := l.FetchConn(1, 2); f != nil || !errors.Is(err, ErrFormat) {
		t.Errorf("a connection without a descriptor: %v, %v", f, err)
	}
	if f, err := l.FetchListener(1); f != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("a keeper without descriptors: %v, %v", f, err)
	}
	if f, _, err := l.FetchConn(1, 0); f != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("a keeper without descriptors: %v, %v", f, err)
	}
	if f, err := l.FetchMap(1); f != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("a keeper without descriptors: %v, %v", f, err)
	}
	for _, n := range []int{-1, MaxPassed} { // nobody is asked
		if f, _, err := l.FetchConn(1, n); f != nil || err != nil {
			t.Errorf("connection %d: %v, %v", n, f, err)
		}
	}
	p.checkClosed(t)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestLinkOutlivesBadDescriptors: what cannot be sent is the caller's mistake,
// and the link goes on.
func TestLinkOutlivesBadDescriptors(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	gone := newPipe(t)
	gone.w.Close()
	for name, f := range map[string]*os.File{"none": nil, "closed": gone.w} {
		if err := l.Hold(1, f); err == nil || errors.Is(err, ErrLink) {
			t.Errorf("Hold, %s: %v", name, err)
		}
		if err := l.Pass(1, f, 0); err == nil || errors.Is(err, ErrLink) {
			t.Errorf("Pass, %s: %v", name, err)
		}
	}
	if n := len(l.waiting); n != 0 {
		t.Errorf("%d calls wait for answers that cannot come", n)
	}
	go func() {
		m := recv(t, c)
		send(t, c, Message{Kind: KindUp, Reply: true, ID: m.ID}, nil)
	}()
	if err := l.Up(); err != nil {
		t.Errorf("Up after them: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestLinkLeave(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := peer(t)
	defer c.Close()
	select {
	case <-l.Leave():
		t.Error("nobody asked it to leave")
	default:
	}
	send(t, c, Message{Kind: KindLeave}, nil)
	<-l.Leave()
	send(t, c, Message{Kind: KindLeave}, nil) // again is fine
	p := newPipe(t)
	go func() {
		m, f := recvFile(t, c)
		closeFile(f)
		send(t, c, Message{Kind: KindPass, Reply: true, ID: m.ID, Errno: syscall.ENOSPC}, nil)
	}()
	if err := l.Pass(1, p.w, 0); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "slot 1") {
		t.Errorf("Pass to a full keeper: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-l.Leave()

	still, c2 := peer(t)
	defer c2.Close()
	if err := still.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-still.Leave():
		t.Error("a link that is down says that its engine must leave")
	default:
	}
}
