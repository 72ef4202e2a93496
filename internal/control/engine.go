package control

import (
	"context"
	"fmt"
	"os"
	"sync"

	"vacate/internal/ipc"
)

// An engine calls the engine that there is now, over the socket that the keeper
// made. It is a [node.Engine]. A call on an engine whose place another took ends
// with [ipc.ErrGone], as does one while there is none. Its methods may be called
// from any goroutine.
type engine struct {
	mu      sync.Mutex
	c       *ipc.Client   // nil while there was none yet
	changed chan struct{} // closed and replaced when c is
	store   string        // where the keys lie, as the last one said that answered
}

func newEngine() *engine { return &engine{changed: make(chan struct{})} }

// swap calls the engine at the other end of f, which it closes, from now on.
func (e *engine) swap(f *os.File) error {
	defer f.Close() //nolint:errcheck // the client has its own
	c, err := ipc.NewClient(f)
	if err != nil {
		return fmt.Errorf("using the connection to a new engine: %w", err)
	}
	e.set(c)
	return nil
}

// close ends every call, and all that come.
func (e *engine) close() { e.set(nil) }

func (e *engine) set(c *ipc.Client) {
	e.mu.Lock()
	old := e.c
	e.c = c
	close(e.changed)
	e.changed = make(chan struct{})
	e.mu.Unlock()
	if old != nil {
		old.Close() //nolint:errcheck // its calls end, which is all that is wanted
	}
}

// keyStore is where the engine said that keys lie, "" before one did.
func (e *engine) keyStore() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.store
}

// now is the engine's client, or nil, and a channel that is closed when another
// takes its place.
func (e *engine) now() (*ipc.Client, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.c, e.changed
}

func call[Resp any](ctx context.Context, e *engine, method string, req any, files ...*os.File) (Resp, error) {
	var resp Resp
	c, _ := e.now()
	if c == nil {
		return resp, fmt.Errorf("%w: the keeper has not started one yet", ipc.ErrGone)
	}
	err := c.Call(ctx, method, req, &resp, files...)
	return resp, err
}

func (e *engine) Hello(ctx context.Context) (ipc.Hello, error) {
	h, err := call[ipc.Hello](ctx, e, ipc.MethodHello, ipc.Empty{})
	if err == nil {
		e.mu.Lock()
		e.store = h.KeyStore
		e.mu.Unlock()
	}
	return h, err
}

func (e *engine) Inspect(ctx context.Context, req ipc.InspectRequest) (ipc.Inspection, error) {
	return call[ipc.Inspection](ctx, e, ipc.MethodInspect, req)
}

func (e *engine) Enroll(ctx context.Context, req ipc.EnrollRequest) (ipc.DriveInfo, error) {
	return call[ipc.DriveInfo](ctx, e, ipc.MethodEnroll, req)
}

func (e *engine) OpenDrive(ctx context.Context, req ipc.DriveOpenRequest) (ipc.DriveInfo, error) {
	return call[ipc.DriveInfo](ctx, e, ipc.MethodDriveOpen, req)
}

func (e *engine) CloseDrive(ctx context.Context, req ipc.DriveCloseRequest) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodDriveClose, req)
	return err
}

func (e *engine) OpenLease(ctx context.Context, req ipc.LeaseOpenRequest, listeners ...*os.File) (ipc.LeaseOpened, error) {
	return call[ipc.LeaseOpened](ctx, e, ipc.MethodLeaseOpen, req, listeners...)
}

func (e *engine) LimitLease(ctx context.Context, req ipc.LeaseLimitRequest) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodLeaseLimit, req)
	return err
}

func (e *engine) CloseLease(ctx context.Context, id string) (ipc.Erasure, error) {
	return call[ipc.Erasure](ctx, e, ipc.MethodLeaseClose, ipc.LeaseRef{Lease: id})
}

func (e *engine) Drain(ctx context.Context, id string) error {
	_, err := call[ipc.Empty](ctx, e, ipc.MethodLeaseDrain, ipc.LeaseRef{Lease: id})
	return err
}

func (e *engine) Leases(ctx context.Context) (ipc.LeaseList, error) {
	return call[ipc.LeaseList](ctx, e, ipc.MethodLeaseList, ipc.Empty{})
}

func (e *engine) Losses(ctx context.Context, seen uint64) (ipc.Losses, error) {
	return call[ipc.Losses](ctx, e, ipc.MethodLosses, ipc.LossesRequest{Seen: seen})
}

func (e *engine) Stats(ctx context.Context) (ipc.Stats, error) {
	return call[ipc.Stats](ctx, e, ipc.MethodStats, ipc.Empty{})
}
