package volatile

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A State is how far a lease has come, as the engine sees it.
//
//	empty ──> opening ──> open ──> closing ──> erased ──> ended
//	  └<─────────┘ (an open that did not succeed)           │
//	             └<─────────────────────────────────────────┘
//
// An opening may begin in a slot that is empty or ended.
type State uint32

// The states. StateClosing: the gate is being shut, the key may be there still.
// StateErased: the key is destroyed, requests may be in flight still.
// StateEnded: erased and drained; the slot is free, and the record stays until
// it is used again, so that a control that was away learns how the lease ended.
const (
	StateEmpty State = iota
	StateOpening
	StateOpen
	StateClosing
	StateErased
	StateEnded
	states
)

var stateNames = [states]string{"empty", "opening", "open", "closing", "erased", "ended"}

func (s State) String() string {
	if s < states {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint32(s))
}

// A Record is what the table knows about the lease in a slot. The zero Record
// is an empty slot.
type Record struct {
	Lease        LeaseID
	State        State
	LogicalBlock uint32 // bytes: 512 or 4096
	SizeBytes    uint64 // of the volume: a multiple of 4096, at most 2^62
	MapBytes     uint64 // of the map's file: MapBytes(SizeBytes / 4096, its extents)
	Generation   uint64 // of the engine that wrote this, 1 ≤ Generation
	UID          uint32 // who may connect to its exports, besides root and the daemon
	Limits       Limits // how fast the volume may be used
	Exports      Exports

	// CLOCK_BOOTTIME in nanoseconds; 0 is not yet.
	KeyGeneratedNs int64
	GateClosedNs   int64
	CiphersDoneNs  int64
	KeyDestroyedNs int64
}

// Limits are how fast a volume may be used. 0 is no limit; a burst is how much
// may come at once after a pause, and 0 what a second grants.
type Limits struct {
	IOPS, IOPSBurst   uint32 // requests
	Bytes, BytesBurst uint64 // at most MaxBandwidth
}

// Exports are the ways to reach a volume. The zero Exports is NBD alone.
type Exports struct {
	NoNBD     bool
	VhostUser bool
	ReadOnly  bool   // of vhost-user
	Queues    uint16 // of vhost-user: 1 ≤ Queues ≤ MaxQueues; 0 without it
}

// MaxQueues bounds the queues of a vhost-user export.
const MaxQueues = 64

// MaxBandwidth bounds bytes a second, and their burst.
const MaxBandwidth = 1 << 50

// recordSize is the size of one of the two copies that each slot has.
const recordSize = 128

const (
	recSequence     = 0
	recLease        = 8
	recState        = 24
	recLogical      = 28
	recSize         = 32
	recMapBytes     = 40
	recGeneration   = 48
	recKeyGenerated = 56
	recGateClosed   = 64
	recKeyDestroyed = 72
	recUID          = 80
	recExports      = 84 // 1 byte: exportVhostUser, exportNoNBD
	recExportFlags  = 85 // 1 byte: exportReadOnly
	recQueues       = 86 // 2 bytes
	recCiphersDone  = 88
	recIOPS         = 96
	recIOPSBurst    = 100
	recBytes        = 104
	recBytesBurst   = 112
	recReservedEnd  = 120 // 4 bytes
	recCRC          = recordSize - 4
)

const (
	exportVhostUser = 1 << 0
	exportNoNBD     = 1 << 1
	exportReadOnly  = 1 << 0
)

// validate checks what must hold of every record.
func (r *Record) validate() error {
	if r.State == StateEmpty {
		if *r != (Record{}) {
			return fmt.Errorf("an empty slot with a lease: %w", ErrFormat)
		}
		return nil
	}
	switch {
	case r.State >= states:
		return fmt.Errorf("%v: %w", r.State, ErrFormat)
	case !r.Lease.valid():
		return fmt.Errorf("lease id %q: %w", r.Lease[:], ErrFormat)
	case r.LogicalBlock != 512 && r.LogicalBlock != 4096:
		return fmt.Errorf("logical blocks of %d bytes: %w", r.LogicalBlock, ErrFormat)
	case r.SizeBytes == 0 || r.SizeBytes%4096 != 0 || r.SizeBytes/4096 > MaxBlocks:
		return fmt.Errorf("volume of %d bytes: %w", r.SizeBytes, ErrFormat)
	case !fitsMap(r.MapBytes, r.SizeBytes/4096):
		return fmt.Errorf("map of %d bytes for a volume of %d: %w", r.MapBytes, r.SizeBytes, ErrFormat)
	case r.Generation == 0:
		return fmt.Errorf("engine generation 0: %w", ErrFormat)
	case r.KeyGeneratedNs < 0 || r.GateClosedNs < 0 || r.CiphersDoneNs < 0 || r.KeyDestroyedNs < 0:
		return fmt.Errorf("negative time: %w", ErrFormat)
	}
	return errors.Join(r.Limits.validate(), r.Exports.validate())
}

func (x *Exports) validate() error {
	switch {
	case !x.VhostUser && *x != Exports{}:
		return fmt.Errorf("no export, or queues of none: %w", ErrFormat)
	case x.VhostUser && (x.Queues == 0 || x.Queues > MaxQueues):
		return fmt.Errorf("%d queues: %w", x.Queues, ErrFormat)
	}
	return nil
}

// encode and decode have the record's bytes.
func (x *Exports) encode(b []byte) {
	b[recExports] = bit(x.VhostUser, exportVhostUser) | bit(x.NoNBD, exportNoNBD)
	b[recExportFlags] = bit(x.ReadOnly, exportReadOnly)
	binary.LittleEndian.PutUint16(b[recQueues:], x.Queues)
}

func (x *Exports) decode(b []byte) error {
	if b[recExports]&^(exportVhostUser|exportNoNBD) != 0 || b[recExportFlags]&^exportReadOnly != 0 {
		return fmt.Errorf("exports %#02x %#02x: %w", b[recExports], b[recExportFlags], ErrFormat)
	}
	*x = Exports{
		VhostUser: b[recExports]&exportVhostUser != 0,
		NoNBD:     b[recExports]&exportNoNBD != 0,
		ReadOnly:  b[recExportFlags]&exportReadOnly != 0,
		Queues:    binary.LittleEndian.Uint16(b[recQueues:]),
	}
	return nil
}

func bit(set bool, b byte) byte {
	if set {
		return b
	}
	return 0
}

func (l *Limits) validate() error {
	switch {
	case l.IOPS == 0 && l.IOPSBurst != 0 || l.Bytes == 0 && l.BytesBurst != 0:
		return fmt.Errorf("a burst without a limit: %w", ErrFormat)
	case l.Bytes > MaxBandwidth || l.BytesBurst > MaxBandwidth:
		return fmt.Errorf("%d bytes a second, %d at once: %w", l.Bytes, l.BytesBurst, ErrFormat)
	}
	return nil
}

func (r *Record) encode(b []byte) {
	le := binary.LittleEndian
	copy(b[recLease:], r.Lease[:])
	le.PutUint32(b[recState:], uint32(r.State))
	le.PutUint32(b[recLogical:], r.LogicalBlock)
	le.PutUint64(b[recSize:], r.SizeBytes)
	le.PutUint64(b[recMapBytes:], r.MapBytes)
	le.PutUint64(b[recGeneration:], r.Generation)
	le.PutUint64(b[recKeyGenerated:], uint64(r.KeyGeneratedNs))
	le.PutUint64(b[recGateClosed:], uint64(r.GateClosedNs))
	le.PutUint64(b[recKeyDestroyed:], uint64(r.KeyDestroyedNs))
	le.PutUint32(b[recUID:], r.UID)
	r.Exports.encode(b)
	le.PutUint64(b[recCiphersDone:], uint64(r.CiphersDoneNs))
	le.PutUint32(b[recIOPS:], r.Limits.IOPS)
	le.PutUint32(b[recIOPSBurst:], r.Limits.IOPSBurst)
	le.PutUint64(b[recBytes:], r.Limits.Bytes)
	le.PutUint64(b[recBytesBurst:], r.Limits.BytesBurst)
}

func (r *Record) decode(b []byte) error {
	le := binary.LittleEndian
	if !allZero(b[recReservedEnd:recCRC]) {
		return fmt.Errorf("reserved bytes are in use: %w", ErrFormat)
	}
	*r = Record{
		State:          State(le.Uint32(b[recState:])),
		LogicalBlock:   le.Uint32(b[recLogical:]),
		SizeBytes:      le.Uint64(b[recSize:]),
		MapBytes:       le.Uint64(b[recMapBytes:]),
		Generation:     le.Uint64(b[recGeneration:]),
		KeyGeneratedNs: int64(le.Uint64(b[recKeyGenerated:])),
		GateClosedNs:   int64(le.Uint64(b[recGateClosed:])),
		CiphersDoneNs:  int64(le.Uint64(b[recCiphersDone:])),
		KeyDestroyedNs: int64(le.Uint64(b[recKeyDestroyed:])),
		UID:            le.Uint32(b[recUID:]),
		Limits: Limits{
			IOPS: le.Uint32(b[recIOPS:]), IOPSBurst: le.Uint32(b[recIOPSBurst:]),
			Bytes: le.Uint64(b[recBytes:]), BytesBurst: le.Uint64(b[recBytesBurst:]),
		},
	}
	copy(r.Lease[:], b[recLease:])
	return r.Exports.decode(b)
}
