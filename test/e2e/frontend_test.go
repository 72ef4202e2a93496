package e2e

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"vacate/internal/vhostclient"
	"vacate/test/daemon"
)

// TestFrontends verifies every byte under the messages of each monitor, while those
// that can talk on a running session, and break it and take it up again.
func TestFrontends(t *testing.T) {
	d := start(t, daemon.Options{})
	for i, s := range vhostclient.Sequences {
		t.Run(s.Name, func(t *testing.T) {
			queues := 2
			if s.MaxQueues != 0 {
				queues = s.MaxQueues
			}
			v := &vhostclient.Verify{
				Target: openVhost(t, d, "--queues", strconv.Itoa(queues)), Lease: s.Name, Seed: uint64(i), Duration: time.Second,
				Patience: 20 * time.Second, Talk: 5 * time.Millisecond, Options: vhostclient.Options{Sequence: s, Queues: queues, Regions: 3},
			}
			if s.Protocol>>vhostclient.ProtocolInflightShmFD&1 == 1 {
				v.Options.Inflight, v.Breaks = true, 30*time.Millisecond
			}
			r, err := v.Run(context.Background())
			for more := 0; err == nil && v.Breaks > 0 && r.Reconnects == 0 && more < 10; more++ { // it had no turn
				r, err = v.Run(context.Background())
			}
			if err := errors.Join(err, r.Err()); err != nil {
				t.Fatal(err)
			}
			if r.Verified != 8<<20 || v.Breaks > 0 && r.Reconnects == 0 {
				t.Errorf("%d bytes were read at the end, after %d reconnects", r.Verified, r.Reconnects)
			}
		})
	}
}

// TestRings: each shape of ring, and a driver that is never called.
func TestRings(t *testing.T) {
	d := start(t, daemon.Options{})
	for i, o := range []vhostclient.Options{
		{NoCall: true}, {Direct: true, NoEvent: true, QueueSize: 64}, {MemSlots: true, Regions: 30, QueueSize: 1024},
	} {
		v := &vhostclient.Verify{Target: openVhost(t, d), Lease: "rings", Seed: uint64(i), Requests: 3000, Options: o, Patience: 20 * time.Second}
		r, err := v.Run(context.Background())
		if err := errors.Join(err, r.Err()); err != nil {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// openVhost opens a lease that is reached over vhost-user only, and returns its
// socket.
func openVhost(t *testing.T, d *daemon.Daemon, args ...string) string {
	t.Helper()
	l, err := d.Open(append([]string{"--size", "8MiB", "--tenant", "t", "--export", "vhost-user"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return l.Socket()
}
