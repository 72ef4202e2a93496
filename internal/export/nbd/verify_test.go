package nbd

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vacate/internal/nbdclient"
)

// A host keeps the listening socket while servers come and go, as the keeper does.
type host struct {
	t        *testing.T
	path     string
	listener *os.File
	cfg      Config
	s        *Server
}

func newHost(t *testing.T, cfg Config) *host {
	t.Helper()
	h := &host{t: t, path: filepath.Join(t.TempDir(), "s"), cfg: cfg}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if h.listener, err = l.File(); err != nil {
		t.Fatal(err)
	}
	h.serve(nil)
	t.Cleanup(func() {
		stop(t, h.s)
		h.listener.Close()
	})
	return h
}

func (h *host) serve(passed []Passed) {
	s, err := Serve(h.listener, h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	h.s = s
	for _, p := range passed {
		if err := errors.Join(s.Adopt(p.File, p.Terms), p.File.Close()); err != nil {
			h.t.Error(err)
		}
	}
}

// upgrade hands over to another server.
func (h *host) upgrade() { h.serve(leave(h.t, h.s)) }

// kill lets another server follow one that cut off its clients.
func (h *host) kill() {
	stop(h.t, h.s)
	h.serve(nil)
}

// TestVerify runs the load that checks every byte while servers follow each
// other: a hand-over breaks no connection, and a cut loses nothing.
func TestVerify(t *testing.T) {
	for _, tt := range []struct {
		name    string
		async   bool
		simple  bool
		kills   bool
		upgrade bool
	}{
		{name: "hand-over", upgrade: true},
		{name: "hand-over, async, simple replies", upgrade: true, async: true, simple: true},
		{name: "kill", kills: true, async: true},
		{name: "both, simple replies", kills: true, upgrade: true, simple: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMemory(16 << 20)
			m.async = tt.async
			h := newHost(t, m.config())
			v := &nbdclient.Verify{
				Target: h.path, Lease: "a", Seed: rand.Uint64(), Depth: 8, MaxRequest: 600 << 10, Patience: 20 * time.Second,
				Options: nbdclient.Options{SimpleReplies: tt.simple}, Gap: 20 * time.Millisecond,
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan struct{})
			var r nbdclient.Report
			var err error
			go func() {
				defer close(ended)
				r, err = v.Run(ctx)
			}()
			eventually(t, "the load has begun", func() bool { return v.Snapshot().Requests > 0 })
			kills, upgrades := 0, 0
			for kills+upgrades < 30 {
				time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
				if tt.upgrade && (!tt.kills || rand.IntN(2) == 0) {
					h.upgrade()
					upgrades++
				} else {
					h.kill()
					kills++
				}
			}
			cancel()
			<-ended
			t.Logf("%d hand-overs, %d kills: %v", upgrades, kills, &r)
			if err := errors.Join(err, r.Err()); err != nil {
				t.Errorf("seed %d: %v", v.Seed, err)
			}
			if r.Verified != 16<<20 || r.Requests == 0 || r.Reads == 0 || r.Writes == 0 {
				t.Errorf("seed %d: %v", v.Seed, &r)
			}
			if !tt.kills && (r.Reconnects != 0 || r.Attempts != 0) {
				t.Errorf("seed %d: %d connections broke (%v), want none", v.Seed, r.Reconnects, r.LastBreak)
			}
			if tt.kills && r.Reconnects == 0 {
				t.Errorf("seed %d: no connection broke in %d kills", v.Seed, kills)
			}
		})
	}
}
