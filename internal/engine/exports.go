package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"vacate/internal/export/nbd"
	"vacate/internal/export/vhostuser"
	"vacate/internal/ipc"
	"vacate/internal/volatile"
)

// exports are the servers of a lease, one or both, over one volume. Each is nil
// where the lease has none.
type exports struct {
	nbd   *nbd.Server
	vhost *vhostuser.Server
	log   *slog.Logger
}

// sockets are what a lease's exports listen on, likewise.
type sockets struct{ nbd, vhost *os.File }

func (s sockets) close() {
	for _, f := range []*os.File{s.nbd, s.vhost} {
		if f != nil {
			f.Close() //nolint:errcheck // the keeper has it too, until the slot is given back
		}
	}
}

// sortSockets tells which of a request's files is which. REQUIRES: checkLease has seen
// them.
func sortSockets(x ipc.Exports, files []*os.File) (s sockets) {
	if !x.NoNBD {
		s.nbd, files = files[0], files[1:]
	}
	if x.VhostUser {
		s.vhost = files[0]
	}
	return s
}

// hold has the keeper hold the sockets of t for the next engine.
func (e *Engine) hold(t *tenancy, s sockets) error {
	if s.nbd != nil {
		if err := e.keeper.Hold(t.slot, s.nbd); err != nil {
			return err
		}
	}
	if s.vhost != nil {
		return e.keeper.Keep(t.slot, vhostuser.PlaceListener, s.vhost)
	}
	return nil
}

// fetchSockets gets them back. All that t's record names must be there.
func (e *Engine) fetchSockets(t *tenancy) (s sockets, err error) {
	if !t.rec.Exports.NoNBD {
		s.nbd, err = e.keeper.FetchListener(t.slot)
	}
	if err == nil && t.rec.Exports.VhostUser {
		s.vhost, err = e.keeper.FetchPlace(t.slot, vhostuser.PlaceListener)
	}
	if err == nil && ((s.nbd == nil) != t.rec.Exports.NoNBD || (s.vhost != nil) != t.rec.Exports.VhostUser) {
		err = fmt.Errorf("an open lease without a socket: %w", volatile.ErrDamaged)
	}
	if err != nil {
		s.close()
	}
	return s, err
}

// export starts the exports of t. It goes on past one that does not start: that
// nothing is served at all, exports that are nil say. p and rec are t's path and
// record.
func (e *Engine) export(t *tenancy, p *path, rec volatile.Record, on sockets) (*exports, error) {
	x := &exports{log: e.cfg.Log.With("lease_id", t.id)}
	var errs []error
	var err error
	// Both draw on the same budget, as what this lease has.
	admit, readmit := e.conns.lease()
	if on.vhost != nil { // first: a session that is taken over has waited longest
		if x.vhost, err = vhostuser.Serve(on.vhost, vhostuser.Config{
			Export: p.volume, Queues: int(rec.Exports.Queues), ReadOnly: rec.Exports.ReadOnly, ID: t.id,
			Keeper: places{e, t.slot}, Admit: admit, Readmit: readmit, Allow: e.allow(rec.UID),
			Lock: e.cfg.Lock, Log: x.log, Poll: e.cfg.Poll, Cores: runtime.NumCPU(),
		}); err != nil {
			errs = append(errs, err)
		}
	}
	if on.nbd != nil {
		if x.nbd, err = nbd.Serve(on.nbd, nbd.Config{
			Export: p.volume, Map: p.blocks.Extents,
			Admit: admit, Readmit: readmit, Allow: e.allow(rec.UID),
			Lock: e.cfg.Lock, Log: x.log, Poll: e.cfg.Poll, MaxHandshakes: maxHandshakes,
		}); err != nil {
			errs = append(errs, err)
		}
	}
	if x.nbd == nil && x.vhost == nil {
		x = nil
	}
	return x, errors.Join(errs...)
}

// maxHandshakes is how many NBD clients of one lease may be in the handshake at
// once. Each has a thread: with all slots' leases attacked by clients that connect
// and say nothing, at most 4,096 (threads).
const maxHandshakes = 4

// Hurry lets their threads run before others; Close follows.
func (x *exports) Hurry() {
	if x.vhost != nil {
		x.vhost.Hurry()
	}
	if x.nbd != nil {
		x.nbd.Hurry()
	}
}

// Close ends what they serve. It waits for nothing.
func (x *exports) Close() {
	if x.vhost != nil {
		x.vhost.Close()
	}
	if x.nbd != nil {
		x.nbd.Close()
	}
}

// Wait returns when their threads have ended, after Close or Leave.
func (x *exports) Wait() {
	if x.vhost != nil {
		x.vhost.Wait()
	}
	if x.nbd != nil {
		x.nbd.Wait()
	}
}

// discard ends exports, which may be nil, that nobody knows of, and is done with
// counting when their threads have ended.
func (x *exports) discard(counting *sync.WaitGroup) {
	if x == nil {
		counting.Done()
		return
	}
	x.Hurry()
	x.Close()
	go func() {
		defer counting.Done()
		x.Wait()
	}()
}

// Leave brings both to rest, and returns NBD's connections, for the next engine.
// What a vhost-user session is made of, the keeper has already. When ctx has
// ended, requests may be in flight still; Wait is due in any case.
func (x *exports) Leave(ctx context.Context) (conns []nbd.Passed) {
	var both sync.WaitGroup
	defer both.Wait()
	if x.vhost != nil {
		both.Go(func() {
			if err := x.vhost.Leave(ctx); err != nil {
				x.log.Warn("a session did not come to rest; it is taken over as after a crash", "error", err)
			}
		})
	}
	if x.nbd != nil {
		conns = x.nbd.Leave(ctx)
	}
	return conns
}

// Adopt goes on with NBD's connections.
func (x *exports) Adopt(conns []nbd.Passed) error {
	if x.nbd == nil {
		return nil // then there are none
	}
	var errs []error
	for _, c := range conns {
		errs = append(errs, x.nbd.Adopt(c.File, c.Terms))
	}
	return errors.Join(errs...)
}

// Connections is how many clients and frontends are connected.
func (x *exports) Connections() (n int) {
	if x.vhost != nil {
		n += x.vhost.Stats().Connections
	}
	if x.nbd != nil {
		n += x.nbd.Stats().Connections
	}
	return n
}

// count adds what only the vhost-user export counts.
func (x *exports) count(s *ipc.LeaseStats) {
	if x.vhost != nil {
		v := x.vhost.Stats()
		s.Queues = v.Rings
		s.BrokenQueues += v.Broken
		s.Expelled += v.Garbage
	}
}

// places are one slot's. It is a [vhostuser.Keeper].
type places struct {
	e    *Engine
	slot int
}

// Keep does not return when the keeper's link is down, before the engine ends: it
// is about to, and no session shall be given up meanwhile.
func (p places) Keep(place int, f *os.File) error {
	err := p.e.keeper.Keep(p.slot, place, f)
	switch {
	case errors.Is(err, volatile.ErrLink):
		<-p.e.ctx.Done()
	case errors.Is(err, syscall.ENOSPC):
		p.e.full()
	}
	return err
}

// full tells the operator, once a minute at most, that sessions end for want of
// descriptors: the frontend only sees its connection end.
func (e *Engine) full() {
	now, last := time.Now().Unix(), e.toldFull.Load()
	if now-last >= 60 && e.toldFull.CompareAndSwap(last, now) {
		e.cfg.Log.Error("a vhost-user session ends: the keeper has no descriptors left for sessions, raise the limit of open files (LimitNOFILE) or use fewer queues")
	}
}

// Fetch waits likewise: a session that cannot be fetched would be given up.
func (p places) Fetch(place int) (*os.File, error) {
	f, err := p.e.keeper.FetchPlace(p.slot, place)
	if errors.Is(err, volatile.ErrLink) {
		<-p.e.ctx.Done()
	}
	return f, err
}

func toExports(x ipc.Exports) volatile.Exports {
	return volatile.Exports{NoNBD: x.NoNBD, VhostUser: x.VhostUser, ReadOnly: x.ReadOnly, Queues: uint16(x.Queues)}
}

// checkExports says what is wrong with a lease's exports and their sockets.
func checkExports(req *ipc.LeaseOpenRequest, files []*os.File) error {
	x, want := req.Exports, 1
	switch {
	case !x.VhostUser && x != ipc.Exports{}:
		return invalid("lease %s: it has no export, or queues without vhost-user", req.Lease)
	case x.VhostUser && (x.Queues < 1 || x.Queues > volatile.MaxQueues):
		return invalid("lease %s: %d queues, want 1 to %d", req.Lease, x.Queues, volatile.MaxQueues)
	case x.VhostUser && !x.NoNBD:
		want = 2
	}
	switch {
	case len(files) == 0:
		return invalid("lease %s came without its listening socket", req.Lease)
	case len(files) != want:
		return invalid("lease %s came with %d listening sockets, want %d", req.Lease, len(files), want)
	}
	return nil
}
