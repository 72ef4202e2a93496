package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// maxCalls bounds the calls that are carried out at once on one connection: far
// more than the leases of a host, each of which may wait for a drive that hangs;
// further frames wait in the socket.
const maxCalls = 4096

// A Handler carries out one call. The files that came with it, in their order, are
// the handler's to close. An error that is, or wraps, a [*RemoteError] keeps its
// code; any other is sent as [CodeInternal]. An answer with files is a [WithFiles].
type Handler func(ctx context.Context, method string, body []byte, files []*os.File) (any, error)

// Serve answers calls on the socket f, which it duplicates, until the other
// side closes it or ctx ends, and then waits for the calls in progress, whose
// context is cancelled. It returns nil for an orderly end.
func Serve(ctx context.Context, f *os.File, h Handler) error {
	c, err := newConn(f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { c.uc.Close() }) //nolint:errcheck // wakes the reader below
	var calls sync.WaitGroup
	defer func() {
		stop()
		cancel()
		c.uc.Close() //nolint:errcheck // nothing is left to flush
		calls.Wait()
	}()
	free := make(chan struct{}, maxCalls)
	for {
		e, files, err := c.read()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		free <- struct{}{}
		calls.Go(func() {
			defer func() { <-free }()
			answer, files := carryOut(ctx, h, e, files)
			if err := c.write(answer, files); err != nil {
				c.uc.Close() //nolint:errcheck // ends the reader, which reports
			}
			closeFiles(files)
		})
	}
}

// WithFiles is an answer that files come along with. They are closed when it is sent.
type WithFiles struct {
	Body  any
	Files []*os.File
}

// carryOut returns the answer to e, and the files that go with it.
func carryOut(ctx context.Context, h Handler, e *envelope, files []*os.File) (answer *envelope, out []*os.File) {
	answer = &envelope{ID: e.ID}
	v, err := h(ctx, e.Method, e.Body, files)
	if w, ok := v.(WithFiles); ok {
		v, out = w.Body, w.Files
	}
	if err == nil {
		answer.Body, err = json.Marshal(v)
	}
	if err == nil && len(answer.Body) > MaxBody-1024 {
		err = fmt.Errorf("ipc: the answer to %q is %d bytes long, the bound is %d", e.Method, len(answer.Body), MaxBody)
	}
	if err != nil {
		closeFiles(out)
		answer.Body, out = nil, nil
		if !errors.As(err, &answer.Error) {
			answer.Error = &RemoteError{Code: CodeInternal}
		}
		answer.Error = &RemoteError{Code: answer.Error.Code, Text: err.Error()}
	}
	return answer, out
}
