package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
)

// noted is the record of a drive in the table; change may write another.
func (h *host) noted(uuid string, change func(*volatile.DriveRecord)) volatile.DriveRecord {
	h.t.Helper()
	for i := range volatile.DriveSlots {
		rec, err := h.cfg.Table.GetDrive(i)
		check(h.t, err)
		_, want, err := ids(nodeID, uuid)
		check(h.t, err)
		if rec.UUID == want {
			if change != nil {
				change(&rec)
				check(h.t, h.cfg.Table.PutDrive(i, rec))
			}
			return rec
		}
	}
	h.t.Fatalf("no record of drive %s", uuid)
	return volatile.DriveRecord{}
}

func (h *host) lossesSince(ctx context.Context, seen uint64) (*ipc.Losses, error) {
	h.t.Helper()
	v, err := h.Handle(ctx, ipc.MethodLosses, fmt.Appendf(nil, `{"seen":%d}`, seen), nil)
	if err != nil {
		return nil, err
	}
	return v.(*ipc.Losses), nil
}

// TestLostWhileNobodyWatched: the engine dies, and its successor cannot tell
// whether the drive has kept what was written to it, as it is not a drive that can
// be watched. Its leases read nothing any more; the neighbour's go on. When they
// are closed the drive can be used again.
func TestLostWhileNobodyWatched(t *testing.T) {
	h := newHost(t)
	path, lost := h.drive(h.dir)
	_, well := h.drive(folder(t, os.TempDir()))
	reqs := []ipc.LeaseOpenRequest{request(1, lost, 0), request(2, well, 0)}
	written := bytes.Repeat([]byte{7}, 8192)
	var sockets []string
	for _, req := range reqs {
		sockets = append(sockets, h.open(req))
		c, _ := dial(t, sockets[len(sockets)-1], nbdclient.Options{})
		check(t, c.WriteFlags(written, 4096, 0))
	}
	if rec := h.noted(lost, nil); rec.Watched != [16]byte{} {
		t.Errorf("a file is watched: %+v", rec)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	none, err := h.lossesSince(t.Context(), 0)
	if err != nil || len(none.Drives) != 0 {
		t.Fatalf("nothing is lost, and it says %+v, %v", none, err)
	}
	if l, err := h.lossesSince(ctx, none.Seen); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing is lost, and it says %+v, %v", l, err)
	}

	h.crash()()
	was := h.noted(lost, func(r *volatile.DriveRecord) { r.Watched = [16]byte{1, 2, 3} })
	opening := uint64(0)
	for range 2 { // the next one, and the one after it
		h.takeOver()
		l, err := h.lossesSince(t.Context(), none.Seen)
		if err == nil && len(l.Drives) == 0 { // it was not found yet
			l, err = h.lossesSince(t.Context(), l.Seen)
		}
		if err != nil || len(l.Drives) != 1 || l.Drives[0].UUID != lost || !strings.Contains(l.Drives[0].Why, "now it cannot be") {
			t.Fatalf("losses: %+v, %v", l, err)
		}
		if was := opening; l.Drives[0].Opening <= was {
			t.Errorf("the number of the opening is %#x after %#x", l.Drives[0].Opening, was)
		}
		opening = l.Drives[0].Opening
		if rec := h.noted(lost, nil); rec.Watched != was.Watched {
			t.Errorf("the record of a lost drive has changed: %+v", rec)
		}
		eventually(t, "the leases to be served", func() bool { return len(h.stats().Leases) == 2 })
		for i, req := range reqs {
			c, _ := dial(t, sockets[i], nbdclient.Options{})
			p := make([]byte, 8192)
			_, err := c.ReadAt(p, 4096)
			if req.Pieces[0].Drive == well {
				if err != nil || !bytes.Equal(p, written) {
					t.Errorf("the neighbour of a lost drive reads %v, %v", p[:4], err)
				}
				continue
			}
			werr, ferr := c.WriteFlags(written, 1<<20, 0), c.Flush()
			if !errors.Is(err, syscall.EIO) || !errors.Is(werr, syscall.EIO) || !errors.Is(ferr, syscall.EIO) {
				t.Errorf("of a lost drive: read %v, write %v, flush %v", err, werr, ferr)
			}
		}
		_, err = h.openDriveAt(path, lost, 1, 2)
		wantCode(t, err, ipc.CodeLost)
		if rec := h.noted(lost, nil); rec.Epoch != was.Epoch {
			t.Errorf("a drive that was not renewed has epoch %d in its record", rec.Epoch)
		}
		if _, err := h.closeDriveByID(lost); err == nil {
			t.Error("a drive that a lease uses was closed")
		}
		h.crash()()
	}

	h.takeOver()
	eventually(t, "the leases to be served", func() bool { return len(h.stats().Leases) == 2 })
	er, err := h.close(reqs[0].Lease)
	if err != nil || !er.ReadBack {
		t.Fatalf("closing a lease of a lost drive: %+v, %v", er, err)
	}
	h.drained(reqs[0].Lease)
	if _, err := h.closeDriveByID(lost); err != nil {
		t.Fatal(err)
	}
	info, err := h.openDriveAt(path, lost, 1, 2)
	if err != nil {
		t.Fatalf("opening the drive anew: %v", err)
	}
	if info.Opening <= opening {
		t.Errorf("opened anew it has the number %#x, and %#x when it was lost", info.Opening, opening)
	}
	c, _ := dial(t, h.open(request(1, lost, 0)), nbdclient.Options{})
	if _, err := c.ReadAt(make([]byte, 4096), 4096); err != nil {
		t.Errorf("a lease after the loss: %v", err)
	}
	if l, err := h.lossesSince(t.Context(), 0); err != nil || len(l.Drives) != 0 {
		t.Errorf("losses after all: %+v, %v", l, err)
	}
}

// TestLossesEnd: whoever waits for losses is told when the engine leaves.
func TestLossesEnd(t *testing.T) {
	h := newHost(t)
	ended := make(chan error, 1)
	go func() {
		l, err := h.lossesSince(context.Background(), 0)
		if err == nil {
			_, err = h.lossesSince(context.Background(), l.Seen)
		}
		ended <- err
	}()
	h.crash()()
	select {
	case err := <-ended:
		wantCode(t, err, ipc.CodeBusy)
	case <-time.After(time.Minute):
		t.Fatal("it waits for ever")
	}
	h.takeOver()
}
