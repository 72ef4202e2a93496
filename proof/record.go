package proof

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

// A Type says what a record is about.
type Type string

// The types of records.
const (
	OPEN        Type = "OPEN"         // a lease got space and key; nothing was written yet
	RESIZE      Type = "RESIZE"       // a lease got more space
	CLOSE       Type = "CLOSE"        // a lease ended; what was observed of its key's end
	ENROL       Type = "ENROL"        // a drive was taken into use
	SANITIZE    Type = "SANITIZE"     // a drive was told to sanitize itself
	RETIRE      Type = "RETIRE"       // a drive was taken out of use
	KeyReleased Type = "KEY_RELEASED" // a lease's key is about to be given to its tenant
	KEYS        Type = "KEYS"         // keys that sign were rotated
	NodeLost    Type = "NODE_LOST"    // a node never came back; signed by the operator
)

// RecordVersion stands in every record. Version 1 was never signed.
const RecordVersion = 2

// A KeyMode says who contributed to a lease's key.
type KeyMode string

// The key modes.
const (
	ModeNode   KeyMode = "node"   // the node made it
	ModeSplit  KeyMode = "split"  // mixed from a half of the node's and one of the tenant's
	ModeTenant KeyMode = "tenant" // the tenant encrypts above the volume and the node adds nothing
)

// A Cipher names how blocks are encrypted.
const (
	CipherXTS = "AES-256-XTS"
	XTSBits   = 512 // both halves
)

// How a lease ended.
const (
	ResultOK         = "ok"          // the key was overwritten and read back as zeros
	ResultFailed     = "failed"      // it never came to be open, or what was asked for failed
	ResultLostKeeper = "lost_keeper" // the process that held the key ended, and its memory with it
	ResultLostBoot   = "lost_boot"   // the host has another boot id
	ResultLostEngine = "lost_engine" // no engine could take it over; the keeper overwrote its key
	ResultLostDrive  = "lost_drive"  // the drive lost completed writes
	ResultLostNode   = "lost_node"   // the node never came back
)

// Levels of sanitization (NIST SP 800-88 Rev. 2, 3.1.1 to 3.1.3).
const (
	LevelClear   = "clear"
	LevelPurge   = "purge"
	LevelDestroy = "destroy"
)

// Types of events.
const (
	EventKeyGenerated = "key_generated"
	EventGateClosed   = "gate_closed"
	EventKeyDestroyed = "key_destroyed" // overwritten with zeros and read back
	EventDiscarded    = "discarded"
	EventSanitized    = "sanitized"
	EventKeyReleased  = "key_released"
)

// A Record is what one node, or the operator, observed: the predicate of the
// in-toto statement that is a leaf of the log. [EncodePayload] and
// [ParsePayload] say which fields a record of each type has.
//
// Hashes, commitments and salts are lower-case hexadecimal digits.
type Record struct {
	V        int    `json:"v"` // RecordVersion
	Type     Type   `json:"type"`
	NodeID   string `json:"nodeId"`   // 32 hexadecimal digits, or "operator/" and 16
	NodeSeq  uint64 `json:"nodeSeq"`  // 1, 2, 3, … of each node
	PrevHash string `json:"prevHash"` // [PayloadHash] of the record before; [ZeroHash] in the first

	LeaseID       string  `json:"leaseId,omitempty"`
	OpenSeq       uint64  `json:"openSeq,omitempty"`       // RESIZE, CLOSE, KEY_RELEASED: number of the OPEN
	OpenLeafIndex *uint64 `json:"openLeafIndex,omitempty"` // its leaf, where the node knew it already
	TenantCommit  string  `json:"tenantCommit,omitempty"`

	Bytes       int64   `json:"bytes"` // of the volume or the drive; 0 where there is none
	Space       []Space `json:"space"` // of the volume, in its order, or all of the drive
	Cipher      string  `json:"cipher,omitempty"`
	KeyBits     int     `json:"keyBits,omitempty"`
	KeyMode     KeyMode `json:"keyMode,omitempty"`
	KeyCommit   string  `json:"keyCommit,omitempty"`   // [KeyCommit]
	NodeCommit  string  `json:"nodeCommit,omitempty"`  // split: [ShareCommit] of the node's half
	ShareCommit string  `json:"shareCommit,omitempty"` // split: of the tenant's

	Beacon  *Beacon `json:"beacon,omitempty"`  // the newest cosigned checkpoint that the node knew
	EraseBy string  `json:"eraseBy,omitempty"` // RFC 3339, UTC, whole seconds

	Events      []Event     `json:"events"`     // in the order of their times
	Drained     bool        `json:"drained"`    // CLOSE: nothing was in flight to the drives
	Claims      []string    `json:"claims"`     // sorted; [ClaimNames] that a node can make
	NotClaimed  []string    `json:"notClaimed"` // sorted; words for what nobody observed
	AnnexDigest string      `json:"annexDigest,omitempty"`
	Result      string      `json:"result,omitempty"`
	Level       string      `json:"level,omitempty"` // SANITIZE: clear, purge, destroy
	Keys        []KeyChange `json:"keys,omitempty"`
	LostNode    *LostNode   `json:"lostNode,omitempty"`
}

// Space is extents of one drive. Drive is its UUID, a pseudonym; Commit binds
// it to a serial number, [DriveCommit].
type Space struct {
	Drive   string  `json:"drive"`
	Commit  string  `json:"driveCommit,omitempty"`
	Extents []Range `json:"extents"`
}

// A Range is Count extents of a drive from First on; in JSON [first,count].
type Range struct {
	First uint32
	Count uint32 // 1 ≤ Count
}

// End is the first extent after the range, in 64 bits: it cannot overflow.
func (r Range) End() uint64 { return uint64(r.First) + uint64(r.Count) }

// Overlaps reports whether two ranges of one drive share an extent.
func (r Range) Overlaps(o Range) bool {
	return uint64(r.First) < o.End() && uint64(o.First) < r.End()
}

// MarshalJSON returns [first,count].
func (r Range) MarshalJSON() ([]byte, error) { return json.Marshal([2]uint32{r.First, r.Count}) }

// UnmarshalJSON takes [first,count].
func (r *Range) UnmarshalJSON(b []byte) error {
	var a [2]uint32
	if err := json.Unmarshal(b, &a); err != nil {
		return err
	}
	*r = Range{First: a[0], Count: a[1]}
	return nil
}

// An Event is something that was observed at a time. What nobody observed has
// no event.
type Event struct {
	Type        string `json:"type"`
	MonotonicNs int64  `json:"monotonicNs"` // CLOCK_BOOTTIME, > 0
	BootID      string `json:"bootId"`      // on this boot
}

// A Beacon is a cosigned checkpoint of the log that existed before the record: it
// proves "not before". The root alone would not: whoever runs node and log knows it
// before any witness does. The cosignatures are what nobody could foresee, and
// Digest is of them too. The record carries no signature; a bundle does, and in
// exactly the bytes that Digest is of.
type Beacon struct {
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`   // 1 ≤ size
	Root   string `json:"root"`   // base64
	Digest string `json:"digest"` // SHA-256 of [Policy.CanonicalCheckpoint]
}

// Roles of keys in a [KeyChange].
const (
	RoleNode     = "node"
	RoleOperator = "operator"
	RoleLog      = "log"
	RoleTPM      = "tpm"
)

// A KeyChange says that New signs from this record's successor on, in place of
// Old. Keys are in their text form ([ParsePublicKey]), of a log in that of
// signed notes. The record is signed by Old, and by New to show that its holder
// has it; where Old is empty New is the first key of its role.
type KeyChange struct {
	Role string `json:"role"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new"`
}

// LostNode names the node that never came back, and the last of its records in
// the log. Every lease of it that is open there ends with this record as
// lost_node.
type LostNode struct {
	NodeID   string `json:"nodeId"`
	LastSeq  uint64 `json:"lastSeq"`
	LastHash string `json:"lastHash"` // [PayloadHash]
}

// ZeroHash stands before a node's first record.
var ZeroHash = strings.Repeat("0", 2*sha256.Size)

// PayloadHash is what the next record's PrevHash must be, the nonce of a TPM
// quote over the record, and its name in logs: the SHA-256 of the payload.
func PayloadHash(payload []byte) string {
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:])
}

// Ends reports whether the record can end lease id of node nodeID: its CLOSE,
// or the NODE_LOST of its node.
func (r *Record) Ends(nodeID, id string) bool {
	switch r.Type {
	case CLOSE:
		return r.NodeID == nodeID && r.LeaseID == id
	case NodeLost:
		return r.LostNode != nil && r.LostNode.NodeID == nodeID
	}
	return false
}

// Event returns the record's first event of a type.
func (r *Record) Event(typ string) (Event, bool) {
	for _, e := range r.Events {
		if e.Type == typ {
			return e, true
		}
	}
	return Event{}, false
}
