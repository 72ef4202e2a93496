package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vacate/internal/blk"
	"vacate/internal/ipc"
	"vacate/internal/mem"
	"vacate/internal/nbdclient"
	"vacate/internal/volatile"
	"vacate/internal/xts"
)

// buffer returns page-aligned memory of n bytes.
func buffer(t testing.TB, n int) []byte {
	t.Helper()
	r, err := mem.Map(n, mem.TryLock)
	check(t, err)
	t.Cleanup(func() { check(t, r.Close()) })
	return r.Bytes()
}

// tenancy returns the open lease, inside.
func (h *host) tenancy(id string) *tenancy {
	h.t.Helper()
	t, _, err := h.lease(id)
	check(h.t, err)
	if t == nil {
		h.t.Fatalf("lease %s has gone", id)
	}
	return t
}

func (h *host) queue(id string, depth int) blk.Queue {
	h.t.Helper()
	q, err := h.tenancy(id).path.volume.NewQueue(depth)
	check(h.t, err)
	return q
}

type completer func(*blk.Request)

func (c completer) Complete(r *blk.Request) { c(r) }

// hang puts a request through the gate of a lease that stays in flight until
// release is called, as one does whose drive hangs.
func (h *host) hang(id string) (release func()) {
	h.t.Helper()
	q, buf := h.queue(id, 1), buffer(h.t, blk.BlockSize)
	entered, leave := make(chan struct{}), make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		q.Submit([]*blk.Request{{Op: blk.OpRead, Len: blk.BlockSize, Buf: buf, Done: completer(func(*blk.Request) {
			close(entered)
			<-leave
		})}})
		if err := q.Close(); err != nil {
			h.t.Error(err)
		}
	})
	<-entered
	release = sync.OnceFunc(func() { close(leave); ended.Wait() })
	h.t.Cleanup(release)
	return release
}

// TestL5CloseOrder closes a lease with a request in flight and a client
// connected, and looks what holds at each step.
func TestL5CloseOrder(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	c, conn := dial(t, h.open(req), nbdclient.Options{})
	check(t, c.WriteFlags(bytes.Repeat([]byte{7}, 64<<10), 0, 0))
	release := h.hang(req.Lease)
	in := h.tenancy(req.Lease)

	var seen []string
	note := func(what string, holds bool) {
		if holds {
			seen = append(seen, what)
		}
	}
	shut := func(d blk.Device) bool {
		_, err := d.NewQueue(1)
		return errors.Is(err, syscall.ESHUTDOWN)
	}
	state := func() volatile.State {
		rec, err := h.table.Get(req.Slot)
		check(t, err)
		return rec.State
	}
	h.keeper.onWipe = func(int) {
		note("gate shut", shut(in.path.volume))
		note("ciphers revoked", shut(in.path.cipher))
		note("key still there", !h.keys.Empty(req.Slot) && state() == volatile.StateClosing)
		note("sockets still up", !hungUp(t, conn, 20*time.Millisecond))
	}
	h.keeper.onUnmap = func(int) {
		note("map dropped", h.keys.Empty(req.Slot))
	}
	began := time.Now()
	first, err := h.close(req.Lease)
	check(t, err)
	note("answered", time.Since(began) < time.Minute)
	note("key overwritten", h.keys.Empty(req.Slot) && h.keeper.keys.Empty(req.Slot) && first.ReadBack)
	note("sockets shut", hungUp(t, conn, 10*time.Second))
	note("not drained", !first.Drained && !in.isGone() && state() == volatile.StateErased)
	h.wantErased(req)

	drained := make(chan error, 1)
	go func() {
		_, err := h.drain(context.Background(), req.Lease)
		note("drained", state() == volatile.StateEnded && h.keeper.mapped() == 0)
		drained <- err
	}()
	release()
	check(t, <-drained)
	want := []string{"gate shut", "ciphers revoked", "key still there", "sockets still up",
		"answered", "key overwritten", "sockets shut", "not drained", "map dropped", "drained"}
	if !reflect.DeepEqual(seen, want) {
		t.Errorf("L5: seen  %q\nwant %q", seen, want)
	}
	h.wantNothing(req.Slot, 0)
	again, err := h.close(req.Lease)
	check(t, err)
	if first.Drained = true; *again != *first {
		t.Errorf("closed again: %+v, first %+v", again, first)
	}
}

// wantErased checks what an erased lease that has not drained still holds: its
// slot and its space, and nobody's answer changes.
func (h *host) wantErased(req ipc.LeaseOpenRequest) {
	h.t.Helper()
	want := []ipc.LeaseStatus{{Lease: req.Lease, Slot: req.Slot, Erased: true, SizeBytes: req.SizeBytes}}
	if list := h.list().Leases; !reflect.DeepEqual(list, want) {
		h.t.Errorf("leases %+v, want %+v", list, want)
	}
	if n := h.keeper.mapped(); n != 1 {
		h.t.Errorf("the keeper has %d maps, want 1", n)
	}
	again, err := h.close(req.Lease)
	if err != nil || again.Drained || !again.ReadBack {
		h.t.Errorf("closing again: %+v, %v", again, err)
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.drain(ctx, req.Lease); !errors.Is(err, context.DeadlineExceeded) {
		h.t.Errorf("draining: %v, want the deadline", err)
	}
	sameSpace, sameSlot := request(11, req.Pieces[0].Drive, 0), request(req.Slot, req.Pieces[0].Drive, 1)
	sameSlot.Lease = leaseID(12)
	for _, r := range []ipc.LeaseOpenRequest{sameSpace, sameSlot} {
		f, _ := h.listen()
		_, err := do[ipc.LeaseOpened](h, ipc.MethodLeaseOpen, r, f)
		wantCode(h.t, err, ipc.CodeBusy)
	}
	_, err = h.closeDriveByID(req.Pieces[0].Drive)
	wantCode(h.t, err, ipc.CodeBusy)
}

// TestL5KeeperError: while the keeper cannot destroy the key nothing is claimed,
// the gates stay shut, and the close can be asked for again.
func TestL5KeeperError(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	c, _ := dial(t, h.open(req), nbdclient.Options{})
	page := make([]byte, blk.BlockSize)
	check(t, c.WriteFlags(page, 0, 0))

	h.keeper.set(func() { h.keeper.wipeErr = errors.New("the keeper says no") })
	if er, err := h.close(req.Lease); err == nil {
		t.Fatalf("the keeper failed, and the close says %+v", er)
	}
	if l := h.list().Leases; len(l) != 1 || l[0].Erased {
		t.Errorf("after a close that failed: %+v", l)
	}
	for name, err := range map[string]error{"write": c.WriteFlags(page, 0, 0), "read": c.ReadFlags(page, 0, 0), "flush": c.Flush()} {
		var answer *nbdclient.Error
		if !errors.As(err, &answer) {
			t.Errorf("%s after the gate was shut: %v, want an error reply", name, err)
		}
	}
	shut := h.tenancy(req.Lease).shut
	h.keeper.set(func() { h.keeper.wipeErr = nil })
	er, err := h.close(req.Lease)
	check(t, err)
	if !er.ReadBack || er.GateClosedNs != shut.GateClosedNs || er.CiphersDoneNs != shut.CiphersDoneNs {
		t.Errorf("closed again: %+v, but the gate was shut by the first: %+v", er, shut)
	}
	h.drained(req.Lease)
	h.wantNothing(req.Slot, 0)
}

// TestL5DamagedTable: the lease table cannot be written, and the answer tells
// of the erasure all the same.
func TestL5DamagedTable(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	h.open(req)
	h.damage(int64(req.Slot))
	er, err := h.close(req.Lease)
	if err != nil || !er.ReadBack || !h.keys.Empty(req.Slot) {
		t.Errorf("close: %+v, %v; the key is gone: %v", er, err, h.keys.Empty(req.Slot))
	}
	h.drained(req.Lease)
}

// TestCloseAtOnce: of closes that come together each gets the same answer.
func TestCloseAtOnce(t *testing.T) {
	h := newHost(t)
	_, uuid := h.drive(h.dir)
	req := request(4, uuid, 0)
	c, _ := dial(t, h.open(req), nbdclient.Options{})
	check(t, c.WriteFlags(make([]byte, blk.BlockSize), 0, 0))
	var wg sync.WaitGroup
	got := make([]ipc.Erasure, 8)
	for i := range got {
		wg.Go(func() {
			if er, err := h.close(req.Lease); err != nil {
				t.Error(err)
			} else {
				got[i] = *er
			}
			h.list()
			h.stats()
		})
	}
	wg.Wait()
	for i := range got {
		got[i].Drained = false
		if got[i] != got[0] || !got[i].ReadBack {
			t.Errorf("answers differ: %+v, %+v", got[i], got[0])
		}
	}
	h.drained(req.Lease)
}

// TestL5CiphersEndBeforeTheWipe closes leases under load, each at another
// moment. No cipher call uses a key that is being overwritten: it would panic, or
// what was acknowledged would not decrypt. The bug plant.WipeBeforeCiphers makes
// this fail.
func TestL5CiphersEndBeforeTheWipe(t *testing.T) {
	const size = 32 << 10 // one cipher call
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	h := newHost(t)
	path, uuid := h.drive(h.dir)
	want := bytes.Repeat([]byte{0x5c}, blk.BlockSize)
	for round := range rounds {
		req := request(4, uuid, 0)
		h.open(req)
		key, sched := [xts.KeySize]byte(h.keys.Slot(req.Slot)), new(xts.Schedule)
		check(t, sched.Expand(&key))
		q, buf := h.queue(req.Lease, 1), buffer(t, size)
		var acknowledged atomic.Int64
		ended := make(chan any, 1)
		go func() {
			defer func() { ended <- recover() }()
			copy(buf, bytes.Repeat(want, size/blk.BlockSize))
			for n := int64(0); ; n++ {
				r := blk.Request{Op: blk.OpWrite, Off: n % 64 * size, Len: size, Buf: buf}
				if blk.Do(q, &r); r.Errno != 0 {
					return
				}
				acknowledged.Store(n + 1)
			}
		}()
		for acknowledged.Load() < 3 {
			runtime.Gosched()
		}
		for range round * 37 % 1000 {
			acknowledged.Load()
		}
		_, err := h.close(req.Lease)
		check(t, err)
		if p := <-ended; p != nil {
			t.Fatalf("L5: round %d: a cipher call used a key that was overwritten: %v", round, p)
		}
		check(t, q.Close())
		h.drained(req.Lease)
		got := make([]byte, size)
		f, err := os.Open(path)
		check(t, err)
		_, err = f.ReadAt(got, 1<<20+(acknowledged.Load()-1)%64*size)
		check(t, errors.Join(err, f.Close()))
		for b := range int64(size / blk.BlockSize) {
			block := got[b*blk.BlockSize : (b+1)*blk.BlockSize]
			sched.Decrypt(block, block, blk.BlockSize, uint64((acknowledged.Load()-1)%64*size/blk.BlockSize+b))
			if !bytes.Equal(block, want) {
				t.Fatalf("L5: round %d: block %d was enciphered while its key was overwritten", round, b)
			}
		}
	}
}
