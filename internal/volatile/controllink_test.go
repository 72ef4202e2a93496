package volatile

import (
	"errors"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"vacate/internal/sys"
)

func controlPeer(t testing.TB) (*ControlLink, *sys.PacketConn) {
	t.Helper()
	l, c := openEnd(t, ends()[1])
	return &ControlLink{l}, c
}

func TestControlLinkCalls(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := controlPeer(t)
	defer c.Close()
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if m := recv(t, c); m != (Message{Kind: KindReady}) {
		t.Errorf("Ready sends %+v", m)
	}
	errnos := []syscall.Errno{0, syscall.ENOEXEC, syscall.EBUSY}
	go func() {
		for _, errno := range errnos {
			m := recv(t, c)
			if m.Kind != KindUpgrade || m.Reply || m.ID == 0 {
				t.Errorf("Upgrade sends %+v", m)
			}
			send(t, c, Message{Kind: KindUpgrade, Reply: true, ID: m.ID, Errno: errno}, nil)
		}
	}()
	for _, errno := range errnos {
		err := l.Upgrade()
		if errno == 0 && err != nil || errno != 0 && !errors.Is(err, errno) {
			t.Errorf("Upgrade: %v, want %v", err, errno)
		}
	}
	if err := l.Stop(); err != nil {
		t.Error(err)
	}
	if m := recv(t, c); m != (Message{Kind: KindStop}) {
		t.Errorf("Stop sends %+v", m)
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	for name, call := range map[string]func() error{"Ready": l.Ready, "Stop": l.Stop, "Upgrade": l.Upgrade} {
		if err := call(); !errors.Is(err, ErrLink) {
			t.Errorf("%s on a closed link: %v", name, err)
		}
	}
}

// TestControlLinkKeeperGone: a send finds out as well.
func TestControlLinkKeeperGone(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := controlPeer(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Ready(); !errors.Is(err, ErrLink) {
		t.Errorf("Ready to nobody: %v", err)
	}
	if f, ok := <-l.Engine(); ok {
		t.Errorf("an engine without a keeper: %v", f)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestControlLinkNewestEngine: an upgrade may wait while engines come and go.
func TestControlLinkNewestEngine(t *testing.T) {
	defer goleak.VerifyNone(t)
	l, c := controlPeer(t)
	defer c.Close()
	upgraded := make(chan error)
	go func() { upgraded <- l.Upgrade() }()
	id := recv(t, c).ID
	pipes := []pipe{newPipe(t), newPipe(t), newPipe(t)}
	for _, p := range pipes {
		send(t, c, Message{Kind: KindControl}, p.w)
	}
	send(t, c, Message{Kind: KindUpgrade, Reply: true, ID: id}, nil)
	if err := <-upgraded; err != nil { // all three have been received
		t.Error(err)
	}
	pipes[0].checkClosed(t)
	pipes[1].checkClosed(t)
	f := <-l.Engine()
	pipes[2].says(t, f, "hello")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	pipes[2].checkClosed(t)
}

func TestNewControlLinkWantsPackets(t *testing.T) {
	a, b, err := sys.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := NewControlLink(a); !errors.Is(err, syscall.EPROTOTYPE) {
		t.Errorf("a stream socket for a link: %v", err)
	}
}
