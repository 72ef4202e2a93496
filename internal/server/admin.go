package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"time"
)

// Admin is the admin socket: probes, metrics and profiles, over HTTP. It has no
// roles: its socket belongs to the daemon (0600), and only root and the daemon's
// own uid are admitted.
type Admin struct {
	// Node tells whether the daemon is ready.
	Node Node
	// Metrics answers /metrics.
	Metrics http.Handler
	// Log takes what clients do wrong; default: slog.Default().
	Log *slog.Logger
}

// Serve answers requests on a unix socket until ctx is done. It closes ln.
func (a Admin) Serve(ctx context.Context, ln net.Listener, grace time.Duration) error {
	if a.Node == nil || a.Metrics == nil {
		return errors.New("server: an admin socket needs a node and metrics")
	}
	if a.Log == nil {
		a.Log = slog.Default()
	}
	own := uint32(os.Getuid())
	admit := func(uid uint32) int {
		if uid == 0 || uid == own {
			return connsPerUID
		}
		return 0
	}
	return serve(ctx, newGate(ln, admit), a.handler(), a.Log, grace)
}

func (a Admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", a.ready)
	mux.Handle("GET /metrics", a.Metrics)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // heap, goroutine, …; command lines are no secret here
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// ready says whether new leases are taken: 200, or 503 with the reason.
func (a Admin) ready(w http.ResponseWriter, _ *http.Request) {
	if st := a.Node.Status(); !st.Ready {
		http.Error(w, "not ready: "+st.ReadyWhy, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
