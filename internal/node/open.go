package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"vacate/internal/fail"
	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/internal/plant"
	"vacate/proof"
)

// This file opens leases:
//
//	1. admit: id, space and slot are taken in memory.
//	2. Folder and sockets are made, one for each export; the engine makes key, map
//	   and path, serves nothing, and says what the key was committed to.
//	3. The journal holds the lease, its extents and its OPEN record, with the
//	   commitment, durably.
//	4. The engine serves it.
//
// When 2 fails, or 3 surely did nothing, the key is destroyed and 1 is taken back:
// such a lease never was. When 4, or perhaps 3, fails, it is closed like any other,
// with the result "failed".

// OpenRequest says what volume is wanted.
type OpenRequest struct {
	SizeBytes    int64         // a multiple of 4096
	Tenant       string        // who the lease is for; may be empty
	Drive        string        // path, UUID or serial; empty lets the node choose, and span drives
	LogicalBlock int           // 512 or 4096; 0 means 512
	UID          uint32        // who may connect, besides root and the daemon
	TTL          time.Duration // 0 is for ever
	Key          string        // idempotency key; see Open
	Limits       limit.Limits  // how fast the volume may be used
	Exports      lease.Exports // ways to reach it; of a vhost-user export, 0 queues are Config.Queues

	// EraseBy is when its key has to be destroyed at the latest: the OPEN record
	// promises it, and the lease is closed a margin before. Parts of a second are cut
	// off; zero: no promise.
	EraseBy time.Time

	// Prepared is the id of a lease that was prepared: the one that is opened; Sealed
	// is the tenant's half of its key. Empty: the engine makes all of the key.
	Prepared string
	Sealed   string // bytes

	// Attach is called when the volume is served, and before the lease is open. After
	// an error the opening has failed, with that. A second call with the same
	// idempotency key does not call it. May be nil.
	Attach Attacher
}

// An Attacher does what else belongs to an opening. It may be called again for the
// same lease, when the engine has changed meanwhile.
type Attacher interface {
	Attach(ctx context.Context, l lease.Lease) error
}

func (r *OpenRequest) check() error {
	if r.LogicalBlock == 0 {
		r.LogicalBlock = 512
	}
	if r.Tenant != "" {
		if err := lease.CheckTenant(r.Tenant); err != nil {
			return invalid(r.Tenant, "%v", err)
		}
	}
	if r.Key != "" {
		if err := lease.CheckKey(r.Key); err != nil {
			return invalid(r.Key, "%v", err)
		}
	}
	if err := checkSize(r.SizeBytes); err != nil {
		return err
	}
	switch {
	case r.LogicalBlock != 512 && r.LogicalBlock != 4096:
		return invalid(fmt.Sprint(r.LogicalBlock), "logical blocks have 512 or 4096 bytes, not %d", r.LogicalBlock)
	case r.TTL < 0 || r.TTL > 0 && r.TTL < time.Second:
		return invalid(r.TTL.String(), "a time to live of %v is too short: a second is the least", r.TTL)
	}
	if err := r.Exports.Check(); err != nil {
		return invalid("exports", "%v", err)
	}
	if (r.Prepared == "") != (r.Sealed == "") || r.Prepared != "" && !lease.ValidID(r.Prepared) {
		return invalid(r.Prepared, "a tenant's share is the id of the lease that was prepared, and what was sealed to it")
	}
	if !r.EraseBy.IsZero() {
		r.EraseBy = r.EraseBy.UTC().Truncate(time.Second)
	}
	return checkLimits(r.Limits)
}

// checkSize says what is wrong with the size of a volume.
func checkSize(bytes int64) error {
	size := fmt.Sprint(bytes)
	switch {
	case bytes == 0:
		return invalid(size, "a lease of 0 bytes holds nothing: ask for at least %d", lease.BlockBytes)
	case bytes < 0:
		return invalid(size, "the size %d is negative", bytes)
	case bytes > lease.MaxBytes:
		return invalid(size, "the size %d is over the largest that a lease can have, 2^62", bytes)
	case bytes%lease.BlockBytes != 0:
		up := bytes - bytes%lease.BlockBytes + lease.BlockBytes
		return invalid(size, "the size %d is not a multiple of %d: the next is %d", bytes, lease.BlockBytes, up)
	}
	return nil
}

// same reports whether l is what r asks for.
func (r OpenRequest) same(l lease.Lease) bool {
	return r.SizeBytes == cmp.Or(l.OpenBytes, l.SizeBytes) && r.Tenant == l.Tenant && r.Drive == l.Drive && r.LogicalBlock == l.LogicalBlock &&
		r.UID == l.UID && r.TTL == l.TTL && r.Limits == l.OpenLimits && r.Exports == l.Exports && r.EraseBy.Equal(l.Proof.EraseBy) &&
		(r.Prepared == "" && l.Proof.KeyMode != ipc.KeyModeSplit || r.Prepared == l.ID)
}

// Open opens a lease and returns when it is open. With an idempotency key, a
// second call of the same tenant returns the lease of the first, whatever has
// become of it, unless the first failed; with other parameters it is refused.
//
// A caller who leaves early: with a key, the lease is opened all the same and
// the key finds it; without one, nobody could know its id, so it is closed again.
func (n *Node) Open(ctx context.Context, req OpenRequest) (lease.Lease, error) {
	if req.Exports.VhostUser && req.Exports.Queues == 0 {
		req.Exports.Queues = n.cfg.Queues
	}
	if err := req.check(); err != nil {
		return lease.Lease{}, err
	}
	if err := n.reachable(req.Exports); err != nil {
		return lease.Lease{}, err
	}
	e, done, err := n.admit(req)
	if err != nil || e == nil {
		return done, err
	}
	select {
	case <-e.opened:
	case <-n.ctx.Done():
		return lease.Lease{}, errEnded
	case <-ctx.Done():
		n.abandon(e)
		return lease.Lease{}, ctx.Err()
	}
	n.mu.Lock()
	l, err := e.view(), e.openErr
	n.mu.Unlock()
	if err == nil {
		return l, nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.CloseWait)
	defer cancel()
	select { // its space should be free again when the caller reads the error
	case <-e.settled:
	case <-n.ctx.Done():
	case <-ctx.Done():
	}
	return lease.Lease{}, err
}

// admit takes id, slot and space, and starts the opening. Where the idempotency
// key is known it returns the opening that has it, or (e is nil) the lease.
func (n *Node) admit(req OpenRequest) (e *entry, done lease.Lease, err error) {
	id, salt, err := n.identity(req)
	if err != nil {
		return nil, done, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if req.Key != "" {
		if id, ok := n.keys[req.Tenant+"\x00"+req.Key]; ok {
			return n.again(id, req)
		}
	}
	if err := n.taking(); err != nil {
		return nil, done, err
	}
	if _, over := n.past.byID[id]; over || n.leases[id] != nil {
		return nil, done, &Error{Kind: Refused, Object: id, Text: fmt.Sprintf("there is, or was, a lease %s", id), Next: "prepare another"}
	}
	now := n.cfg.Clock().UTC().Round(0)
	ends, err := n.ends(req, now)
	if err != nil {
		return nil, done, err
	}
	slot, err := n.freeSlot()
	if err != nil {
		return nil, done, err
	}
	rooms, err := n.rooms(req.Drive)
	if err != nil {
		return nil, done, err
	}
	pieces, err := place(rooms, req.SizeBytes)
	if err != nil {
		return nil, done, err
	}
	l := lease.Lease{
		ID: id, Tenant: req.Tenant, SizeBytes: req.SizeBytes, LogicalBlock: req.LogicalBlock, UID: req.UID,
		Pieces: pieces, Slot: slot, Key: req.Key, Drive: req.Drive, TTL: req.TTL, Limits: req.Limits, OpenLimits: req.Limits,
		Exports: req.Exports, OpenedAt: now,
		Origin: lease.Origin{BootID: n.hello.BootID, KeeperID: n.hello.KeeperID, EngineID: n.hello.EngineID, Generation: n.hello.Generation},
		State:  lease.Opening, Space: lease.Held,
	}
	l.Proof = lease.Proof{KeyMode: ipc.KeyModeNode, TenantSalt: salt, EraseBy: req.EraseBy}
	if req.Prepared != "" {
		l.Proof.KeyMode = ipc.KeyModeSplit
	}
	l.ExpiresAt = ends
	n.takeSlot(slot)
	e = newEntry(l)
	e.unwritten = true
	n.leases[id] = e
	n.bindKey(l)
	n.goLocked(func() { n.finishOpen(e, req) })
	return e, done, nil
}

// again answers a request whose idempotency key lease id has. REQUIRES: n.mu is held.
func (n *Node) again(id string, req OpenRequest) (*entry, lease.Lease, error) {
	e, l := n.leases[id], n.past.byID[id]
	if e != nil {
		l = e.view()
	}
	switch {
	case !req.same(l):
		return nil, lease.Lease{}, &Error{Kind: Refused, Object: id,
			Text: fmt.Sprintf("idempotency key %q belongs to lease %s, which was opened with other parameters", req.Key, id),
			Next: "use another key for another lease"}
	case e != nil && l.Result == lease.Failed:
		return nil, lease.Lease{}, &Error{Kind: Recovering, Object: id,
			Text: fmt.Sprintf("the first opening with idempotency key %q failed and is being undone", req.Key), Next: "try again"}
	case e != nil && e.unsure && !l.State.Ended():
		return nil, lease.Lease{}, &Error{Kind: Recovering, Object: id,
			Text: fmt.Sprintf("the daemon has restarted, and is finding out what became of the first opening with idempotency key %q", req.Key),
			Next: "try again in a moment"}
	}
	return e, l, nil
}

// taking says why no lease can be opened now. REQUIRES: n.mu is held.
func (n *Node) taking() error {
	switch {
	case n.ended:
		return errEnded
	case n.stopping:
		return &Error{Kind: Unavailable, Text: "the daemon is stopping", Next: "try again when it is back"}
	case n.unwritable() != nil:
		return &Error{Kind: Unavailable, Text: "the journal cannot be written, so leases can only be closed", Err: n.unwritable(),
			Next: journalNext}
	case !n.ready:
		return errRecovering
	}
	for id := range n.strangers {
		return &Error{Kind: Unavailable, Object: id,
			Text: fmt.Sprintf("the engine holds lease %s, which the journal does not know, and where it lies is unknown", id),
			Next: "try again when it has drained"}
	}
	return nil
}

// journalNext is what to do about a journal that cannot be written.
const journalNext = "see that the file system of the state folder has room and is writable"

func (n *Node) unwritable() error {
	if n.cfg.Unwritable == nil {
		return nil
	}
	return n.cfg.Unwritable()
}

// freeSlot finds a slot of the volatile memory, the one after the last: a slot
// that the keeper will not give stops one opening then, and not all; and how a
// lease ended is remembered for as long as there are other slots. REQUIRES: n.mu
// is held.
func (n *Node) freeSlot() (int, error) {
	for k := range n.hello.Slots {
		i := (n.lastSlot + 1 + k) % n.hello.Slots
		if i >= len(n.slots) || !n.slots[i] {
			n.lastSlot = i
			return i, nil
		}
	}
	return 0, &Error{Kind: Full, Text: fmt.Sprintf("%d leases are open or not drained yet, that is the most", n.hello.Slots),
		Next: "close one"}
}

// abandon is called by who opened e and cannot wait.
func (n *Node) abandon(e *entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.l.Key != "" {
		return
	}
	e.abandoned = true
	if e.l.State == lease.Open {
		n.startClose(e)
	}
}

// finishOpen carries out steps 2 to 4.
func (n *Node) finishOpen(e *entry, req OpenRequest) {
	n.mu.Lock()
	l := e.l
	n.mu.Unlock()
	opened, err := n.makeKey(l, req.Sealed)
	if err != nil {
		n.failOpen(e, err)
		return
	}
	fail.At(fail.ControlKeyed)
	n.mu.Lock()
	e.l.Proof = commitments(e.l.Proof, opened)
	l = e.l
	e.unwritten = false // perhaps
	n.mu.Unlock()
	if plant.Is(plant.ServedEarly) {
		_ = n.cfg.Engine.ServeLease(n.ctx, l.ID) //nolint:errcheck // a planted bug
	}
	stored, err := n.cfg.Store.OpenLease(l, n.testimony(proof.OPEN, l))
	if err != nil {
		err = n.storeFailed(err)
		if errors.Is(err, journal.ErrUnchanged) {
			n.mu.Lock()
			e.unwritten = true
			n.mu.Unlock()
			err = &Error{Kind: Unavailable, Object: l.ID, Text: "the journal could not be written, so no lease was opened", Err: err, Next: journalNext}
		}
		n.failOpen(e, err)
		return
	}
	fail.At(fail.ControlOpening)
	n.mu.Lock()
	e.l.OpenSeq = stored.OpenSeq
	n.publish(e.l)
	n.mu.Unlock()
	if err := n.serveNew(e, req.Attach); err != nil {
		n.failOpen(e, err)
	}
}

// serveNew is step 4. An engine that took the place of the one which answered may not
// have the lease: it is asked as well.
func (n *Node) serveNew(e *entry, attach Attacher) error {
	for {
		n.mu.Lock()
		asked, l := n.hello.EngineID, e.l
		n.mu.Unlock()
		if err := n.cfg.Engine.ServeLease(n.ctx, e.l.ID); err != nil { // ID never changes
			return err
		}
		if attach != nil {
			if err := attach.Attach(n.ctx, l); err != nil {
				return err
			}
		}
		fail.At(fail.ControlOpened)
		n.mu.Lock()
		if n.hello.EngineID == asked {
			break
		}
		n.mu.Unlock()
	}
	defer n.mu.Unlock()
	n.cfg.Log.Info("lease open", "lease_id", e.l.ID, "size_bytes", e.l.SizeBytes)
	n.move(e, lease.Opened)
	e.finishOpening(nil)
	n.arm(e)
	if e.abandoned {
		n.startClose(e)
	}
	return nil
}

// makeKey is step 2.
func (n *Node) makeKey(l lease.Lease, sealed string) (ipc.LeaseOpened, error) {
	listeners, err := n.cfg.Sockets.Make(l.ID, l.UID, l.Exports.Kinds()...)
	if err != nil {
		return ipc.LeaseOpened{}, err
	}
	req := ipc.LeaseOpenRequest{Lease: l.ID, Slot: l.Slot, SizeBytes: l.SizeBytes, LogicalBlock: l.LogicalBlock, Pieces: l.Pieces, UID: l.UID,
		Limits: l.Limits, Exports: ipc.Exports(l.Exports), Hold: true}
	if sealed != "" {
		req.Share = &ipc.Share{Prepared: l.ID, Sealed: []byte(sealed)}
	}
	// Not bound to the caller's patience: E1 and E2 hold for calls that have ended.
	opened, err := n.cfg.Engine.OpenLease(n.ctx, req, listeners...)
	if cerr := closeAll(listeners); err == nil {
		err = cerr
	}
	if c := codeOf(err); req.Share != nil && (c == ipc.CodeNotFound || c == ipc.CodeInvalid) {
		err = &Error{Kind: Refused, Object: l.ID, Text: "nothing was opened with the tenant's share", Err: err,
			Next: "prepare another lease, and have the tenant make another share: `vacate lease prepare`"}
	}
	if err == nil && (opened.KeyCommit == "" || opened.KeyMode != l.Proof.KeyMode) {
		err = fmt.Errorf("the engine made a key of mode %q, committed to by %q", opened.KeyMode, opened.KeyCommit)
	}
	return opened, err
}

// failOpen closes a lease whose opening did not succeed, or not surely.
func (n *Node) failOpen(e *entry, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.l.Result = lease.Failed
	e.l.Text = "opening failed: " + err.Error()
	n.cfg.Log.Warn("opening failed", "lease_id", e.l.ID, "error", err)
	n.move(e, lease.OpenFailed)
	shown := fmt.Errorf("opening lease %s: %w", e.l.ID, err)
	if known := (*Error)(nil); errors.As(err, &known) {
		shown = known
	} else if errors.Is(err, ipc.ErrGone) {
		shown = &Error{Kind: Recovering, Object: e.l.ID, Text: "the engine ended while the lease was opened, and the opening is undone", Err: err,
			Next: "try again: the next engine takes over in a moment"}
	}
	e.finishOpening(shown)
	n.startClose(e)
}
