package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/sys"
)

// Listen makes the socket to which the devices process connects, in place of one of an
// earlier control. Only root and this user can. It changes the umask of the whole
// process for a moment: nothing else may make files meanwhile.
func Listen(path string) (*net.UnixListener, error) {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("looking for an earlier control's socket: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is in the way of the daemon's socket and is not a socket: move it", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("removing an earlier control's socket: %w", err)
		}
	}
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listening for the process that makes block devices: %w", err)
	}
	return l, nil
}

// A link is the connection to the devices process, the newest of those that it made:
// one before belongs to a process that is ending.
type link struct {
	l     *net.UnixListener
	grace time.Duration
	fresh func() // called for each new connection
	log   *slog.Logger
	wg    sync.WaitGroup

	mu   sync.Mutex
	c    *ipc.Client   // nil: none
	came chan struct{} // closed when c is set, or never will be again
	till time.Time     // until then the process is expected to come
	shut bool
}

// newLink accepts connections, until close.
func newLink(l *net.UnixListener, grace time.Duration, fresh func(), log *slog.Logger) *link {
	k := &link{l: l, grace: grace, fresh: fresh, log: log, came: make(chan struct{}), till: time.Now().Add(grace)}
	k.wg.Go(k.accept)
	return k
}

func (k *link) accept() {
	for {
		conn, err := k.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			err = k.take(conn)
		}
		if err != nil {
			k.log.Warn("a devices process cannot connect", "error", err)
			time.Sleep(10 * time.Millisecond) // descriptors may be short
		}
	}
}

// take makes conn, which it closes, the connection.
func (k *link) take(conn *net.UnixConn) error {
	f, err := conn.File()
	if err := errors.Join(err, conn.Close()); err != nil {
		if f != nil {
			f.Close() //nolint:errcheck // the first error says more
		}
		return err
	}
	defer f.Close() //nolint:errcheck // the client has its own
	fd, err := sys.Descriptor(f)
	if err != nil {
		return err
	}
	if uid, err := sys.PeerUID(fd); err != nil || uid != 0 && uid != uint32(os.Geteuid()) {
		return errors.Join(err, fmt.Errorf("uid %d may not make devices", uid))
	}
	c, err := ipc.NewClient(f)
	if err != nil {
		return err
	}
	k.mu.Lock()
	if k.shut {
		k.mu.Unlock()
		return c.Close()
	}
	old := k.c
	k.c = c
	if old == nil {
		close(k.came)
	}
	k.wg.Go(func() { k.follow(c) })
	k.mu.Unlock()
	if old != nil {
		old.Close() //nolint:errcheck // calls end, and are made again
	}
	k.fresh()
	return nil
}

// follow forgets a connection that has ended.
func (k *link) follow(c *ipc.Client) {
	<-c.Done()
	k.mu.Lock()
	if k.c == c {
		k.c, k.till = nil, time.Now().Add(k.grace)
		if !k.shut {
			k.came = make(chan struct{})
		}
	}
	k.mu.Unlock()
	c.Close() //nolint:errcheck // the other side has ended it
}

// client returns the connection. Without one the error wraps errAbsent.
func (k *link) client() (*ipc.Client, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.shut:
		return nil, &absent{errors.New("the daemon is ending")}
	case k.c == nil:
		return nil, &absent{}
	}
	return k.c, nil
}

// expect waits for a connection while one may be coming, and reports whether there is
// one.
func (k *link) expect(ctx context.Context) bool {
	k.mu.Lock()
	came, t := k.came, time.NewTimer(time.Until(k.till))
	k.mu.Unlock()
	defer t.Stop()
	select {
	case <-came:
	default:
		select {
		case <-came:
		case <-t.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	_, err := k.client()
	return err == nil
}

// close ends the connection, and takes no other. It may be called again.
func (k *link) close() {
	k.mu.Lock()
	c := k.c
	if !k.shut {
		k.shut = true
		if c == nil {
			close(k.came)
		}
	}
	k.mu.Unlock()
	k.l.Close() //nolint:errcheck // ends accept
	if c != nil {
		c.Close() //nolint:errcheck // calls end, which is all that is wanted
	}
	k.wg.Wait()
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
	c, err := a.link.client()
	if err != nil {
		return resp, nil, err
	}
	files, err = c.CallFiles(ctx, method, req, &resp)
	return resp, files, err
}

func (a *Attacher) hello(ctx context.Context) (ipc.DevicesHello, error) {
	return call[ipc.DevicesHello](ctx, a, ipc.MethodDeviceHello, ipc.Empty{})
}
