package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"vacate/internal/ipc"
)

// A link is the connection to the devices process. It is made when somebody calls,
// and made anew when it is gone.
type link struct {
	socket string
	grace  time.Duration
	fresh  func() // called for each new connection

	turn chan struct{} // capacity 1: full while somebody uses what is below
	c    *ipc.Client   // nil: none
	till time.Time     // until then the process is expected to come
	shut bool
}

func newLink(socket string, grace time.Duration, fresh func()) link {
	return link{socket: socket, grace: grace, fresh: fresh, turn: make(chan struct{}, 1), till: time.Now().Add(grace)}
}

// client returns a connection that is up. An error wraps errAbsent when nobody listens.
func (k *link) client(ctx context.Context) (*ipc.Client, error) {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if k.c != nil {
		select {
		case <-k.c.Done():
			k.c.Close() //nolint:errcheck // the other side has ended it
			k.c, k.till = nil, time.Now().Add(k.grace)
		default:
			return k.c, nil
		}
	}
	if k.shut {
		return nil, &absent{errors.New("the daemon is ending")}
	}
	c, err := dial(ctx, k.socket)
	if err != nil {
		return nil, err
	}
	k.c = c
	k.fresh()
	return c, nil
}

// expected reports whether a devices process that is not there may be coming.
func (k *link) expected() bool {
	k.turn <- struct{}{}
	defer func() { <-k.turn }()
	return k.c != nil || time.Now().Before(k.till)
}

// now is the connection, or nil.
func (k *link) now() *ipc.Client {
	k.turn <- struct{}{}
	defer func() { <-k.turn }()
	return k.c
}

// close ends the connection, for good.
func (k *link) close() {
	k.turn <- struct{}{}
	defer func() { <-k.turn }()
	k.shut = true
	if k.c != nil {
		k.c.Close() //nolint:errcheck // calls end, which is all that is wanted
		k.c = nil
	}
}

func dial(ctx context.Context, socket string) (*ipc.Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, os.ErrPermission) {
			return nil, &absent{err}
		}
		return nil, &absent{}
	}
	defer conn.Close() //nolint:errcheck // the client has its own
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return nil, fmt.Errorf("using the connection to the devices process: %w", err)
	}
	defer f.Close() //nolint:errcheck // likewise
	return ipc.NewClient(f)
}

// call calls the devices process.
func call[Resp any](ctx context.Context, a *Attacher, method string, req any) (Resp, error) {
	resp, files, err := callFiles[Resp](ctx, a, method, req)
	for _, f := range files {
		f.Close() //nolint:errcheck // nobody asked for it
	}
	return resp, err
}

func callFiles[Resp any](ctx context.Context, a *Attacher, method string, req any) (resp Resp, files []*os.File, err error) {
	c, err := a.link.client(ctx)
	if err != nil {
		return resp, nil, err
	}
	files, err = c.CallFiles(ctx, method, req, &resp)
	return resp, files, err
}

func (a *Attacher) hello(ctx context.Context) (ipc.DevicesHello, error) {
	return call[ipc.DevicesHello](ctx, a, ipc.MethodDeviceHello, ipc.Empty{})
}
