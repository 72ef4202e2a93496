package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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

// saying is the end of a pipe from which text can be read.
func saying(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() }) //nolint:errcheck // only read
	if _, err := w.WriteString(text); errors.Join(err, w.Close()) != nil {
		t.Fatal(err)
	}
	return r
}

// TestTooManyFiles: a frame with more descriptors than it may have ends the
// connection, and none of them stays open.
func TestTooManyFiles(t *testing.T) {
	frame, err := encode(&envelope{ID: 1, Method: "m", Body: json.RawMessage("{}")})
	if err != nil {
		t.Fatal(err)
	}
	for _, count := range []int{MaxFiles + 1, 200} { // more than may come; more than there is room to receive
		a, b := pair(t)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		rights := syscall.UnixRights(slices.Repeat([]int{int(w.Fd())}, count)...)
		if err := errors.Join(syscall.Sendmsg(int(a.Fd()), frame, rights, nil, 0), w.Close()); err != nil {
			t.Fatal(err)
		}
		err = Serve(t.Context(), b, func(context.Context, string, []byte, []*os.File) (any, error) {
			t.Error("a handler was called")
			return nil, nil
		})
		if !errors.Is(err, ErrFrame) {
			t.Errorf("%d descriptors: %v", count, err)
		}
		if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("%d descriptors: one is still open: %v", count, err)
		}
		r.Close() //nolint:errcheck // only read
	}
}

func TestCall(t *testing.T) {
	cl, end := start(t, func(_ context.Context, method string, body []byte, files []*os.File) (any, error) {
		var ref LeaseRef
		if err := Decode(body, &ref); err != nil {
			return nil, err
		}
		switch method {
		case "echo":
			return ref, nil
		case "refuse":
			return nil, fmt.Errorf("lease %s: %w", ref.Lease, &RemoteError{Code: CodeBusy, Text: "wait"})
		case "files":
			var all []byte
			for _, f := range files {
				b, err := io.ReadAll(f)
				if all = append(all, b...); errors.Join(err, f.Close()) != nil {
					return nil, err
				}
			}
			return LeaseRef{Lease: string(all)}, nil
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

	var got LeaseRef
	for want, files := range map[string][]*os.File{
		"":        {nil, nil},
		"one":     {saying(t, "one")},
		"one two": {saying(t, "one"), nil, saying(t, " two")}, // in this order
		"abcd":    {saying(t, "a"), saying(t, "b"), saying(t, "c"), saying(t, "d")},
	} {
		if err := cl.Call(ctx, "files", LeaseRef{}, &got, files...); err != nil || got.Lease != want {
			t.Errorf("files: %q, %v, want %q", got.Lease, err, want)
		}
	}
	many := slices.Repeat([]*os.File{saying(t, "")}, MaxFiles+1)
	if err := cl.Call(ctx, "files", LeaseRef{}, &got, many...); err == nil {
		t.Errorf("%d files were sent", len(many))
	}

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
	cl, end := start(t, func(ctx context.Context, _ string, _ []byte, _ []*os.File) (any, error) {
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
			err := Serve(t.Context(), b, func(context.Context, string, []byte, []*os.File) (any, error) {
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
		err := Serve(t.Context(), b, func(_ context.Context, _ string, body []byte, files []*os.File) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if files != nil {
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
	cl, end := start(t, func(_ context.Context, _ string, body []byte, _ []*os.File) (any, error) {
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
