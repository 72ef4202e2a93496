package volatile

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"vacate/internal/sys"
)

// An end is a link of either kind, as the hostile keeper of these tests sees it.
type end struct {
	name string
	open func(f *os.File) (*line, error)
	call func(l *line) error // that waits for an answer
}

func ends() []end {
	return []end{
		{
			"engine", func(f *os.File) (*line, error) {
				l, err := NewLink(f)
				if err != nil {
					return nil, err
				}
				return l.line, nil
			},
			func(l *line) error { return (&Link{line: l}).Unmap(1) },
		},
		{
			"control", func(f *os.File) (*line, error) {
				l, err := NewControlLink(f)
				if err != nil {
					return nil, err
				}
				return l.line, nil
			},
			func(l *line) error { return (&ControlLink{l}).Upgrade() },
		},
	}
}

// hostile is what ends a link: packets, and what travels with them.
var hostile = map[string]struct {
	packet func(id uint64) []byte // id: of the call that waits
	passes bool
	only   string // the kind of link, both if empty
}{
	"empty":                    {packet: raw(0)},
	"short":                    {packet: raw(MessageSize - 1)},
	"long":                     {packet: raw(MessageSize + 1)},
	"one byte":                 {packet: raw(1), passes: true},
	"short, with a descriptor": {packet: raw(MessageSize - 1), passes: true},
	"long, with a descriptor":  {packet: raw(MessageSize + 1), passes: true},
	"zeros":                    {packet: raw(MessageSize)},
	"zeros, with a descriptor": {packet: raw(MessageSize), passes: true},
	"reserved byte":            {packet: func(id uint64) []byte { b := says(Message{Kind: KindControl})(id); b[63] = 1; return b }, passes: true},
	"kind 0":                   {packet: says(Message{Kind: 0})},
	"a kind too many":          {packet: says(Message{Kind: kinds})},
	"control without":          {packet: says(Message{Kind: KindControl})},
	"control as a reply":       {packet: says(Message{Kind: KindControl, Reply: true}), passes: true},
	"leave with a descriptor":  {packet: says(Message{Kind: KindLeave}), passes: true},
	"leave as a reply":         {packet: says(Message{Kind: KindLeave, Reply: true})},
	"leave to control":         {packet: says(Message{Kind: KindLeave}), only: "control"},
	"a request":                {packet: says(Message{Kind: KindMap, Blocks: 1, Lease: testLease})},
	"a request to hold":        {packet: says(Message{Kind: KindHold}), passes: true},
	"a reply nobody waits for": {packet: func(id uint64) []byte { return says(Message{Kind: KindUnmap, Reply: true})(id + 1) }},
	"its map":                  {packet: func(id uint64) []byte { return says(Message{Kind: KindMap, Reply: true})(id + 1) }, passes: true},
	"an answer to another":     {packet: says(Message{Kind: KindWipe, Reply: true})},
	"a map for an answer":      {packet: says(Message{Kind: KindMap, Reply: true}), passes: true},
	"reply with a descriptor":  {packet: says(Message{Kind: KindUnmap, Reply: true}), passes: true},
}

func raw(n int) func(uint64) []byte { return func(uint64) []byte { return make([]byte, n) } }

func says(m Message) func(uint64) []byte {
	return func(id uint64) []byte {
		var b [MessageSize]byte
		m.ID = id
		m.Encode(&b)
		return b[:]
	}
}

// TestLinkHostile: whatever a keeper sends that it must not, calls that wait and
// calls that come get ErrLink, what came along is closed, and nothing is left
// behind.
func TestLinkHostile(t *testing.T) {
	for _, e := range ends() {
		for name, h := range hostile {
			if h.only != "" && h.only != e.name {
				continue
			}
			t.Run(e.name+"/"+name, func(t *testing.T) {
				defer goleak.VerifyNone(t)
				l, c := openEnd(t, e)
				defer c.Close()
				errs := make(chan error)
				go func() { errs <- e.call(l) }()
				id := recv(t, c).ID
				var p pipe
				if h.passes {
					p = newPipe(t)
				}
				if err := c.Send(h.packet(id), p.w); err != nil {
					t.Fatal(err)
				}
				checkDown(t, e, l, <-errs)
				if h.passes {
					p.checkClosed(t)
				}
			})
		}
	}
}

func openEnd(t testing.TB, e end) (*line, *sys.PacketConn) {
	t.Helper()
	a, b, err := sys.PacketPair()
	if err != nil {
		t.Fatal(err)
	}
	l, err := e.open(a)
	if err != nil {
		t.Fatal(err)
	}
	c, err := sys.NewPacketConn(b)
	if err = errors.Join(err, b.Close()); err != nil {
		t.Fatal(err)
	}
	return l, c
}

// checkDown checks a link that has ended; waited is what the call that waited
// got.
func checkDown(t *testing.T, e end, l *line, waited error) {
	t.Helper()
	if !errors.Is(waited, ErrLink) {
		t.Errorf("the call that waited: %v", waited)
	}
	if err := e.call(l); !errors.Is(err, ErrLink) {
		t.Errorf("the call after: %v", err)
	}
	if err := l.tell(Message{Kind: KindStop}); !errors.Is(err, ErrLink) {
		t.Errorf("what is told after: %v", err)
	}
	if f, ok := <-l.conns; ok {
		t.Errorf("a connection over a link that is down: %v", f)
	}
	if err := errors.Join(l.close(), l.close()); err != nil {
		t.Error(err)
	}
}

// TestLinkEndsWithKeeper: the keeper dies, with a call under way and a
// connection that nobody took.
func TestLinkEndsWithKeeper(t *testing.T) {
	for _, e := range ends() {
		t.Run(e.name, func(t *testing.T) {
			defer goleak.VerifyNone(t)
			l, c := openEnd(t, e)
			p := newPipe(t)
			errs := make(chan error)
			go func() { errs <- e.call(l) }()
			recv(t, c)
			send(t, c, Message{Kind: KindControl}, p.w)
			if err := errors.Join(c.Shutdown(), c.Close()); err != nil {
				t.Fatal(err)
			}
			// The call may end before or after the connection was put down; once the
			// receiver has ended, it is closed.
			waited := <-errs
			<-l.stopped
			checkDown(t, e, l, waited)
			p.checkClosed(t)
		})
	}
}

// FuzzLink sends one packet of any bytes, with and without a descriptor, to a
// link of each kind with a call under way. Whatever it does to the link, nothing
// panics, the call ends, and a descriptor that nobody got is closed.
func FuzzLink(f *testing.F) {
	for _, h := range hostile {
		f.Add(h.packet(1), h.passes)
	}
	f.Add(says(Message{Kind: KindUnmap, Reply: true})(1), false)
	f.Add(says(Message{Kind: KindUpgrade, Reply: true, Errno: syscall.EBUSY})(1), false)
	f.Add(says(Message{Kind: KindControl})(0), true)
	f.Add(says(Message{Kind: KindLeave})(0), false)
	f.Fuzz(func(t *testing.T, packet []byte, passes bool) {
		for _, e := range ends() {
			l, c := openEnd(t, e)
			var p pipe
			if passes {
				p = newPipe(t)
			}
			errs := make(chan error)
			go func() { errs <- e.call(l) }()
			recv(t, c)
			if err := c.Send(packet, p.w); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
				t.Fatal(err)
			}
			if err := errors.Join(c.Shutdown(), c.Close()); err != nil {
				t.Fatal(err)
			}
			<-errs // what it got is its business
			<-l.stopped
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
			if passes {
				p.checkClosed(t)
				p.r.Close()
			}
		}
	})
}
