// Package server answers the daemon's API: the services of vacate.v1 on a unix
// socket, and /livez, /readyz, /metrics and pprof on another.
//
// # How a call is answered
//
//  1. The listener learns who connects from the kernel, and admits a bounded
//     number of connections for each uid.
//  2. The request is read whole, bounded in time and size, before anything is
//     done with it. No call takes a stream, so none needs more.
//  3. The number of calls at work is bounded for each uid.
//  4. The table in roles.go says what the caller's role may do with the call.
//  5. The handler asks the [Node], and turns its errors into codes.
//  6. A call that changes something leaves a line in the log, however it ended.
package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect"

	"vacate/api/vacate/v1/vacatev1connect"
)

// Limits of the API socket. What is beyond is refused; nobody waits.
const (
	maxRequestBytes = 64 << 10         // a request's body
	maxHeaderBytes  = 16 << 10         // its headers
	readTimeout     = 10 * time.Second // to send headers, and again to send the body
	idleTimeout     = 2 * time.Minute  // between two requests on a connection
	connsPerUID     = 64               // connections of one uid that is no operator
	connsOperator   = 512              // connections of one operator
	callsPerUID     = 64               // calls at work for one uid, watches included
)

// Config is what a [Server] needs. Zero means the default, where there is one.
type Config struct {
	Node      Node         // required
	Devices   Devices      // block devices; nil: their calls are "unsupported"
	Proof     Proof        // records, log, certificates, keys; nil: their calls are "unavailable"
	UID       uint32       // the daemon's own uid
	Operators []uint32     // further uids that may call everything
	Auditors  []uint32     // uids that may see everything
	Log       *slog.Logger // default: slog.Default()

	// Processes, DangerZone (config.Config.DangerInForce) and Warnings (of the
	// host: swap, core dumps) are shown by Status.
	Processes  Processes
	DangerZone []string
	Warnings   []string

	// End is called when Stop was granted; it must not wait. The caller then ends
	// the context of Serve, which lets the answer go out first. May be nil, where
	// the Node's Stop sees to it.
	End func()
	// Upgrade begins the upgrade, or returns the keeper's errno, wrapped. Nil: there
	// is none.
	Upgrade func() error
	// Observe is told about each call that was answered. May be nil.
	Observe func(call, code string, took time.Duration)
}

// Processes are what control was told about the daemon's processes, itself
// included. The engine tells about itself.
type Processes struct {
	Control, Keeper string // versions
	LastUpgrade     string // how it ended: "done", "failed: …", or empty
	Binary          string // path of the program
}

// A Server answers the API. Make one with [New]; it may serve any number of
// listeners.
type Server struct {
	cfg  Config
	mux  *http.ServeMux
	busy calls
	die  func(v any, stack []byte)

	bodyTimeout time.Duration

	mu          sync.Mutex
	lastUpgrade string // as Processes has it, and what was refused since
}

// New makes a server.
func New(cfg Config) (*Server, error) {
	if cfg.Node == nil {
		return nil, errors.New("server: a node is required")
	}
	if cfg.End == nil {
		cfg.End = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux(), busy: calls{n: make(map[uint32]int)}, die: die, bodyTimeout: readTimeout,
		lastUpgrade: cfg.Processes.LastUpgrade}
	opts := []connect.HandlerOption{
		connect.WithInterceptors(interceptor{s}),
		connect.WithReadMaxBytes(maxRequestBytes),
		strictCodecs(),
		connect.WithCompression("gzip", nil, nil), // messages are small, and never leave the host
	}
	s.mux.Handle(vacatev1connect.NewLeaseServiceHandler(leases{s}, opts...))
	s.mux.Handle(vacatev1connect.NewDriveServiceHandler(drives{s}, opts...))
	s.mux.Handle(vacatev1connect.NewNodeServiceHandler(nodes{s}, opts...))
	s.mux.Handle(vacatev1connect.NewCertificateServiceHandler(certificates{s}, opts...))
	s.mux.Handle(vacatev1connect.NewTenantServiceHandler(tenants{s}, opts...))
	s.mux.Handle(vacatev1connect.NewTrustServiceHandler(trust{s}, opts...))
	s.mux.Handle(vacatev1connect.NewLogServiceHandler(translog{s}, opts...))
	return s, nil
}

// Serve answers calls on a unix socket until ctx is done; then it stops
// accepting, gives calls at work grace to end, and returns nil. It closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener, grace time.Duration) error {
	return serve(ctx, newGate(ln, s.connections), s.handler(ctx), s.cfg.Log, grace)
}

// connections is how many a uid may have.
func (s *Server) connections(uid uint32) int {
	if s.roleOf(uid) == Operator {
		return connsOperator
	}
	return connsPerUID
}

// serve runs an HTTP server until ctx is done.
func serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger, grace time.Duration) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)            // curl, and connect's own protocol
	protocols.SetUnencryptedHTTP2(true) // gRPC
	srv := &http.Server{
		Handler:           h,
		ConnContext:       connContext,
		Protocols:         &protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: callsPerUID},
		ReadHeaderTimeout: readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what clients do wrong
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serving %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := srv.Shutdown(stop)
	if errors.Is(err, context.DeadlineExceeded) {
		err = srv.Close() // who is still here was told by the end of its context
	}
	if serr := <-ended; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// handler is the services behind what every request passes. Watches end with
// ctx; other calls are left to end by themselves.
func (s *Server) handler(ctx context.Context) http.Handler {
	errw := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			v := recover()
			if err, ok := v.(error); v != nil && !(ok && errors.Is(err, http.ErrAbortHandler)) {
				s.die(v, debug.Stack())
			}
		}()
		refuse := func(code connect.Code, format string, args ...any) {
			err := connect.NewError(code, fmt.Errorf(format, args...))
			if !errw.IsSupported(r) || errw.Write(w, r, err) != nil {
				http.Error(w, err.Message(), http.StatusBadRequest)
			}
		}
		p, ok := peerOf(r.Context())
		if !ok {
			refuse(connect.CodePermissionDenied, "the peer of this connection is unknown; connect over the unix socket")
			return
		}
		if !s.busy.enter(p.UID) {
			refuse(connect.CodeResourceExhausted, "uid %d has %d calls at work; wait until one ends", p.UID, callsPerUID)
			return
		}
		defer s.busy.leave(p.UID)
		if err := readWhole(w, r, s.bodyTimeout); err != nil {
			refuse(connect.CodeInvalidArgument, "reading the request: %w", err)
			return
		}
		s.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), endKey{}, ctx)))
	})
}

// endKey is the key of the context that ends when the server stops.
type endKey struct{}

// readWhole reads a request's body into memory, bounded in time and size, so
// that a slow caller holds nothing but its own connection.
func readWhole(w http.ResponseWriter, r *http.Request, limit time.Duration) error {
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestBytes+16)) // 16 for framing
	if err != nil {
		return err
	}
	if err := rc.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// die ends the process: a handler that panicked may have left a lock held, and
// net/http would go on as if nothing had been. Guests do not notice: the data
// plane is another process.
func die(v any, stack []byte) {
	go panic(fmt.Sprintf("server: a handler panicked: %v\n%s", v, stack))
	select {}
}

// calls counts the calls at work by uid.
type calls struct {
	mu sync.Mutex
	n  map[uint32]int
}

func (c *calls) enter(uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[uid] >= callsPerUID {
		return false
	}
	c.n[uid]++
	return true
}

func (c *calls) leave(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n[uid]--; c.n[uid] == 0 {
		delete(c.n, uid)
	}
}
