package nodesim

import (
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/proof"
)

// Store is a journal whose calls can be struck. Reading and closing cannot.
type Store struct {
	journal.Store
	F *Faults
}

// The changes, see [journal.Store].

func (s Store) AddDrive(d journal.Drive) error {
	return run0(s.F, "AddDrive", func() error { return s.Store.AddDrive(d) })
}

func (s Store) DropDrive(uuid string) error {
	return run0(s.F, "DropDrive", func() error { return s.Store.DropDrive(uuid) })
}

func (s Store) FinishDrive(d journal.Drive, te journal.Testimony) error {
	return run0(s.F, "FinishDrive", func() error { return s.Store.FinishDrive(d, te) })
}

func (s Store) IntendEpochs(uuids []string) error {
	return run0(s.F, "IntendEpochs", func() error { return s.Store.IntendEpochs(uuids) })
}

func (s Store) ConfirmEpochs(uuids []string) error {
	return run0(s.F, "ConfirmEpochs", func() error { return s.Store.ConfirmEpochs(uuids) })
}

func (s Store) OpenLease(l lease.Lease, te journal.Testimony) (lease.Lease, error) {
	return run(s.F, "journal OpenLease", func() (lease.Lease, error) { return s.Store.OpenLease(l, te) })
}

func (s Store) LimitLease(id string, limits limit.Limits) (lease.Lease, error) {
	return run(s.F, "journal LimitLease", func() (lease.Lease, error) { return s.Store.LimitLease(id, limits) })
}

func (s Store) CloseLease(l lease.Lease, free bool, te journal.Testimony) (lease.Lease, error) {
	return run(s.F, "journal CloseLease", func() (lease.Lease, error) { return s.Store.CloseLease(l, free, te) })
}

func (s Store) ReleaseLease(id string, ev proof.Event, te journal.Testimony) (lease.Lease, error) {
	return run(s.F, "journal ReleaseLease", func() (lease.Lease, error) { return s.Store.ReleaseLease(id, ev, te) })
}

func (s Store) FreeSpace(id string) (lease.Lease, error) {
	return run(s.F, "FreeSpace", func() (lease.Lease, error) { return s.Store.FreeSpace(id) })
}
