package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"vacate/internal/ipc"
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/proof"
)

// This file is what control does when it starts and the journal cannot be opened
// for writing, while the engine holds leases: their tenants must be able to leave
// (law L6: erasure never waits for the log).
//
//	journal     leases are listed
//	readable    as it has them
//	unreadable  as the engine has them: id and slot
//
// Until then leases are closed, which destroys their keys at once; nothing is
// opened or enrolled, no CLOSE is recorded, and no space is free. When the journal
// can be opened control ends, and the next one, which is confined by Landlock too,
// reads it and finds the endings in the engine.

// retryJournal is how often the journal is tried.
const retryJournal = time.Second

// errJournalBack ends a control that went without its journal.
var errJournalBack = errors.New("the journal can be written again: starting with it")

// A waiting is a journal that cannot be written. It is a [journal.Store]: it gives
// what was read, and refuses every change, unchanged.
type waiting struct {
	nodeID string
	state  *journal.State
	open   func() (journal.Store, error)
	log    *slog.Logger

	mu  sync.Mutex
	why error
}

// Unwritable returns why the journal cannot be written.
func (w *waiting) Unwritable() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}

// retry tries to open the journal until ctx is done, or it can: then it returns
// [errJournalBack].
func (w *waiting) retry(ctx context.Context, every time.Duration) error {
	for {
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
		store, err := w.open()
		if err == nil {
			return errors.Join(errJournalBack, store.Close())
		}
		w.mu.Lock()
		if w.why.Error() != err.Error() {
			w.log.Warn("the journal cannot be written yet", "error", err)
		}
		w.why = err
		w.mu.Unlock()
	}
}

// refused is the answer to every change.
func (w *waiting) refused() error { return fmt.Errorf("%w: %w", w.Unwritable(), journal.ErrUnchanged) }

// NodeID implements journal.Store, as do the methods below.
func (w *waiting) NodeID() string { return w.nodeID }

func (w *waiting) Load() (*journal.State, error) { return w.state, nil }

func (w *waiting) AddDrive(journal.Drive) error { return w.refused() }

func (w *waiting) DropDrive(string) error { return w.refused() }

func (w *waiting) FinishDrive(journal.Drive, journal.Testimony) error { return w.refused() }

func (w *waiting) IntendEpochs([]string) error { return w.refused() }

func (w *waiting) ConfirmEpochs([]string) error { return w.refused() }

func (w *waiting) OpenLease(lease.Lease, journal.Testimony) (lease.Lease, error) {
	return lease.Lease{}, w.refused()
}

func (w *waiting) LimitLease(string, limit.Limits) (lease.Lease, error) {
	return lease.Lease{}, w.refused()
}

func (w *waiting) CloseLease(lease.Lease, bool, journal.Testimony) (lease.Lease, error) {
	return lease.Lease{}, w.refused()
}

func (w *waiting) ReleaseLease(string, proof.Event, journal.Testimony) (lease.Lease, error) {
	return lease.Lease{}, w.refused()
}

func (w *waiting) Append(proof.Record) (uint64, error) { return 0, w.refused() }

func (w *waiting) FreeSpace(string) (lease.Lease, error) { return lease.Lease{}, w.refused() }

func (w *waiting) Records(uint64, int) ([]journal.Stored, error) { return nil, w.refused() }

func (w *waiting) Close() error { return nil }

// fromEngine is the leases that an engine holds, as far as it knows them, for
// want of a journal that can be read.
func fromEngine(list ipc.LeaseList) *journal.State {
	s := &journal.State{}
	for _, l := range list.Leases {
		s.Live = append(s.Live, lease.Lease{ID: l.Lease, Slot: l.Slot, Limits: l.Limits, State: lease.Opening, Space: lease.Held,
			Text: "the journal cannot be read: size, tenant and place are unknown"})
	}
	return s
}
