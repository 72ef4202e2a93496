package attach

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/lease"
	"vacate/internal/node"
)

// TestListen: the socket is the owner's alone, takes the place of one of before, and of
// nothing else.
func TestListen(t *testing.T) {
	path := t.TempDir() + "/s"
	for range 2 {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false) // as one that is killed
		if st, err := os.Lstat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "is in the way") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the file: %q, %v", b, err)
	}
}

// TestNewest: of two devices processes the newer one is asked, and a call on the older
// one is made again of it.
func TestNewest(t *testing.T) {
	w := newWorld(t)
	old, err := dial(w.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	asked, ended := make(chan bool, 8), make(chan error, 1)
	go func() {
		ended <- ipc.Serve(t.Context(), old, func(ctx context.Context, _ string, _ []byte, _ []*os.File) (any, error) {
			asked <- true
			<-ctx.Done()
			return nil, ctx.Err()
		})
	}()
	ready := make(chan error, 1)
	go func() { ready <- w.a.Ready(t.Context(), lease.Exports{}) }()
	<-asked
	w.start()
	if err := <-ready; err != nil {
		t.Error(err)
	}
	<-ended // its connection was closed
	if h, _ := w.a.Status(t.Context()); h.PID != 5 {
		t.Errorf("it asks %+v", h)
	}
}

// TestAtOnceAbsent: when none has come in a while, callers are told so at once; and one
// that waits has the process when it comes.
func TestAtOnceAbsent(t *testing.T) {
	w := newWorld(t)
	ready := make(chan error, 1)
	go func() { ready <- w.a.Ready(t.Context(), lease.Exports{}) }()
	time.Sleep(10 * time.Millisecond)
	w.start()
	if err := <-ready; err != nil {
		t.Error(err)
	}
	w.stop()
	w.eventually("its end is seen", func() bool { h, _ := w.a.Status(t.Context()); return h.PID == 0 })
	time.Sleep(w.a.cfg.Grace)
	for range 100 { // of which one that waits would show
		began := time.Now()
		wantKind(t, w.a.Ready(t.Context(), lease.Exports{}), node.Unsupported, "does not run")
		if took := time.Since(began); took > w.a.cfg.Grace/2 {
			t.Fatalf("said after %v", took)
		}
	}
	w.a.Close()
	wantKind(t, w.a.Ready(t.Context(), lease.Exports{}), node.Unsupported, "the daemon is ending")
}
