package devices

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/sys"
)

// dialDelays say how long is waited before the daemon is called again.
type dialDelays struct {
	first, last time.Duration // doubles from first to last
	settled     time.Duration // a connection that lasted longer begins anew with first
}

// A connection that another process of this kind takes over and over is not settled:
// the two then take it from each other once in a second at most.
var dialing = dialDelays{first: 100 * time.Millisecond, last: time.Second, settled: 2 * time.Second}

// serve connects to the daemon, again and again, and answers it until ctx ends.
func (c *Config) serve(ctx context.Context, h ipc.Handler) {
	var calls sync.WaitGroup
	defer calls.Wait()
	h = prompt(h, &calls)
	said := ""
	for wait := c.patience.first; ; wait = min(2*wait, c.patience.last) {
		began := time.Now()
		err := c.converse(ctx, h)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > c.patience.settled {
			wait, said = c.patience.first, ""
		}
		if err != nil && !away(err) && err.Error() != said {
			said = err.Error()
			c.Log.Warn("no connection to the daemon", "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// away reports whether no daemon listens yet, or any more.
func away(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// converse answers the daemon over one connection.
func (c *Config) converse(ctx context.Context, h ipc.Handler) error {
	owner, err := sys.OwnerOf(c.RunDir) // each time: the folder may have been made since
	if err != nil {
		return fmt.Errorf("looking for the daemon's folder: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.Socket)
	if err != nil {
		return err
	}
	f, err := conn.(*net.UnixConn).File()
	err = errors.Join(err, conn.Close())
	if f != nil {
		defer f.Close() //nolint:errcheck // Serve has its own
	}
	if err != nil {
		return err
	}
	if err := mayAsk(f, 0, uint32(os.Geteuid()), owner); err != nil {
		return fmt.Errorf("%s: %w", c.Socket, err)
	}
	return ipc.Serve(ctx, f, h)
}

// mayAsk returns an error unless one of the users listens at the other end of the
// connection f: who may make files in the daemon's folder need not be the daemon.
func mayAsk(f *os.File, users ...uint32) error {
	fd, err := sys.Descriptor(f)
	if err != nil {
		return err
	}
	uid, err := sys.PeerUID(fd) // of listen(2), at this end
	if err != nil {
		return err
	}
	for _, u := range users {
		if uid == u {
			return nil
		}
	}
	return fmt.Errorf("uid %d may not ask for devices", uid)
}

// prompt is h, except that a call whose connection has ended returns at once, and is
// done to its end apart: the kernel may take long, and the next connection must not
// wait for it.
func prompt(h ipc.Handler, calls *sync.WaitGroup) ipc.Handler {
	type answer struct {
		body any
		err  error
	}
	return func(ctx context.Context, method string, body []byte, files []*os.File) (any, error) {
		answers := make(chan answer)
		calls.Go(func() {
			v, err := h(ctx, method, body, files)
			select {
			case answers <- answer{v, err}:
			case <-ctx.Done():
				if w, ok := v.(ipc.WithFiles); ok {
					for _, f := range w.Files {
						f.Close() //nolint:errcheck // nobody wants it any more
					}
				}
			}
		})
		select {
		case a := <-answers:
			return a.body, a.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
