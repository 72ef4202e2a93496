package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"vacate/internal/extent"
	"vacate/internal/ipc"
	"vacate/internal/nbdclient"
)

// resizeSoon resizes a lease that may still wait for its drives.
func (h *host) resizeSoon(req ipc.LeaseResizeRequest) (err error) {
	h.t.Helper()
	eventually(h.t, "its drives to be back", func() bool {
		var re *ipc.RemoteError
		err = h.resize(req)
		return !errors.As(err, &re) || re.Code != ipc.CodeBusy
	})
	return err
}

// TestL4ResizeModel writes, trims, resizes, hands engines over and ends them at
// random, a resize under way or not, and compares with a slice of bytes.
func TestL4ResizeModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 5))
	t.Logf("seed %d", seed)
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	h.junk(path)
	req := request(1, uuid, 0)
	req.Pieces[0].Count, req.SizeBytes = 1, 300<<10
	socket := h.open(req)
	model := make([]byte, req.SizeBytes)
	now := ipc.LeaseResizeRequest{Lease: req.Lease, SizeBytes: req.SizeBytes, Pieces: req.Pieces}
	free := rng.Perm(31) // extents that nobody has, but the first

	var c *nbdclient.Client
	connect := func() {
		t.Helper()
		eventually(t, "the lease to be served", func() bool {
			var err error
			c, err = nbdclient.Dial(socket, nbdclient.Options{NoBlockSize: true, Timeout: time.Minute})
			return err == nil
		})
	}
	connect()
	larger := func() ipc.LeaseResizeRequest {
		next := now
		if rng.IntN(2) == 0 && len(free) > 0 {
			more := extent.Piece{Drive: uuid, Range: extent.Range{First: uint32(free[0] + 1), Count: 1}}
			free = free[1:]
			next.Pieces = extent.Join(now.Pieces, []extent.Piece{more})
		}
		room := int64(0)
		for _, p := range next.Pieces {
			room += int64(p.Count) << 20
		}
		if next.SizeBytes = room - rng.Int64N(200)<<12; next.SizeBytes <= now.SizeBytes {
			next.SizeBytes = min(room, now.SizeBytes+4096)
		}
		return next
	}
	grown := func(next ipc.LeaseResizeRequest) {
		now = next
		model = slices.Concat(model, make([]byte, now.SizeBytes-int64(len(model))))
	}
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		off := rng.Int64N(c.Size())
		length := 1 + rng.Int64N(min(100<<10, c.Size()-off))
		switch rng.IntN(8) {
		case 0, 1, 2:
			b := bytes.Repeat([]byte{byte(1 + rng.IntN(255))}, int(length))
			_, err := c.WriteAt(b, off)
			check(t, err)
			copy(model[off:], b)
			continue
		case 3:
			check(t, c.Trim(off, length, 0))
			clear(model[off : off+length])
			continue
		case 4, 5: // a client that connects now sees all of it
			next := larger()
			if next.SizeBytes == now.SizeBytes {
				continue
			}
			check(t, h.resizeSoon(next))
			grown(next)
			if rng.IntN(2) == 0 {
				check(t, c.Close())
				connect()
			}
		case 6: // an engine ends with a resize under way
			next := larger()
			if next.SizeBytes == now.SizeBytes {
				continue
			}
			done := make(chan error, 1)
			go func() { done <- h.resize(next) }()
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
			h.crash()()
			<-done
			h.takeOver()
			check(t, errors.Join(c.Abort(), h.resizeSoon(next)))
			grown(next)
			connect()
		case 7:
			h.handOver()
		}
		if got := h.whole(socket); !bytes.Equal(got, model) {
			for i := range model {
				if i >= len(got) || got[i] != model[i] {
					t.Fatalf("L4: seed %d: %d bytes, want %d; they differ at %d", seed, len(got), len(model), i)
				}
			}
		}
	}
}
