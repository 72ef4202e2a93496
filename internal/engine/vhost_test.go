package engine

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"vacate/internal/export/vhostuser"
	"vacate/internal/ipc"
	"vacate/internal/vhostclient"
	"vacate/internal/volatile"
)

// guest puts load on a lease as a virtual machine does that cannot connect again.
// stop waits for its end, and for every byte to be read once more.
func guest(t *testing.T, socket string, v *vhostclient.Verify) (stop func() vhostclient.Report) {
	t.Helper()
	v.Target, v.Patience, v.Pause = socket, 20*time.Second, 200*time.Microsecond
	if v.Depth == 0 {
		v.Depth = 8
	}
	v.MaxRequest = 32 << 10
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	type result struct {
		report vhostclient.Report
		err    error
	}
	ended := make(chan result, 1)
	go func() {
		r, err := v.Run(ctx)
		ended <- result{r, err}
	}()
	return func() vhostclient.Report {
		t.Helper()
		cancel()
		select {
		case r := <-ended:
			if err := errors.Join(r.err, r.report.Err()); err != nil {
				t.Errorf("L8: a guest of lease %s sees %v\n%v", v.Lease, err, r.report.String())
			}
			return r.report
		case <-time.After(time.Minute):
			t.Fatalf("L8: a guest of lease %s waits for ever", v.Lease)
			panic("unreachable")
		}
	}
}

// TestL8Sessions ends the engine again and again, planned and not, under guests
// that never connect again: they see a pause, and nothing else.
func TestL8Sessions(t *testing.T) {
	h := newHost(t)
	_, a := h.drive(h.dir)
	_, b := h.drive(h.dir)
	alone, shared := request(1, a, 0), request(2, b, 0)
	alone.Exports, shared.Exports = vhostAlone, ipc.Exports{VhostUser: true, Queues: 4}
	one, err := h.tryOpen(alone, 1)
	check(t, err)
	two, err := h.tryOpen(shared, 2)
	check(t, err)
	half := int64(4 << 20) // of the shared volume: NBD has the other one
	stops := []func() vhostclient.Report{
		guest(t, one[0], &vhostclient.Verify{Lease: alone.Lease, Seed: 1, Options: vhostclient.Options{Queues: 2}}),
		guest(t, two[1], &vhostclient.Verify{Lease: shared.Lease, Seed: 2, Span: half, Options: vhostclient.Options{Queues: 4, Direct: true}, Talk: 5 * time.Millisecond}),
	}
	sessions := func() bool { return h.stats().Connections == 2 }
	eventually(t, "the guests to be connected", sessions)
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for n := range rounds {
		time.Sleep(50 * time.Millisecond)
		if n%2 == 0 {
			h.restart()
		} else {
			h.handOver()
		}
		eventually(t, "the sessions to go on", sessions)
	}
	for _, stop := range stops {
		report := stop()
		if t.Log(report.String()); report.Reconnects != 0 || report.Requests < 100 {
			t.Errorf("over %d ends of the engine: %v", rounds, report.String())
		}
	}
}

// TestL5Session: when a close has returned, the guest is cut off, nothing of it is
// carried out any more, and the keeper holds nothing of its session.
func TestL5Session(t *testing.T) {
	for name, restart := range map[string]bool{"opened": false, "taken over": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			req := request(1, uuid, 0)
			req.Exports = vhostAlone
			before := files(t)
			paths, err := h.tryOpen(req, 1)
			check(t, err)
			c, err := vhostclient.Dial(paths[0], vhostclient.Options{Timeout: time.Minute})
			check(t, err)
			_, err = c.WriteAt(make([]byte, 64<<10), 0)
			check(t, err)
			if restart {
				h.restart()
				eventually(t, "the session to go on", func() bool { return h.stats().Connections == 1 })
				_, err = c.WriteAt(make([]byte, 64<<10), 64<<10)
				check(t, err)
			}
			h.keeper.set(func() {
				if n := len(h.keeper.slots[1].places); n < 5 {
					t.Errorf("the keeper holds %d files of a session", n)
				}
			})
			er, err := h.close(req.Lease)
			check(t, err)
			if !er.ReadBack || er.CiphersDoneNs < er.GateClosedNs || er.KeyDestroyedNs < er.CiphersDoneNs {
				t.Errorf("%+v", er)
			}
			h.drained(req.Lease)
			if err := c.Conn.Alive(); err == nil {
				t.Error("the connection is open after the close")
			}
			if h.keeper.mapped() != 0 {
				t.Error("the keeper holds something after the close")
			}
			check(t, c.Close())
			eventually(t, "descriptors to be closed", func() bool { return files(t) <= before })
			if conn, err := net.Dial("unix", paths[0]); err == nil {
				t.Error("somebody listens after the close")
				io.Copy(io.Discard, conn)
			}
		})
	}
}

// TestL5SessionHangs: a request that hangs in its drive, and a guest that goes on
// asking, delay no erasure.
func TestL5SessionHangs(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	req.Exports = vhostAlone
	paths, err := h.tryOpen(req, 1)
	check(t, err)
	c, err := vhostclient.Dial(paths[0], vhostclient.Options{Timeout: 15 * time.Second})
	check(t, err)
	defer c.Close()
	_, err = c.WriteAt(bytes.Repeat([]byte{7}, 1<<20), 0)
	check(t, err)
	release := h.hang(req.Lease)
	asked := make(chan int)
	go func() {
		n := 0
		for b := make([]byte, 1<<20); err == nil; n++ {
			_, err = c.ReadAt(b, 0)
		}
		asked <- n
	}()
	time.Sleep(20 * time.Millisecond)
	began := time.Now()
	er, cerr := h.close(req.Lease)
	check(t, cerr)
	if took := time.Since(began); took > time.Minute || er.Drained || !er.ReadBack {
		t.Errorf("L5: closed within %v: %+v", took, er)
	}
	h.wantErased(req)
	if n := <-asked; n == 0 || c.Conn.Alive() == nil {
		t.Errorf("the guest read %d times, and is cut off: %v, %v", n, err, c.Conn.Alive())
	}
	release()
	h.drained(req.Lease)
	h.wantNothing(1, 0)
}

// TestL5SessionStarts: however long a session takes to be taken over, its lease is
// closed meanwhile, and nothing of it is served or left behind.
func TestL5SessionStarts(t *testing.T) {
	for name, wipes := range map[string]error{"at once": nil, "at the second try": errors.New("bad memory")} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			req := request(1, uuid, 0)
			req.Exports = ipc.Exports{VhostUser: true, Queues: 2}
			before := files(t)
			paths, err := h.tryOpen(req, 2)
			check(t, err)
			c, err := vhostclient.Dial(paths[1], vhostclient.Options{Timeout: time.Minute})
			check(t, err)
			_, err = c.WriteAt(bytes.Repeat([]byte{7}, 64<<10), 0)
			check(t, err)
			h.crash()()
			starts, goOn := make(chan struct{}, volatile.Places), make(chan struct{})
			h.keeper.set(func() {
				h.keeper.onFetch = func(place int) {
					if place != vhostuser.PlaceListener {
						starts <- struct{}{}
						<-goOn
					}
				}
				h.keeper.wipeErr = wipes
			})
			h.takeOver()
			<-starts
			closed := make(chan error, 1)
			go func() {
				er, err := h.close(req.Lease)
				if wipes != nil {
					if err == nil {
						t.Errorf("closed without erasure: %+v", er)
					}
					h.keeper.set(func() { h.keeper.wipeErr = nil })
					er, err = h.close(req.Lease)
				}
				if err == nil && (!er.ReadBack || er.Drained) {
					t.Errorf("while its session starts: %+v", er)
				}
				closed <- err
			}()
			select {
			case err := <-closed:
				check(t, err)
			case <-time.After(time.Minute):
				t.Error("L5: the erasure waits for a session to start")
			}
			h.wantErased(req)
			close(goOn)
			h.drained(req.Lease)
			if c.Conn.Alive() == nil {
				t.Error("the guest is connected after the close")
			}
			check(t, c.Close())
			for _, path := range paths {
				if answers(path) {
					t.Errorf("somebody answers at %s after the close", path)
				}
			}
			h.keeper.set(func() { h.keeper.onFetch = nil })
			h.wantNothing(1, 0)
			eventually(t, "descriptors to be closed", func() bool { return files(t) <= before })
		})
	}
}
