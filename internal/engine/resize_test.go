package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/extent"
	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// larger is req with so many MiB more, on the drive's extents from first on.
func larger(req ipc.LeaseOpenRequest, mib int64, first uint32) ipc.LeaseResizeRequest {
	more := extent.Piece{Drive: req.Pieces[0].Drive, Range: extent.Range{First: first, Count: uint32(mib)}}
	return ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: req.SizeBytes + mib<<20, Pieces: extent.Join(req.Pieces, []extent.Piece{more})}
}

func (h *host) resize(req ipc.LeaseResizeRequest) error {
	h.t.Helper()
	_, err := do[ipc.Empty](h, ipc.MethodLeaseResize, req, nil)
	return err
}

// junk fills a drive with what it may hold from before.
func (h *host) junk(path string) {
	h.t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(h.t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa7}, driveSize-3<<20), 1<<20)
	check(h.t, errors.Join(err, f.Close()))
}

// whole reads the volume as a client that connects now.
func (h *host) whole(socket string) []byte {
	h.t.Helper()
	c, _ := dial(h.t, socket, nbdclient.Options{})
	got := make([]byte, c.Size())
	_, err := c.ReadAt(got, 0)
	check(h.t, errors.Join(err, c.Close()))
	return got
}

// TestL4Resize: what was written is there, what is new reads zeros, whatever the
// drive holds; a client that is connected goes on with the size that it knows, the
// next one sees the new one. An engine that takes over finds it so.
func TestL4Resize(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	h.junk(path)
	req := request(1, uuid, 0)
	req.SizeBytes -= 40 << 10 // the last extent has room
	socket := h.open(req)
	want := make([]byte, req.SizeBytes)
	c, _ := dial(t, socket, nbdclient.Options{Timeout: time.Minute})
	written := bytes.Repeat([]byte{3}, 1<<20)
	write := func(c *nbdclient.Client, off int64) {
		t.Helper()
		_, err := c.WriteAt(written, off)
		check(t, err)
		copy(want[off:], written)
	}
	write(c, 4096)
	write(c, req.SizeBytes-1<<20)
	inPlace := ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: req.SizeBytes + 4096, Pieces: req.Pieces}
	going := larger(req, 2, 8)
	apart := ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: going.SizeBytes + 3<<20, Pieces: extent.Join(going.Pieces, []extent.Piece{
		{Drive: uuid, Range: extent.Range{First: 20, Count: 3}}})}
	for i, to := range []ipc.LeaseResizeRequest{inPlace, going, apart} {
		for range 2 { // asked again, it changes nothing
			check(t, h.resize(to))
			want = slices.Concat(want, make([]byte, to.SizeBytes-int64(len(want))))
			if l := h.list().Leases[0]; l.SizeBytes != to.SizeBytes {
				t.Fatalf("the engine lists %+v", l)
			}
			if got := h.whole(socket); !bytes.Equal(got, want) {
				t.Fatalf("L4: resize %d: the lease reads other bytes", i)
			}
			h.restart()
			c, _ = dial(t, socket, nbdclient.Options{Timeout: time.Minute})
		}
		known := c.Size()
		write(c, known-1<<20)
		if rec, err := h.table.Get(req.Slot); err != nil || rec.SizeBytes != uint64(to.SizeBytes) {
			t.Errorf("the slot says %+v, %v", rec, err)
		}
	}
	s := h.stats().Leases[0]
	check(t, h.resize(ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: apart.SizeBytes + 1<<20, Pieces: extent.Join(apart.Pieces, []extent.Piece{
		{Drive: uuid, Range: extent.Range{First: 30, Count: 1}}})}))
	write(c, c.Size()-1<<20) // the connection is the same
	if now := h.stats().Leases[0]; now.Writes <= s.Writes || now.Connections != 1 {
		t.Errorf("counted before %+v, now %+v", s, now)
	}
	if err := c.ReadFlags(make([]byte, 4096), c.Size(), 0); err == nil {
		t.Error("a client reads behind the size that it was told")
	}
	check(t, c.Close())
	er, err := h.close(req.Lease)
	if err != nil || !er.ReadBack {
		t.Errorf("%+v, %v", er, err)
	}
	h.drained(req.Lease)
	h.open(request(1, uuid, 2)) // on what it had got
}

func TestResizeRefused(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	_, closed := h.enrolled(h.dir)
	req, other := request(1, uuid, 0), request(2, uuid, 2)
	socket := h.open(req)
	h.open(other)
	moved := larger(req, 1, 8)
	moved.Pieces = moved.Pieces[:0:0]
	moved.Pieces = append(moved.Pieces, extent.Piece{Drive: uuid, Range: extent.Range{First: 1, Count: 9}})
	away := larger(req, 1, 8)
	away.Pieces = append(away.Pieces[:0:0], req.Pieces[0], extent.Piece{Drive: closed, Range: extent.Range{First: 0, Count: 1}})
	for what, tt := range map[string]struct {
		req  ipc.LeaseResizeRequest
		code string
	}{
		"smaller":           {ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: 7 << 20, Pieces: req.Pieces}, ipc.CodeInvalid},
		"no multiple":       {ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: 8<<20 + 512, Pieces: req.Pieces}, ipc.CodeInvalid},
		"negative":          {ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: -4096, Pieces: req.Pieces}, ipc.CodeInvalid},
		"beyond the bound":  {ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: blk.MaxVolume + 4096, Pieces: req.Pieces}, ipc.CodeInvalid},
		"no room for it":    {ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: 9 << 20, Pieces: req.Pieces}, ipc.CodeInvalid},
		"more than it is":   {ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: 8 << 20, Pieces: larger(req, 1, 8).Pieces}, ipc.CodeInvalid},
		"elsewhere":         {moved, ipc.CodeInvalid},
		"beyond the drive":  {larger(req, 1, 32), ipc.CodeInvalid},
		"on what it has":    {larger(req, 2, 4), ipc.CodeInvalid},
		"on another lease":  {larger(req, 1, 17), ipc.CodeBusy},
		"on a closed drive": {away, ipc.CodeNotFound},
		"no such lease":     {ipc.LeaseResizeRequest{Lease: leaseID(9), SizeBytes: 9 << 20, Pieces: req.Pieces}, ipc.CodeNotFound},
	} {
		err := h.resize(tt.req)
		if wantCode(t, err, tt.code); t.Failed() {
			t.Fatal(what)
		}
	}
	for _, l := range h.list().Leases {
		if l.SizeBytes != 8<<20 {
			t.Errorf("%+v", l)
		}
	}
	// Short of memory, the keeper or the engine: it goes on as it was.
	c, _ := dial(t, socket, nbdclient.Options{Timeout: time.Minute})
	check(t, c.WriteFlags(bytes.Repeat([]byte{5}, 4096), 0, 0))
	h.keeper.set(func() { h.keeper.mapErr = syscall.ENOMEM })
	if err := h.resize(larger(req, 2, 8)); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("the keeper has no memory: %v", err)
	}
	h.keeper.set(func() { h.keeper.mapErr = nil })
	got := make([]byte, 4096)
	check(t, c.ReadFlags(got, 0, 0))
	if got[0] != 5 || len(h.whole(socket)) != 8<<20 {
		t.Error("it does not go on as it was")
	}
	h.open(request(3, uuid, 1)) // on what it did not get
	_, err := h.close(req.Lease)
	check(t, err)
	wantCode(t, h.resize(larger(req, 1, 31)), ipc.CodeNotFound)
}

// TestL8ResizeEveryPoint ends an engine at every point of a resize: its successor
// holds the old size or the new one, every byte that was written, and zeros where
// nothing was. Asked again, it has the new size.
func TestL8ResizeEveryPoint(t *testing.T) {
	for p, grown := range map[fail.Point]bool{
		fail.ResizeParted: false, fail.ResizeCopied: false, fail.ResizeMapped: true, fail.ResizeNoted: true, fail.ResizeDone: true,
	} {
		t.Run(string(p), func(t *testing.T) {
			c := newCut(p, 0)
			h := newHost(t, func(cfg *Config) { cfg.at = c.pass })
			path, uuid := h.drive(h.dir)
			h.junk(path)
			req := request(1, uuid, 0)
			socket := h.open(req)
			want := bytes.Repeat([]byte{9}, 8<<20)
			nc, _ := dial(t, socket, nbdclient.Options{NoBlockSize: true})
			_, err := nc.WriteAt(want, 0)
			check(t, err)
			to := larger(req, 2, 8)
			c.until(func(ctx context.Context) {
				h.resizeLease(ctx, &to) //nolint:errcheck // it is cut off
			})
			select {
			case <-c.reached:
			default:
				t.Fatal("the point was not reached")
			}
			check(t, nc.Abort())
			h.die()
			h.cfg.at = nil
			h.takeOver()
			size := int64(8 << 20)
			if grown {
				size = 10 << 20
			}
			if l := h.list().Leases[0]; l.SizeBytes != size {
				t.Errorf("L8: the next engine holds %+v, want %d bytes", l, size)
			}
			_, err = h.openDriveAt(path, uuid, 1, 1)
			check(t, err)
			if got := h.whole(socket); !bytes.Equal(got, append(want, make([]byte, size-8<<20)...)) {
				t.Errorf("L8: %d bytes of the lease are other ones", len(got))
			}
			check(t, h.resize(to))
			if got := h.whole(socket); !bytes.Equal(got, append(want, make([]byte, 2<<20)...)) {
				t.Errorf("L4: %d bytes of the lease are other ones", len(got))
			}
			if rec, err := h.table.Get(req.Slot); err != nil || rec.SizeBytes != 10<<20 || rec.State != volatile.StateOpen {
				t.Errorf("the slot says %+v, %v", rec, err)
			}
		})
	}
}

// TestL8ResizeUnderLoad: no connection breaks, no byte is wrong, over resizes and
// planned ends of the engine.
func TestL8ResizeUnderLoad(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	h.junk(path)
	req := request(1, uuid, 0)
	stop := loaded(t, h.open(req), req.Lease, 5)
	eventually(t, "all clients", func() bool { return h.stats().Connections == 2 })
	to := larger(req, 1, 8)
	for i := range uint32(6) {
		check(t, h.resize(to))
		eventually(t, "all connections to go on", func() bool { return h.stats().Connections == 2 })
		if i == 2 {
			h.handOver()
			eventually(t, "all connections to go on", func() bool { return h.stats().Connections == 2 })
		}
		requests := func() (n uint64) {
			for _, l := range h.stats().Leases {
				n += l.Reads + l.Writes
			}
			return n
		}
		before := requests()
		eventually(t, "20 requests more", func() bool { return requests() >= before+20 })
		to.SizeBytes += 1 << 20
		to.Pieces = extent.Join(to.Pieces, []extent.Piece{{Drive: uuid, Range: extent.Range{First: 10 + 2*i, Count: 1}}})
	}
	report := stop()
	if t.Log(report.String()); report.Reconnects != 0 || report.Resent != 0 || report.Requests < 100 {
		t.Errorf("over resizes: %v; the last break: %v", report.String(), report.LastBreak)
	}
}

// TestL5ResizeOfHungDrive: a drive that hangs holds up a resize, and a close does
// not wait for it. What the lease was to get is free as soon as it has drained.
func TestL5ResizeOfHungDrive(t *testing.T) {
	for what, end := range map[string]func(t *testing.T, h *host, req ipc.LeaseOpenRequest, answer func()){
		"the drive answers": func(t *testing.T, h *host, req ipc.LeaseOpenRequest, answer func()) {
			answer()
			eventually(t, "the resize", func() bool { return h.resize(larger(req, 2, 8)) == nil })
		},
		"the lease is closed": func(t *testing.T, h *host, req ipc.LeaseOpenRequest, answer func()) {
			began := time.Now()
			er, err := h.close(req.Lease)
			if took := time.Since(began); err != nil || !er.ReadBack || took > time.Minute {
				t.Errorf("L5: closed after %v: %+v, %v", took, er, err)
			}
			if n := len(h.list().Leases); n != 1 {
				t.Errorf("L5: %d leases hold their space, and one is not drained", n)
			}
			answer()
			h.drained(req.Lease)
			next := request(2, req.Pieces[0].Drive, 1)
			h.open(next)
		},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t)
			_, uuid := h.drive(h.dir)
			req := request(1, uuid, 0)
			socket := h.open(req)
			c, _ := dial(t, socket, nbdclient.Options{Timeout: time.Minute})
			check(t, c.WriteFlags(bytes.Repeat([]byte{5}, 4096), 0, 0))
			answer := h.hang(req.Lease)
			to := larger(req, 2, 8)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := h.resizeLease(ctx, &to); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("resized with a request in flight: %v", err)
			}
			if err := h.resize(to); err == nil {
				t.Error("resized with a request in flight, at the second time")
			}
			if l := h.list().Leases[0]; l.SizeBytes != 8<<20 {
				t.Errorf("%+v", l)
			}
			end(t, h, req, answer)
		})
	}
}

// TestL8LeaveWithinResize: an engine that leaves while a resize waits for a drive
// passes the connections on.
func TestL8LeaveWithinResize(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	c, _ := dial(t, h.open(req), nbdclient.Options{Timeout: time.Minute})
	check(t, c.WriteFlags(bytes.Repeat([]byte{5}, 4096), 0, 0))
	answer := h.hang(req.Lease)
	to := larger(req, 2, 8)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	h.resizeLease(ctx, &to) //nolint:errcheck // it waits
	h.leave(t.Context())
	answer()
	h.crash()()
	h.takeOver()
	got := make([]byte, 4096)
	check(t, c.ReadFlags(got, 0, 0))
	if got[0] != 5 || h.list().Leases[0].SizeBytes != 8<<20 {
		t.Errorf("it reads %d; %+v", got[0], h.list().Leases)
	}
	check(t, h.resize(to))
	check(t, c.ReadFlags(got, 0, 0))
}

// TestResizeOfWaiting: a lease that waits for its drives is resized when they are
// back.
func TestResizeOfWaiting(t *testing.T) {
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	req := request(1, uuid, 0)
	socket := h.open(req)
	h.crash()()
	release := lockedBy(t, path)
	h.takeOver()
	wantCode(t, h.resize(larger(req, 2, 8)), ipc.CodeBusy)
	release()
	eventually(t, "the resize", func() bool { return h.resize(larger(req, 2, 8)) == nil })
	if n := len(h.whole(socket)); n != 10<<20 {
		t.Errorf("%d bytes", n)
	}
}
