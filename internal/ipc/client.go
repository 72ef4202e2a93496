package ipc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// ErrGone is wrapped by calls whose engine has ended, before or while it
// carried them out: the caller does not know whether it was done.
var ErrGone = errors.New("the engine is gone")

// An answer is what came for a call.
type answer struct {
	*envelope
	files []*os.File
}

// A Client calls the other side. It is safe for use by several goroutines.
type Client struct {
	c    *conn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer // one each, capacity 1
	err     error                  // set before done is closed
}

// NewClient speaks over the socket f, which it duplicates; the caller may
// close f. Close ends it.
func NewClient(f *os.File) (*Client, error) {
	c, err := newConn(f)
	if err != nil {
		return nil, err
	}
	cl := &Client{c: c, done: make(chan struct{}), waiting: map[uint64]chan answer{}}
	go cl.read()
	return cl, nil
}

// Close ends the connection and waits for the reader.
func (cl *Client) Close() error {
	err := cl.c.uc.Close()
	<-cl.done
	return err
}

// Done is closed when the other side is gone.
func (cl *Client) Done() <-chan struct{} { return cl.done }

// Call sends one request and files, of which those that are nil are left out, and
// waits for the answer, which it decodes into resp. The files stay the caller's. It returns a [*RemoteError] when the
// other side refused, and an error that wraps [ErrGone] when it went away.
// A call that is given up through ctx may still be carried out.
func (cl *Client) Call(ctx context.Context, method string, req, resp any, files ...*os.File) error {
	back, err := cl.CallFiles(ctx, method, req, resp, files...)
	closeFiles(back)
	return err
}

// CallFiles is Call, and returns the files that came with the answer. They are the
// caller's.
func (cl *Client) CallFiles(ctx context.Context, method string, req, resp any, files ...*os.File) ([]*os.File, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("ipc: encoding %q: %w", method, err)
	}
	id, answers, err := cl.register()
	if err != nil {
		return nil, err
	}
	defer cl.forget(id, answers)
	files = slices.DeleteFunc(slices.Clone(files), func(f *os.File) bool { return f == nil })
	if err := cl.c.write(&envelope{ID: id, Method: method, Body: body}, files); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrGone, err)
	}
	select {
	case a := <-answers:
		return a.result(resp)
	case <-cl.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("ipc: waiting for %q: %w", method, ctx.Err())
	}
	select { // the answer may have come right before the end
	case a := <-answers:
		return a.result(resp)
	default:
		return nil, cl.gone()
	}
}

func (a answer) result(resp any) ([]*os.File, error) {
	err := error(a.Error)
	if a.Error == nil {
		err = decodeAnswer(a.Body, resp)
	}
	if err != nil {
		closeFiles(a.files)
		return nil, err
	}
	return a.files, nil
}

func (cl *Client) register() (uint64, chan answer, error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrGone, cl.err)
	}
	cl.next++
	ch := make(chan answer, 1)
	cl.waiting[cl.next] = ch
	return cl.next, ch, nil
}

// forget gives up waiting; what has come and was not taken is dropped.
func (cl *Client) forget(id uint64, answers chan answer) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	delete(cl.waiting, id)
	select {
	case a := <-answers:
		closeFiles(a.files)
	default:
	}
}

func (cl *Client) gone() error {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return fmt.Errorf("%w: %w", ErrGone, cl.err)
}

func (cl *Client) read() {
	defer close(cl.done)
	for {
		e, files, err := cl.c.read()
		cl.mu.Lock()
		if err != nil {
			cl.err = err
			cl.mu.Unlock()
			return
		}
		if ch := cl.waiting[e.ID]; ch != nil {
			delete(cl.waiting, e.ID)
			ch <- answer{e, files}
			files = nil
		}
		closeFiles(files) // nobody waits for them
		cl.mu.Unlock()
	}
}
