// Package journal keeps what a node must not forget: its drives, its leases,
// who holds which extents, and the spool of records.
//
// It is one bbolt file, journal.db, in the node's state folder. Each method of
// [Store] that changes something is one transaction, durable when it returns
// (docs/spec/journal.md has the layout, with vectors).
//
// # Rules
//
//	J1: a lease, its extents, its OPEN record, the record's number and its
//	    idempotency key are in the journal, all or none.
//	J2: extents are held by at most one lease, and stay held until a later
//	    transaction than, or the same as, the one that wrote the CLOSE record.
//	J3: the numbers of records have no gap, and each record has the SHA-256 of
//	    the bytes of the one before it.
//	J4: a lease has one OPEN record and at most one CLOSE record, however often
//	    a caller who got an error asks again.
//	J5: whatever the file holds, opening it returns errors; it neither panics
//	    nor changes what it does not understand.
//
// Records are payloads: statements that are signed and logged as they are
// ([proof.EncodePayload]). That is done later, and elsewhere, through [Spool]:
// signing may be slow, and the log may be away.
package journal

import (
	"errors"
	"time"

	"vacate/internal/extent"
	"vacate/internal/lease"
	"vacate/internal/limit"
	"vacate/proof"
)

// Sentinels, for callers that branch. The error around one says which folder or
// object it is about, and what to do next.
var (
	ErrLocked   = errors.New("state folder is in use")
	ErrReadOnly = errors.New("state folder cannot be written")
	ErrFolder   = errors.New("state folder is not safe")
	ErrCorrupt  = errors.New("journal is damaged")
	ErrVersion  = errors.New("journal has an unknown version")

	// ErrUnchanged is in every error after which the journal surely is as it was
	// before the call: it refused, or the disk was full. An error without it
	// leaves open whether the change will be there after a restart.
	ErrUnchanged = errors.New("journal is unchanged")

	// ErrBroken is in every error after the medium's state became unknown. The
	// only way on is to restart and recover.
	ErrBroken = errors.New("journal must be opened again")

	ErrNotFound = errors.New("not in the journal")
	ErrExists   = errors.New("in the journal already")
	ErrOverlap  = errors.New("extents are held already")

	// ErrStale is a lease that was resized, or whose key was released, since the caller
	// looked: what was to be recorded is of the lease as it was before.
	ErrStale = errors.New("the lease has changed")
)

// Store is the journal, seen by the node. [Bolt] is the real one; tests wrap it
// to fail any call before or after it took effect. Methods may be called from
// any goroutine.
type Store interface {
	// NodeID is random, made with the journal: 32 hexadecimal digits.
	NodeID() string

	// Load returns everything that a node needs at its start.
	Load() (*State, error)

	// AddDrive notes that a drive is about to be enrolled: its state is
	// Enrolling, its geometry unknown.
	AddDrive(d Drive) error

	// DropDrive forgets a drive whose enrolment never happened.
	DropDrive(uuid string) error

	// FinishDrive makes a drive Ready, with its geometry, and writes its ENROL
	// record. For a drive that is Ready already it does nothing.
	FinishDrive(d Drive, te Testimony) error

	// IntendEpochs sets Next to Epoch+1 on those of the drives that have no Next:
	// the intent that precedes the same change of the superblock.
	IntendEpochs(uuids []string) error

	// ConfirmEpochs sets Epoch to Next, and Next to 0, on those of the drives that
	// have a Next: their superblocks carry it.
	ConfirmEpochs(uuids []string) error

	// OpenLease is rule J1. The lease is in state Opening with space Held, and its
	// Proof commits to its key, which exists; the answer has its OpenSeq.
	OpenLease(l lease.Lease, te Testimony) (lease.Lease, error)

	// LimitLease sets the limits of a lease whose CLOSE record is not written, and
	// returns it. One that has ended, or never was, is ErrNotFound.
	LimitLease(id string, limits limit.Limits) (lease.Lease, error)

	// ResizeLease gives a lease whose CLOSE record is not written its new size, more
	// than it has, and the pieces that make it up: those that it has, and more
	// behind them ([extent.Join]), held from now on. It writes a RESIZE record, and
	// returns the lease. Asked again, it changes nothing. A lease that has ended is
	// ErrNotFound, with the lease as it ended; one that never was, or is forgotten,
	// is ErrNotFound too.
	ResizeLease(id string, size int64, pieces []extent.Piece) (lease.Lease, error)

	// CloseLease writes the CLOSE record of a lease that is erased or lost, and
	// what is in l of result, text, erasure and time. With free, nothing is in
	// flight: the extents are freed in the same transaction, otherwise they are
	// Cleaning. The answer is the lease as it stands then. Asked again, it returns
	// what the first call wrote; the testimony, annex included, is the first one's
	// too. A lease that the journal never held is ErrNotFound. One that has another
	// size than l, or a key that was released and is not in l, is ErrStale, with the
	// lease as the journal has it: its annex would say what is not so.
	CloseLease(l lease.Lease, free bool, te Testimony) (lease.Lease, error)

	// ReleaseLease writes a KEY_RELEASED record of a lease whose CLOSE record is not
	// written: its key may be given to its tenant from then on. Asked again, it
	// changes nothing. A lease that has ended, or never was, is ErrNotFound.
	ReleaseLease(id string, ev proof.Event, te Testimony) (lease.Lease, error)

	// Append writes a SANITIZE, RETIRE or KEYS record, which changes nothing else, and
	// returns its number. Number, node and hash are the journal's. Asked again at
	// once, while it is the newest record, it returns the same number.
	Append(r proof.Record) (seq uint64, err error)

	// FreeSpace frees the extents of a lease whose CLOSE record is written. Asked
	// again, it changes nothing.
	FreeSpace(id string) (lease.Lease, error)

	// Records returns at most limit records that follow record number after, in
	// order.
	Records(after uint64, limit int) ([]Stored, error)

	// Close gives up the state folder.
	Close() error
}

// State is what Load returns.
type State struct {
	Drives []Drive       // by UUID
	Live   []lease.Lease // whose space is not free, by OpenSeq
	Ended  []lease.Lease // the newest of the others, by CloseSeq
}

// A DriveState is where a drive stands.
type DriveState string

// The states of a drive. An Enrolling one may or may not carry superblocks.
const (
	Enrolling DriveState = "enrolling"
	Ready     DriveState = "ready"
)

// A Drive is an enrolled drive.
type Drive struct {
	UUID        string     `json:"uuid"` // 32 hexadecimal digits
	Path        string     `json:"path"`
	Serial      string     `json:"serial"`
	Model       string     `json:"model"`
	Kind        string     `json:"kind,omitempty"` // "file", "block device", …
	Salt        string     `json:"salt,omitempty"` // of the records' driveCommit, 64 hexadecimal digits; empty: enrolled before there was one
	ExtentBytes int64      `json:"extentBytes"`
	Extents     uint32     `json:"extents"`
	Epoch       uint64     `json:"epoch"` // that the superblock surely had
	Next        uint64     `json:"next"`  // that the superblock may have besides; 0 for none
	State       DriveState `json:"state"`
	EnrolledAt  time.Time  `json:"enrolledAt,omitzero"`
}

// Timing says what one transaction cost.
type Timing struct {
	Calls int           // that shared the transaction
	Total time.Duration // from taking them up to the end
	Sync  time.Duration // of it writing and fsync
}
