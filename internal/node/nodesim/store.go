package nodesim

import (
	"vacate/internal/journal"
	"vacate/internal/lease"
	"vacate/internal/limit"
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

func (s Store) FinishDrive(d journal.Drive) error {
	return run0(s.F, "FinishDrive", func() error { return s.Store.FinishDrive(d) })
}

func (s Store) IntendEpochs(uuids []string) error {
	return run0(s.F, "IntendEpochs", func() error { return s.Store.IntendEpochs(uuids) })
}

func (s Store) ConfirmEpochs(uuids []string) error {
	return run0(s.F, "ConfirmEpochs", func() error { return s.Store.ConfirmEpochs(uuids) })
}

func (s Store) OpenLease(l lease.Lease) (lease.Lease, error) {
	return run(s.F, "journal OpenLease", func() (lease.Lease, error) { return s.Store.OpenLease(l) })
}

func (s Store) LimitLease(id string, limits limit.Limits) (lease.Lease, error) {
	return run(s.F, "journal LimitLease", func() (lease.Lease, error) { return s.Store.LimitLease(id, limits) })
}

func (s Store) CloseLease(l lease.Lease, free bool) (lease.Lease, error) {
	return run(s.F, "journal CloseLease", func() (lease.Lease, error) { return s.Store.CloseLease(l, free) })
}

func (s Store) FreeSpace(id string) (lease.Lease, error) {
	return run(s.F, "FreeSpace", func() (lease.Lease, error) { return s.Store.FreeSpace(id) })
}
