package control

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/sys"
)

// serveEngine answers on one end of a socket until it is ended, and returns the
// other.
func serveEngine(t *testing.T, h ipc.Handler) (f *os.File, end func()) {
	t.Helper()
	ours, theirs, err := sys.StreamPair()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ipc.Serve(ctx, ours, h) }()
	end = func() {
		cancel()
		<-done       // however: a control that dies may reset the connection
		ours.Close() //nolint:errcheck // it may be closed already
	}
	t.Cleanup(cancel)
	return theirs, end
}

func hello(id string) ipc.Handler {
	return func(ctx context.Context, method string, _ []byte, _ []*os.File) (any, error) {
		if method == ipc.MethodLeaseDrain {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return ipc.Hello{EngineID: id}, nil
	}
}

// TestEngineSwitch: calls go to the newest engine, and those on an older one end.
func TestEngineSwitch(t *testing.T) {
	e := newEngine()
	if _, err := e.Hello(t.Context()); !errors.Is(err, ipc.ErrGone) {
		t.Errorf("calling no engine: %v", err)
	}
	_, changed := e.now()
	first, endFirst := serveEngine(t, hello("first"))
	defer endFirst()
	if err := e.swap(first); err != nil {
		t.Fatal(err)
	}
	<-changed
	if h, err := e.Hello(t.Context()); err != nil || h.EngineID != "first" {
		t.Errorf("%+v, %v", h, err)
	}
	drained := make(chan error, 1)
	go func() { drained <- e.Drain(t.Context(), "l") }()
	select {
	case err := <-drained:
		t.Fatalf("drained: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	second, endSecond := serveEngine(t, hello("second"))
	if err := e.swap(second); err != nil {
		t.Fatal(err)
	}
	if err := <-drained; !errors.Is(err, ipc.ErrGone) {
		t.Errorf("a call on the old engine ends with %v", err)
	}
	if h, err := e.Hello(t.Context()); err != nil || h.EngineID != "second" {
		t.Errorf("%+v, %v", h, err)
	}
	c, _ := e.now()
	endSecond()
	<-c.Done()
	if _, err := e.Hello(t.Context()); !errors.Is(err, ipc.ErrGone) {
		t.Errorf("calling an engine that has ended: %v", err)
	}
	e.close()
	if _, err := e.Hello(t.Context()); !errors.Is(err, ipc.ErrGone) {
		t.Errorf("calling after the end: %v", err)
	}
}
