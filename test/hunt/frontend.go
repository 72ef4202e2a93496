package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	vacatev1 "vacate/api/vacate/v1"
	"vacate/internal/fail"
	"vacate/internal/nbdclient"
	"vacate/internal/vhostclient"
)

// The exports that a hunt's leases have.
const (
	nbd       = "nbd"
	vhostUser = "vhost-user"
)

// A load verifies every byte of a lease, over whatever export.
type load interface {
	Run(ctx context.Context) (nbdclient.Report, error)
	Snapshot() nbdclient.Report
}

// ofVhostUser reports whether nothing comes to a point without vhost-user.
func ofVhostUser(p fail.Point) bool {
	return strings.HasPrefix(string(p), "engine.vhost.") || strings.HasPrefix(string(p), "engine.ring.")
}

// both are the exports of leases that come and go.
func both(export string) []string {
	if export == vhostUser {
		return []string{nbd, vhostUser}
	}
	return nil
}

// frontends are the monitors whose loads a hunt over vhost-user runs, in turn. Those
// without Breaks cannot reconnect: Firecracker never, QEMU unless it is told to.
var frontends = []vhostclient.Verify{
	{Options: vhostclient.Options{Sequence: &vhostclient.QEMU10, Queues: 2, Inflight: true}, Talk: 20 * time.Millisecond},
	{Options: vhostclient.Options{Sequence: &vhostclient.QEMU72, Queues: 2, Inflight: true, Regions: 5}, Talk: 50 * time.Millisecond, Breaks: 200 * time.Millisecond},
	{Options: vhostclient.Options{Sequence: &vhostclient.Firecracker}, Talk: 30 * time.Millisecond},
	{Options: vhostclient.Options{Sequence: &vhostclient.CloudHypervisor, Inflight: true, Direct: true, NoEvent: true}, Breaks: 300 * time.Millisecond},
}

// openUnderLoad opens the i-th lease of a hunt, and makes its load. Over vhost-user,
// one of five is reached over NBD: both exports are taken over in one run.
func (w *world) openUnderLoad(i int, export string, size int64, key string) (*vacatev1.Lease, load, error) {
	const pause = 200 * time.Microsecond // the machine is for the daemon, not for its clients
	i %= len(frontends) + 1
	if export != vhostUser || i == len(frontends) {
		l, err := w.open(size, 512, key)
		if err != nil {
			return nil, nil, err
		}
		v := &nbdclient.Verify{
			Target: l.GetExports()[0].GetUri(), Options: nbdclient.Options{NoBlockSize: true},
			Lease: l.GetId(), Seed: w.seed + uint64(i), Connections: 2, Depth: 8, MaxRequest: 256 << 10, Pause: pause,
		}
		return l, v, nil
	}
	l, err := w.open(size, 512, key, vhostUser)
	if err != nil {
		return nil, nil, err
	}
	f := &frontends[i]
	v := &vhostclient.Verify{
		Target: l.GetExports()[0].GetSocket(), Options: f.Options, Talk: f.Talk, Breaks: f.Breaks,
		Lease: l.GetId(), Seed: w.seed + uint64(i), Depth: 8, MaxRequest: 256 << 10, Pause: pause, Gap: 2 * time.Millisecond,
	}
	if w.planted != "" { // a request that is lost need not be waited for that long
		v.Patience = 10 * time.Second
	}
	return l, v, nil
}

// A session is a short one with a lease that is about to be closed. A nil one has
// no vhost-user export.
type session struct {
	*vhostclient.Client
	lease string
}

// session takes up a session with a lease that has such an export, reads what nobody
// has written and writes, and leaves it open.
func (w *world) session(l *vacatev1.Lease) (*session, error) {
	i := slices.IndexFunc(l.GetExports(), func(e *vacatev1.Export) bool { return e.GetKind() == vhostUser })
	if i < 0 {
		return nil, nil
	}
	var c *vhostclient.Client
	var err error
	// The engine may end between taking a connection and handing it to the keeper.
	for start := time.Now(); time.Since(start) < 30*time.Second; {
		c, err = vhostclient.Dial(l.GetExports()[i].GetSocket(), vhostclient.Options{Memory: 4 << 20, Timeout: 60 * time.Second})
		if !errors.Is(err, vhostclient.ErrUnanswered) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", l.GetId(), err)
	}
	s := &session{c, l.GetId()}
	b := make([]byte, 64<<10)
	_, err = c.ReadAt(b, 1<<20)
	if err == nil && !bytes.Equal(b, make([]byte, len(b))) {
		err = errors.New("it reads something else than zeros before anything was written")
	}
	if err == nil {
		_, err = c.WriteAt(bytes.Repeat([]byte{1}, len(b)), 1<<20)
	}
	if err != nil {
		return s, fmt.Errorf("lease %s: %w", l.GetId(), err)
	}
	return s, nil
}

// Close ends the session, if there is one.
func (s *session) Close() error {
	if s == nil {
		return nil
	}
	return s.Client.Close()
}

// ended demands that the server has hung up, and closes the session: its lease was
// closed.
func (s *session) ended() error {
	if s == nil {
		return nil
	}
	const patience = 30 * time.Second
	for start := time.Now(); s.Conn.Alive() == nil; time.Sleep(time.Millisecond) {
		if time.Since(start) > patience {
			return errors.Join(fmt.Errorf("lease %s was closed, and its session goes on", s.lease), s.Close())
		}
	}
	return s.Close()
}

// grow makes a lease larger, and demands that its session, if there is one, is told,
// and that what was added reads as zeros.
func (h *killHunt) grow(l *vacatev1.Lease, s *session, size int64) error {
	err := h.retry("resizing lease "+l.GetId(), func(ctx context.Context) error {
		_, err := h.api.Leases.Resize(ctx, &vacatev1.LeaseServiceResizeRequest{Id: l.GetId(), SizeBytes: size})
		return err
	})
	if err != nil || s == nil {
		return err
	}
	timeout := time.After(60 * time.Second)
	for s.Size() != size {
		select {
		case <-s.Changes():
			if err := s.Refresh(); err != nil {
				return fmt.Errorf("lease %s: %w", s.lease, err)
			}
		case <-timeout:
			return fmt.Errorf("lease %s was resized to %d bytes, and its session was not told: it knows %d", s.lease, size, s.Size())
		}
	}
	b := make([]byte, 64<<10)
	if _, err := s.ReadAt(b, size-int64(len(b))); err != nil {
		return fmt.Errorf("lease %s: %w", s.lease, err)
	}
	if !bytes.Equal(b, make([]byte, len(b))) {
		return fmt.Errorf("lease %s reads something else than zeros in what was added", s.lease)
	}
	return nil
}
