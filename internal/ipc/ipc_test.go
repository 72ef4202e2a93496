package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns the two ends of a socket, as the keeper makes it.
func pair(t testing.TB) (a, b *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(fds[0]), "a"), os.NewFile(uintptr(fds[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() }) //nolint:errcheck // test's end
	return a, b
}

// start serves h and returns a client of it. end waits for the server.
func start(t *testing.T, h Handler) (cl *Client, end func() error) {
	t.Helper()
	a, b := pair(t)
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), b, h) }()
	cl, err := NewClient(a)
	if err != nil {
		t.Fatal(err)
	}
	a.Close() //nolint:errcheck // the client has its own duplicate, and the server sees its end
	return cl, func() error {
		cl.Close() //nolint:errcheck // ends the server
		return <-served
	}
}

func TestCall(t *testing.T) {
	cl, end := start(t, func(_ context.Context, method string, body []byte, file *os.File) (any, error) {
		var ref LeaseRef
		if err := Decode(body, &ref); err != nil {
			return nil, err
		}
		switch method {
		case "echo":
			return ref, nil
		case "refuse":
			return nil, fmt.Errorf("lease %s: %w", ref.Lease, &RemoteError{Code: CodeBusy, Text: "wait"})
		case "file":
			defer file.Close() //nolint:errcheck // test's file
			b, err := io.ReadAll(file)
			return LeaseRef{Lease: string(b)}, err
		}
		return nil, errors.New("no such method")
	})
	ctx := t.Context()

	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			want, got := LeaseRef{Lease: fmt.Sprint(i)}, LeaseRef{}
			if err := cl.Call(ctx, "echo", want, &got, nil); err != nil || got != want {
				t.Errorf("echo of %v = %v, %v", want, got, err)
			}
		})
	}
	wg.Wait()

	var remote *RemoteError
	err := cl.Call(ctx, "refuse", LeaseRef{"x"}, &Empty{}, nil)
	if !errors.As(err, &remote) || remote.Code != CodeBusy || remote.Text != "lease x: wait" {
		t.Errorf("refuse: %v, want code %s and the whole text", err, CodeBusy)
	}
	err = cl.Call(ctx, "what", LeaseRef{"x"}, &Empty{}, nil)
	if !errors.As(err, &remote) || remote.Code != CodeInternal {
		t.Errorf("unknown method: %v, want code %s", err, CodeInternal)
	}
	err = cl.Call(ctx, "echo", map[string]int{"leese": 1}, &Empty{}, nil)
	if err == nil || !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("unknown field: %v, want it named", err)
	}

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.WriteString("through a pipe") //nolint:errcheck // read back below
	w.Close()                       //nolint:errcheck // read back below
	var got LeaseRef
	if err := cl.Call(ctx, "file", LeaseRef{}, &got, r); err != nil || got.Lease != "through a pipe" {
		t.Errorf("file: %q, %v", got.Lease, err)
	}
	r.Close() //nolint:errcheck // test's file

	if err := end(); err != nil {
		t.Errorf("Serve = %v after an orderly end", err)
	}
	if err := cl.Call(ctx, "echo", LeaseRef{}, &got, nil); !errors.Is(err, ErrGone) {
		t.Errorf("call after the end: %v, want ErrGone", err)
	}
}

// A call in progress when the other side dies must not hang.
func TestGoneDuringCall(t *testing.T) {
	a, b := pair(t)
	cl, err := NewClient(a)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(b.Fd())
	time.AfterFunc(20*time.Millisecond, func() { syscall.Shutdown(fd, syscall.SHUT_RDWR) }) //nolint:errcheck // the peer dies
	if err := cl.Call(t.Context(), "echo", Empty{}, &Empty{}, nil); !errors.Is(err, ErrGone) {
		t.Errorf("call = %v, want ErrGone", err)
	}
	cl.Close() //nolint:errcheck // test's end
}

func TestCallGivenUp(t *testing.T) {
	hold := make(chan struct{})
	cl, end := start(t, func(ctx context.Context, _ string, _ []byte, _ *os.File) (any, error) {
		<-ctx.Done() // ends with the connection
		close(hold)
		return Empty{}, nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := cl.Call(ctx, "wait", Empty{}, &Empty{}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call = %v, want deadline exceeded", err)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	<-hold
}

func TestBadFrames(t *testing.T) {
	long, err := encode(&envelope{ID: 1, Method: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for name, frame := range map[string]string{
		"magic":     "HTTP\x01\x00\x00\x00{",
		"empty":     "VIPC\x00\x00\x00\x00",
		"oversized": "VIPC\x01\x00\x80\x00",
		"not json":  "VIPC\x03\x00\x00\x00abc",
		"trailing":  "VIPC\x04\x00\x00\x00{}{}",
		"unknown":   "VIPC\x07\x00\x00\x00{\"a\":1}",
		"half":      string(long[:len(long)-1]),
		"half head": "VIP",
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			a.WriteString(frame) //nolint:errcheck // the server reports
			a.Close()            //nolint:errcheck // half a frame ends here
			err := Serve(t.Context(), b, func(context.Context, string, []byte, *os.File) (any, error) {
				t.Error("a handler was called")
				return nil, nil
			})
			if err == nil {
				t.Error("Serve returned nil")
			}
		})
	}
}

// FuzzServe feeds the engine's side whatever control could send.
func FuzzServe(f *testing.F) {
	good, err := encode(&envelope{ID: 7, Method: MethodLeaseOpen, Body: json.RawMessage(`{"lease":"abc","pieces":[{"drive":"d","first":1,"count":2}]}`)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, good...))
	f.Add([]byte("VIPC\x02\x00\x00\x00{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 64<<10 {
			return // more than the socket holds without a reader
		}
		a, b := pair(t)
		if _, err := a.Write(in); err != nil {
			t.Fatal(err)
		}
		syscall.Shutdown(int(a.Fd()), syscall.SHUT_WR) //nolint:errcheck // the input ends here
		calls := 0
		var mu sync.Mutex
		err := Serve(t.Context(), b, func(_ context.Context, _ string, body []byte, file *os.File) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if file != nil {
				t.Error("a descriptor out of nowhere")
			}
			var req LeaseOpenRequest
			return Empty{}, Decode(body, &req)
		})
		if most := len(in) / headerSize; calls > most {
			t.Errorf("%d calls from %d bytes (%v)", calls, len(in), err)
		}
	})
}

// TestNewerEngine: in the midst of an upgrade the engine may say more than
// control understands. What control asks is understood whole, or refused.
func TestNewerEngine(t *testing.T) {
	cl, end := start(t, func(_ context.Context, _ string, body []byte, _ *os.File) (any, error) {
		var req Empty
		return map[string]any{"lease": "x", "colour": "blue"}, Decode(body, &req)
	})
	var got LeaseRef
	if err := cl.Call(t.Context(), "any", Empty{}, &got, nil); err != nil || got.Lease != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := cl.Call(t.Context(), "any", LeaseRef{"x"}, &got, nil); err == nil {
		t.Error("the engine took a field that it does not know")
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}
