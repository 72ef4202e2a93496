package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
)

// This file is what control does when it starts and the journal cannot be opened
// for writing, while the engine holds leases: their tenants must be able to leave
// (law L6: erasure never waits for the log).
//
//	journal    leases are listed     when it can be opened
//	readable   as it has them        changes that waited are written; control goes on
//	unreadable as the engine has     control ends, and the next one reads it
//	           them: id and slot
//
// Until then leases are closed, which destroys their keys at once; nothing is
// opened or enrolled, no CLOSE is recorded, and no space is free.

// retryJournal is how often the journal is tried.
const retryJournal = time.Second

// errJournalBack ends a control that had only the engine's word for its leases.
var errJournalBack = errors.New("the journal can be read again: starting with it")

// A waiting is a journal that cannot be written yet. It is a [journal.Store]: until
// open succeeds it gives what was read, and refuses every change, unchanged.
type waiting struct {
	nodeID string
	state  *journal.State
	known  bool // state is the journal's own
	open   func() (journal.Store, error)
	log    *slog.Logger

	mu    sync.Mutex
	why   error         // nil when store is there
	store journal.Store // nil until then
}

// Unwritable returns nil, or why the journal cannot be written now.
func (w *waiting) Unwritable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}

// retry tries to open the journal until it can, or ctx is done. It returns an
// error when only another control can go on.
func (w *waiting) retry(ctx context.Context, every time.Duration) error {
	for {
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
		store, err := w.open()
		if err == nil {
			return w.adopt(store)
		}
		w.mu.Lock()
		if w.why.Error() != err.Error() {
			w.log.Warn("the journal cannot be written yet", "error", err)
		}
		w.why = err
		w.mu.Unlock()
	}
}

// adopt goes on with store, if it is what was read.
func (w *waiting) adopt(store journal.Store) error {
	if !w.known {
		return errors.Join(errJournalBack, store.Close())
	}
	now, err := store.Load()
	if err == nil && (store.NodeID() != w.nodeID || !reflect.DeepEqual(now, w.state)) {
		err = errors.New("the journal was changed while it could not be written: starting with it as it is now")
	}
	if err != nil {
		return errors.Join(err, store.Close())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.store, w.why = store, nil
	w.log.Info("the journal can be written again")
	return nil
}

// now is the journal, or an error that says that nothing was changed.
func (w *waiting) now() (journal.Store, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.store == nil {
		return nil, fmt.Errorf("%w: %w", w.why, journal.ErrUnchanged)
	}
	return w.store, nil
}

// NodeID implements journal.Store, as do the methods below.
func (w *waiting) NodeID() string { return w.nodeID }

func (w *waiting) Load() (*journal.State, error) { return w.state, nil }

func (w *waiting) change(f func(journal.Store) error) error {
	s, err := w.now()
	if err != nil {
		return err
	}
	return f(s)
}

func (w *waiting) AddDrive(d journal.Drive) error {
	return w.change(func(s journal.Store) error { return s.AddDrive(d) })
}

func (w *waiting) DropDrive(uuid string) error {
	return w.change(func(s journal.Store) error { return s.DropDrive(uuid) })
}

func (w *waiting) FinishDrive(d journal.Drive) error {
	return w.change(func(s journal.Store) error { return s.FinishDrive(d) })
}

func (w *waiting) IntendEpochs(uuids []string) error {
	return w.change(func(s journal.Store) error { return s.IntendEpochs(uuids) })
}

func (w *waiting) ConfirmEpochs(uuids []string) error {
	return w.change(func(s journal.Store) error { return s.ConfirmEpochs(uuids) })
}

func (w *waiting) OpenLease(l lease.Lease) (out lease.Lease, err error) {
	err = w.change(func(s journal.Store) (err error) { out, err = s.OpenLease(l); return err })
	return out, err
}

func (w *waiting) CloseLease(l lease.Lease, free bool) (out lease.Lease, err error) {
	err = w.change(func(s journal.Store) (err error) { out, err = s.CloseLease(l, free); return err })
	return out, err
}

func (w *waiting) FreeSpace(id string) (out lease.Lease, err error) {
	err = w.change(func(s journal.Store) (err error) { out, err = s.FreeSpace(id); return err })
	return out, err
}

func (w *waiting) Records(after uint64, limit int) (out []journal.Stored, err error) {
	err = w.change(func(s journal.Store) (err error) { out, err = s.Records(after, limit); return err })
	return out, err
}

func (w *waiting) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.store == nil {
		return nil
	}
	return w.store.Close()
}

// fromEngine is the leases that an engine holds, as far as it knows them, for
// want of a journal that can be read.
func fromEngine(list ipc.LeaseList) *journal.State {
	s := &journal.State{}
	for _, l := range list.Leases {
		s.Live = append(s.Live, lease.Lease{ID: l.Lease, Slot: l.Slot, State: lease.Opening, Space: lease.Held,
			Text: "the journal cannot be read: size, tenant and place are unknown"})
	}
	return s
}
