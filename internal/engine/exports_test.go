package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/export/vhostuser"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// The exports that a lease may have.
var (
	vhostAlone = ipc.Exports{NoNBD: true, VhostUser: true, Queues: 2}
	both       = ipc.Exports{VhostUser: true, ReadOnly: true, Queues: volatile.MaxQueues}
)

// socketsOf is how many sockets a lease with these exports has.
func socketsOf(x ipc.Exports) int {
	if x.VhostUser && !x.NoNBD {
		return 2
	}
	return 1
}

// answers reports whether somebody accepts at a socket.
func answers(path string) bool {
	c, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// TestExports: whichever exports a lease has, its record and the keeper say so, the
// next engine serves the same, and a close ends both.
func TestExports(t *testing.T) {
	for name, x := range map[string]ipc.Exports{"nbd": {}, "vhost-user": vhostAlone, "both": both} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			req := request(3, uuid, 0)
			req.Exports = x
			before := files(t)
			paths, err := h.tryOpen(req, socketsOf(x))
			check(t, err)
			for range 3 {
				rec, err := h.table.Get(3)
				check(t, err)
				if rec.Exports != toExports(x) || rec.State != volatile.StateOpen {
					t.Errorf("the record says %v, %+v", rec.State, rec.Exports)
				}
				tn, _, err := h.lease(req.Lease)
				check(t, err)
				eventually(t, "the lease is served", func() bool { tn.mu.Lock(); defer tn.mu.Unlock(); return tn.server != nil })
				if (tn.server.nbd == nil) != x.NoNBD || (tn.server.vhost != nil) != x.VhostUser {
					t.Errorf("it is served by %+v", tn.server)
				}
				h.keeper.set(func() {
					s := h.keeper.slots[3]
					if place := s.places[vhostuser.PlaceListener]; (place != nil) != x.VhostUser || (s.listener == nil) != x.NoNBD {
						t.Errorf("the keeper holds %v and %v", s.listener, place)
					}
				})
				for _, p := range paths {
					if !answers(p) {
						t.Errorf("nobody answers at %s", p)
					}
				}
				if !x.NoNBD {
					c, conn := dial(t, paths[0], nbdclient.Options{})
					_, err = c.WriteAt([]byte(strings.Repeat("x", 4096)), 4096)
					check(t, err)
					conn.Close()
				}
				h.restart()
			}
			er, err := h.close(req.Lease)
			check(t, err)
			if !er.ReadBack {
				t.Errorf("%+v", er)
			}
			h.drained(req.Lease)
			for _, p := range paths {
				if answers(p) {
					t.Errorf("somebody answers at %s after the close", p)
				}
			}
			eventually(t, "descriptors to be closed", func() bool { return files(t) <= before })
		})
	}
}

// TestExportsRefused: nothing is left of an opening whose exports make no sense, or
// of which one does not start.
func TestExportsRefused(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	for _, tt := range []struct {
		x       ipc.Exports
		sockets int
		want    string
	}{
		{ipc.Exports{NoNBD: true}, 1, "no export"},
		{ipc.Exports{NoNBD: true}, 0, "no export"},
		{ipc.Exports{Queues: 1}, 1, "without vhost-user"},
		{ipc.Exports{ReadOnly: true}, 1, "without vhost-user"},
		{ipc.Exports{VhostUser: true}, 2, "0 queues"},
		{ipc.Exports{VhostUser: true, Queues: -1}, 2, "-1 queues"},
		{ipc.Exports{VhostUser: true, Queues: volatile.MaxQueues + 1}, 2, "65 queues"},
		{ipc.Exports{VhostUser: true, Queues: 1 << 16}, 2, "65536 queues"},
		{both, 0, "without its listening socket"},
		{both, 1, "1 listening sockets, want 2"},
		{both, 3, "3 listening sockets, want 2"},
		{vhostAlone, 2, "2 listening sockets, want 1"},
		{ipc.Exports{}, 2, "2 listening sockets, want 1"},
	} {
		req := request(3, uuid, 0)
		req.Exports = tt.x
		_, err := h.tryOpen(req, tt.sockets)
		wantCode(t, err, ipc.CodeInvalid)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v with %d sockets: %v, want %q", tt.x, tt.sockets, err, tt.want)
		}
		h.wantNothing(3, 0)
	}
	// One export starts, and the other does not: it listens on no socket.
	req := request(3, uuid, 0)
	req.Exports = both
	listener, path := h.listen()
	body, err := json.Marshal(req)
	check(t, err)
	if _, err = h.Handle(t.Context(), ipc.MethodLeaseOpen, body, only(regular(h), listener)); err == nil || answers(path) {
		t.Errorf("opened with a file as a socket: %v", err)
	}
	h.wantNothing(3, 0)
	_, err = h.tryOpen(req, 2)
	check(t, err)
}

// TestL5PlaceMissing: a lease whose sockets the keeper does not hold is damage.
func TestL5PlaceMissing(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(3, uuid, 0)
	req.Exports = vhostAlone
	_, err := h.tryOpen(req, 1)
	check(t, err)
	h.crash()()
	check(t, h.keeper.Keep(3, vhostuser.PlaceListener, nil))
	h.takeOver()
	if _, _, err := h.lease(req.Lease); err == nil || !h.keys.Empty(3) {
		t.Errorf("an open lease without a socket is taken over: %v, key destroyed: %v", err, h.keys.Empty(3))
	}
	h.wantNothing(3, 0)
}

// TestPlacesAdapter: the server's places are those of its slot.
func TestPlacesAdapter(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	h.open(request(3, uuid, 0))
	p := places{h.Engine, 3}
	f, err := p.Fetch(7)
	if f != nil || err != nil {
		t.Errorf("an empty place: %v, %v", f, err)
	}
	l, _ := h.listen()
	check(t, errors.Join(p.Keep(7, l), l.Close()))
	if f, err = p.Fetch(7); f == nil || err != nil {
		t.Fatalf("a place that is in use: %v, %v", f, err)
	}
	check(t, errors.Join(f.Close(), p.Keep(7, nil)))
	if f, err = p.Fetch(7); f != nil || err != nil {
		t.Errorf("a place that was given up: %v, %v", f, err)
	}
}

// TestKeeperFull: whoever operates the node learns why sessions end, and the log is
// not filled with it.
func TestKeeperFull(t *testing.T) {
	h := newHost(t)
	var log bytes.Buffer
	h.Engine.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	h.Engine.keeper = fullKeeper{h.Engine.keeper}
	l, _ := h.listen()
	defer l.Close()
	for range 3 {
		if err := (places{h.Engine, 3}).Keep(7, l); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Keep: %v", err)
		}
	}
	if n := strings.Count(log.String(), "raise the limit of open files"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log.String())
	}
}

type fullKeeper struct{ Keeper }

func (fullKeeper) Keep(int, int, *os.File) error { return syscall.ENOSPC }

// TestL8LinkDown: an engine whose link to the keeper is down is about to end, and
// gives up no session before.
func TestL8LinkDown(t *testing.T) {
	h := newHost(t)
	cfg := h.cfg
	cfg.Keeper = downKeeper{}
	e := New(cfg)
	l, _ := h.listen()
	defer l.Close()
	answers := make(chan error)
	go func() { _, err := (places{e, 3}).Fetch(7); answers <- err }()
	go func() { answers <- places{e, 3}.Keep(7, l) }()
	select {
	case err := <-answers:
		t.Errorf("a session is told that there is no keeper: %v", err)
	case <-time.After(30 * time.Millisecond):
	}
	e.cancel()
	for range 2 {
		if err := <-answers; !errors.Is(err, volatile.ErrLink) {
			t.Error(err)
		}
	}
}

type downKeeper struct{ Keeper }

func (downKeeper) Keep(int, int, *os.File) error { return volatile.ErrLink }

func (downKeeper) FetchPlace(int, int) (*os.File, error) { return nil, volatile.ErrLink }
