package lease

import (
	"time"

	"vacate/internal/extent"
	"vacate/internal/limit"
)

// A Result says how a lease ended.
type Result string

// The results. A record claims only what was observed: OK is an overwritten key
// that was read back; the lost ones say which memory went.
const (
	OK         Result = "ok"
	Failed     Result = "failed"      // it never came to be open; no key exists
	LostKeeper Result = "lost_keeper" // the keeper ended, and its memory with it
	LostBoot   Result = "lost_boot"   // the host has another boot id
	LostEngine Result = "lost_engine" // no engine could take it over; the keeper overwrote its key
	LostDrive  Result = "lost_drive"  // the drive lost completed writes
	LostNode   Result = "lost_node"   // the node never came back; signed by the operator
)

// Space is what becomes of a lease's extents.
type Space string

// The states of space. Held: nobody else may have it. Cleaning: the CLOSE record
// is durable, but I/O of the lease may be in flight. Free: it may be another
// lease's already.
const (
	Held     Space = "held"
	Cleaning Space = "cleaning"
	Free     Space = "free"
)

// Limits.
const (
	BlockBytes = 4096    // sizes are multiples of it
	MaxBytes   = 1 << 62 // of one lease

	// MaxPieces bounds the pieces of one lease, so that a record, which lists
	// them, stays near 4 KiB. A drive would have to be badly fragmented.
	MaxPieces = 128
)

// A Lease is one tenant's hold on one volume. It is a value: its owner copies it
// out, and changes slices and pointers only by replacing them.
type Lease struct {
	ID           string         `json:"id"`                 // see [NewID]
	Tenant       string         `json:"tenant"`             // opaque; empty or see [CheckTenant]
	SizeBytes    int64          `json:"sizeBytes"`          // a multiple of BlockBytes, 1 … MaxBytes
	OpenBytes    int64          `json:"openBytes,omitzero"` // with which it was opened; 0: SizeBytes, it was never resized
	LogicalBlock int            `json:"logicalBlock"`       // 512 or 4096
	UID          uint32         `json:"uid"`                // who may connect, besides root and the daemon
	Pieces       []extent.Piece `json:"pieces"`             // 1 … MaxPieces, in the volume's order
	Slot         int            `json:"slot"`               // of the volatile memory
	Key          string         `json:"key,omitempty"`      // idempotency key
	Drive        string         `json:"drive,omitempty"`    // the drive that was asked for, as it was asked
	TTL          time.Duration  `json:"ttl,omitempty"`      // nanoseconds; 0 is for ever

	Limits     limit.Limits `json:"limits,omitzero"`     // of its volume
	OpenLimits limit.Limits `json:"openLimits,omitzero"` // with which it was opened

	Exports Exports `json:"exports,omitzero"` // ways to reach its volume; all its life

	Proof Proof `json:"proof,omitzero"` // what its records commit to

	OpenedAt  time.Time `json:"openedAt,omitzero"`  // the node's wall clock, as all times here
	ExpiresAt time.Time `json:"expiresAt,omitzero"` // zero: never
	ClosedAt  time.Time `json:"closedAt,omitzero"`  // when it was erased or found lost

	Origin   Origin   `json:"origin"`            // the memory that holds the key
	OpenSeq  uint64   `json:"openSeq"`           // number of the OPEN record
	CloseSeq uint64   `json:"closeSeq"`          // number of the CLOSE record; 0 until it is durable
	State    State    `json:"state"`             //
	Space    Space    `json:"space"`             //
	Result   Result   `json:"result"`            // empty until it has ended, or its opening failed
	Text     string   `json:"text,omitempty"`    // for people: what went otherwise than it should
	Erasure  *Erasure `json:"erasure,omitempty"` // nil where nobody observed one
}

// An Origin identifies the memory that a lease's key lives in.
type Origin struct {
	BootID   string `json:"bootId"`
	KeeperID string `json:"keeperId"`
	EngineID string `json:"engineId"`
	// Generation is the engine's number among its keeper's.
	Generation uint64 `json:"generation,omitempty"`
}

// An Erasure is what was observed when a key was destroyed. Times are
// CLOCK_BOOTTIME in nanoseconds on the boot that BootID names; 0 is "not
// observed".
type Erasure struct {
	BootID         string `json:"bootId"`
	KeyGeneratedNs int64  `json:"keyGeneratedNs"`
	GateClosedNs   int64  `json:"gateClosedNs"`
	CiphersDoneNs  int64  `json:"ciphersDoneNs"`
	KeyDestroyedNs int64  `json:"keyDestroyedNs"`
	ReadBack       bool   `json:"readBack"`
	Drained        bool   `json:"drained"` // nothing was in flight when the CLOSE record was written
}

// Apply moves the lease on, as [Next] says.
func (l *Lease) Apply(e Event) error {
	next, err := Next(l.State, e)
	if err != nil {
		return err
	}
	l.State = next
	return nil
}
