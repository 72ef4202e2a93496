package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
)

// A Peer is the process at the other end of a unix socket, as the kernel says
// (SO_PEERCRED, unix(7)): who it was when it connected.
type Peer struct {
	UID uint32
	PID int32
}

type peerKey struct{}

// peerOf is the peer of the connection that a request came over.
func peerOf(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

func credentials(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *syscall.Ucred
	var sockErr error
	if err := raw.Control(func(fd uintptr) {
		cred, sockErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if sockErr != nil {
		return Peer{}, fmt.Errorf("reading peer credentials: %w", sockErr)
	}
	return Peer{UID: cred.Uid, PID: cred.Pid}, nil
}

// A gate is a listener that knows who connects, and admits a bounded number of
// connections for each uid, so that one user cannot keep the others out.
// Connections over the limit are closed at once.
type gate struct {
	net.Listener
	limit func(uid uint32) int // 0 refuses
	who   func(*net.UnixConn) (Peer, error)

	mu   sync.Mutex
	open map[uint32]int // connections that are open, by uid
}

func newGate(ln net.Listener, limit func(uid uint32) int) *gate {
	return &gate{Listener: ln, limit: limit, who: credentials, open: make(map[uint32]int)}
}

// Accept waits for a connection that is admitted.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		u, ok := c.(*net.UnixConn)
		if !ok {
			return nil, errors.Join(errors.New("accepting: not a unix socket"), c.Close())
		}
		p, err := g.who(u)
		if err != nil || !g.enter(p.UID) {
			c.Close() // who it is is unknown, or it has enough already
			continue
		}
		return &conn{UnixConn: u, peer: p, gate: g}, nil
	}
}

func (g *gate) enter(uid uint32) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[uid] >= g.limit(uid) {
		return false
	}
	g.open[uid]++
	return true
}

func (g *gate) leave(uid uint32) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open[uid]--; g.open[uid] == 0 {
		delete(g.open, uid)
	}
}

// A conn is a connection whose peer is known.
type conn struct {
	*net.UnixConn
	peer Peer
	gate *gate
	once sync.Once
}

func (c *conn) Close() error {
	c.once.Do(func() { c.gate.leave(c.peer.UID) })
	return c.UnixConn.Close()
}

// connContext hands the peer to the requests of its connection (http.Server).
func connContext(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*conn); ok {
		return context.WithValue(ctx, peerKey{}, c.peer)
	}
	return ctx
}

// Listen makes a unix socket with the given permissions. A socket that a dead
// daemon left is replaced; one that somebody listens on, and anything that is
// not a socket, is left alone and is an error.
func Listen(path string, perm os.FileMode) (net.Listener, error) {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("%s exists and is not a socket; move it away, or choose another run_dir", path)
	default:
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening: %w", err)
	}
	if err := os.Chmod(path, perm); err != nil {
		return nil, errors.Join(fmt.Errorf("setting permissions of the socket: %w", err), ln.Close())
	}
	return ln, nil
}

func removeStale(path string) error {
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return errors.Join(fmt.Errorf("another daemon listens on %s; stop it first (vacate stop --addr %s)", path, path), c.Close())
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	default:
		return fmt.Errorf("looking at the socket that is there already: %w", err)
	}
}
