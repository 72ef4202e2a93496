package engine

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"vacate/internal/export/nbd"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/limit"
	"vacate/internal/nbdclient"
	"vacate/internal/sim"
	"vacate/internal/volatile"
	"vacate/internal/volume"
)

// TestL8ResizeOfSlowDrive: no connection breaks because its requests take longer
// than a client has to come to a message boundary. One that stops within a message
// is cut off all the same, once nothing is in flight.
func TestL8ResizeOfSlowDrive(t *testing.T) {
	drive := sim.New(sim.Config{Size: 1 << 20})
	v := volume.New(drive, volume.Config{})
	h := &host{t: t, dir: t.TempDir()}
	l, socket := h.listen()
	server, err := nbd.Serve(l, nbd.Config{Export: v})
	check(t, err)
	check(t, l.Close())
	c, _ := dial(t, socket, nbdclient.Options{Timeout: time.Minute})
	_, cut := dial(t, socket, nbdclient.Options{})
	halfWrite(t, cut, make([]byte, 8192))
	eventually(t, "it to be received, else it is passed as it is", func() bool { return unread(t, cut) == 0 })
	drive.At(drive.Ops()+1, sim.Fault{Kind: sim.Hang})
	read := make(chan error, 1)
	go func() { read <- c.ReadFlags(make([]byte, 4096), 0, 0) }()
	eventually(t, "the request to be in flight", func() bool { return !v.Idle() })
	time.AfterFunc(2*parkWithin, drive.Release)
	s := service{server: &exports{nbd: server}, path: &path{volume: v}, next: &inheritance{}}
	lease := &tenancy{rec: volatile.Record{State: volatile.StateOpen}}
	<-s.leave(t.Context(), lease)
	check(t, <-read)
	if n := len(lease.waits.conns); n != 1 {
		t.Errorf("%d connections go on, want the one that waited for the drive", n)
	}
	lease.disinherit()
	if !hungUp(t, cut, time.Minute) {
		t.Error("the client that hangs is still connected")
	}
}

// unread is how many bytes that were sent the other side has not received.
func unread(t *testing.T, conn net.Conn) (n int32) {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	check(t, err)
	var errno syscall.Errno
	check(t, raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&n))) // SIOCOUTQ, unix(7)
	}))
	if errno != 0 {
		t.Fatal(errno)
	}
	return n
}

// TestLimitWithinResize: limits that are set while a resize waits for a drive hold
// from then on, and do not slow down what it waits for.
func TestLimitWithinResize(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	req.Limits = slow
	h.open(req)
	answer, old := h.hang(req.Lease), h.tenancy(req.Lease).path
	to := larger(req, 2, 8)
	done := make(chan error, 1)
	go func() { done <- h.resize(to) }()
	eventually(t, "the resize to wait", func() bool { return old.volume.Limits() == volume.Limits{} })
	next := limit.Limits{IOPS: 7}
	check(t, h.limit(req.Lease, next))
	if l := old.volume.Limits(); l != (volume.Limits{}) {
		t.Errorf("what the resize waits for is held to %+v", l)
	}
	answer()
	check(t, <-done)
	h.limited(req.Lease, next)
	check(t, h.limit(req.Lease, slow))
	h.limited(req.Lease, slow)
}

// TestL5CloseWithinResize closes a lease at every point of a resize: the key goes,
// then all of its space, and nothing is left of either size.
func TestL5CloseWithinResize(t *testing.T) {
	for _, p := range []fail.Point{fail.ResizeParted, fail.ResizeCopied, fail.ResizeMapped, fail.ResizeNoted, fail.ResizeDone} {
		t.Run(string(p), func(t *testing.T) {
			closed := make(chan error, 1)
			var h *host
			req := ipc.LeaseOpenRequest{}
			h = newHost(t, func(cfg *Config) {
				cfg.at = func(at fail.Point) {
					if at != p {
						return
					}
					go func() {
						er, err := h.closeLease(req.Lease)
						if err == nil && !er.ReadBack {
							err = errors.New("not read back")
						}
						closed <- err
					}()
					time.Sleep(20 * time.Millisecond)
				}
			})
			_, uuid := h.drive(h.dir)
			before := files(t)
			req = request(1, uuid, 0)
			_, conn := dial(t, h.open(req), nbdclient.Options{})
			err := h.resize(larger(req, 8, 8))
			check(t, <-closed)
			if err != nil {
				wantCode(t, err, ipc.CodeNotFound)
			}
			if !hungUp(t, conn, time.Minute) {
				t.Error("L5: a client is still connected")
			}
			check(t, conn.Close())
			h.drained(req.Lease)
			if !h.keeper.keys.Empty(req.Slot) || h.keeper.mapped() != 0 {
				t.Error("L5: a key or a map is left")
			}
			eventually(t, "descriptors to be closed", func() bool { return files(t) <= before })
			h.open(request(1, uuid, 0))
			h.open(request(2, uuid, 1)) // on what it was to get
		})
	}
}

// TestResizeCounts: what the exports have counted goes on being counted.
func TestResizeCounts(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	req.Exports = ipc.Exports{VhostUser: true, NoNBD: true, Queues: 1}
	socket := h.open(req)
	for n := uint64(1); n < 4; n++ {
		conn, err := net.Dial("unix", socket)
		check(t, err)
		_, err = conn.Write(make([]byte, 12)) // no message of vhost-user
		check(t, err)
		if !hungUp(t, conn, time.Minute) {
			t.Error("nonsense is taken")
		}
		check(t, conn.Close())
		expelled := func() uint64 { return h.stats().Leases[0].Expelled }
		eventually(t, "it to be counted", func() bool { return expelled() == n })
		to := larger(req, int64(n), 8)
		check(t, h.resize(to))
		if got := expelled(); got != n {
			t.Errorf("%d were expelled before the volume got larger, and %d after", n, got)
		}
	}
}
