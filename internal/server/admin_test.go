package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vacate/internal/metrics"
)

func TestAdmin(t *testing.T) {
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "a")
	ln, err := Listen(sock, 0o666) // so that the peer's uid decides here, not the mode
	if err != nil {
		t.Fatal(err)
	}
	n := newFakeNode()
	m := metrics.New(metrics.Config{PerLease: true, Snapshot: func(ctx context.Context) metrics.Snapshot { return Snapshot(ctx, n, Processes{Control: "v1"}) }})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Admin{Node: n, Metrics: m.Handler(), Log: slog.New(slog.DiscardHandler)}.Serve(ctx, ln, time.Second)
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	h := dialer(t, sock, false)
	get := func(path string) (int, string) {
		t.Helper()
		res, err := h.Get("http://vacate" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(b)
	}
	expect := func(path string, code int, text string) {
		t.Helper()
		if c, b := get(path); c != code || !strings.Contains(b, text) {
			t.Errorf("%s: %d, want %d with %q:\n%.300s", path, c, code, text, b)
		}
	}
	expect("/livez", 200, "ok\n")
	expect("/readyz", 200, "ok\n")
	expect("/metrics", 200, "vacate_lease_reads_total{lease=\""+idOwn+"\"} 4\n")
	expect("/debug/pprof/goroutine?debug=1", 200, "goroutine profile")
	expect("/vacate.v1.LeaseService/List", 404, "")
	n.mu.Lock()
	n.engine = false
	n.mu.Unlock()
	expect("/livez", 200, "ok\n")
	expect("/readyz", http.StatusServiceUnavailable, "not ready: there is no engine\n")
	expect("/metrics", 200, "vacate_engine_up 0\n")
	c := dialAs(t, sock, uidTenant)
	defer c.Close()
	if b, err := io.ReadAll(c); len(b) != 0 {
		t.Errorf("another user was answered %q, %v", b, err)
	}
}
