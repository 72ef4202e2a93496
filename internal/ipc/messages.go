package ipc

import (
	"vacate/internal/extent"
	"vacate/internal/limit"
)

// Methods that control calls on the engine. Each has a request and a response
// type below; a method without one takes or returns [Empty].
const (
	MethodHello       = "hello"        // Empty → Hello
	MethodInspect     = "inspect"      // InspectRequest → Inspection
	MethodEnroll      = "enroll"       // EnrollRequest → DriveInfo
	MethodDriveOpen   = "drive.open"   // DriveOpenRequest → DriveInfo
	MethodDriveClose  = "drive.close"  // DriveCloseRequest → Empty
	MethodLeaseOpen   = "lease.open"   // LeaseOpenRequest + listeners → LeaseOpened
	MethodLeaseLimit  = "lease.limit"  // LeaseLimitRequest → Empty
	MethodLeaseResize = "lease.resize" // LeaseResizeRequest → Empty; waits for what is in flight
	MethodLeaseClose  = "lease.close"  // LeaseRef → Erasure; never waits for a device
	MethodLeaseDrain  = "lease.drain"  // LeaseRef → Empty; waits until no I/O of the lease is in flight
	MethodLeaseList   = "lease.list"   // Empty → LeaseList
	MethodLosses      = "drive.losses" // LossesRequest → Losses; waits until there is news
	MethodStats       = "stats"        // Empty → Stats
)

// Empty is the request or response that says nothing.
type Empty struct{}

// Hello describes the engine that answers.
type Hello struct {
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	KeeperID string `json:"keeperId"` // random, new with each keeper: its volatile memory's identity
	EngineID string `json:"engineId"` // random, new with each engine process
	// Generation counts the engines of this keeper: 1 for the first, and one more
	// for each that took over from another.
	Generation uint64 `json:"generation"`
	// Emptied is the last generation before the keeper, which could bring up no
	// engine, destroyed every key and forgot all leases; 0: it never did.
	Emptied  uint64 `json:"emptied"`
	BootID   string `json:"bootId"`           // /proc/sys/kernel/random/boot_id
	KeyStore string `json:"keyStore"`         // "memfd_secret" or "memfd, locked"
	Buffers  string `json:"buffers"`          // "locked", or why they are not
	Cipher   string `json:"cipher"`           // implementation in use: "vaes", "aesni", "aesce", "generic"…
	Sandbox  string `json:"sandbox"`          // what confines the engine, and what is missing
	Shares   string `json:"shares,omitempty"` // why tenants' shares of keys are refused; "": they are taken
	Slots    int    `json:"slots"`            // leases that fit the volatile memory
	MaxConns int    `json:"maxConns"`         // connections that the host admits
}

// InspectRequest asks what lies at a path, before anything is done to it.
type InspectRequest struct {
	Path string `json:"path"`
}

// Inspection is what was found. Reading it changes nothing on the medium.
type Inspection struct {
	Drive    DriveInfo `json:"drive"`
	Findings []Finding `json:"findings"` // everything worth saying, refusals included
}

// A Finding is one fact about a drive. Refuse means that enrolment must not go
// on; Force tells whether --force with the serial typed again may override it
// (a mounted or held device never).
type Finding struct {
	Code   string `json:"code"` // stable: "mounted", "held", "partition-table", "signature", "enrolled", "too-small", "logical-block", "not-supported", "in-use", "note"
	Text   string `json:"text"` // for people: what, where, and what to do next
	Refuse bool   `json:"refuse"`
	Force  bool   `json:"force"`
}

// EnrollRequest writes superblocks. The engine inspects again under the
// exclusive lock, and refuses by the same rules.
type EnrollRequest struct {
	Path    string `json:"path"`
	Node    string `json:"node"` // node id, 32 hex digits
	UUID    string `json:"uuid"` // of the drive, chosen by control, 32 hex digits
	Epoch   uint64 `json:"epoch"`
	Force   bool   `json:"force"`
	Confirm string `json:"confirm"` // with Force: the serial, or the path, typed again
}

// DriveOpenRequest opens an enrolled drive and takes its fence. The superblock
// must carry this node, this UUID and Epoch or (a crash between the two
// writes) Epoch-1; then NewEpoch is written to both copies.
type DriveOpenRequest struct {
	Path         string `json:"path"`
	Node         string `json:"node"`
	UUID         string `json:"uuid"`
	Epoch        uint64 `json:"epoch"`
	NewEpoch     uint64 `json:"newEpoch"`     // Epoch or Epoch+1
	ForceForward bool   `json:"forceForward"` // danger_zone: flush class forward whatever was probed
}

// LossesRequest asks for the drives that may have lost completed writes. It is
// answered when the engine has other to tell than when it said Seen; no engine says
// 0, or what one before it said.
type LossesRequest struct {
	Seen uint64 `json:"seen"`
}

// Losses are the open drives that may have lost completed writes: all requests to
// them fail, until they are closed.
type Losses struct {
	Seen   uint64      `json:"seen"`
	Drives []DriveLoss `json:"drives"`
}

// A DriveLoss says how.
type DriveLoss struct {
	UUID    string `json:"uuid"`
	Opening uint64 `json:"opening,omitempty"` // as in DriveInfo: of an earlier one, it is past
	Why     string `json:"why"`               // for people
}

// DriveCloseRequest gives up a drive without leases.
type DriveCloseRequest struct {
	UUID string `json:"uuid"`
}

// DriveInfo describes a drive as the engine sees it.
type DriveInfo struct {
	UUID          string   `json:"uuid,omitempty"`
	Path          string   `json:"path"`
	Kind          string   `json:"kind"` // "file", "block device", "partition", …
	Model         string   `json:"model,omitempty"`
	Serial        string   `json:"serial,omitempty"`
	Engine        string   `json:"engine"`              // "mmap", "io_uring", "pread"
	EngineWhy     string   `json:"engineWhy,omitempty"` // why not a better one, or not the one asked for
	Direct        bool     `json:"direct"`              // O_DIRECT
	Flush         string   `json:"flush"`               // "none", "watched", "forward"
	FlushWhy      string   `json:"flushWhy"`
	SizeBytes     int64    `json:"sizeBytes"`
	LogicalBlock  int      `json:"logicalBlock"`
	PhysicalBlock int      `json:"physicalBlock"`
	DataOffset    int64    `json:"dataOffset"`  // bytes: where extent 0 starts
	ExtentBytes   int64    `json:"extentBytes"` // bytes
	Extents       uint32   `json:"extents"`
	Epoch         uint64   `json:"epoch"`
	Opening       uint64   `json:"opening,omitempty"`  // greater each time that a drive is opened, by this engine and the next; 0: it is not said
	Repaired      []string `json:"repaired,omitempty"` // superblock copies that were mended
}

// LeaseOpenRequest makes a volume and its exports. Their listening sockets come
// along as the message's files, in this order: NBD, vhost-user.
type LeaseOpenRequest struct {
	Lease        string         `json:"lease"` // 16 characters, a-z and 2-7
	Slot         int            `json:"slot"`  // slot of the volatile memory, 0 ≤ Slot < Hello.Slots
	SizeBytes    int64          `json:"sizeBytes"`
	LogicalBlock int            `json:"logicalBlock"` // 512 or 4096
	Pieces       []extent.Piece `json:"pieces"`
	UID          uint32         `json:"uid"` // who may connect, besides root and the daemon
	Limits       limit.Limits   `json:"limits,omitzero"`
	Exports      Exports        `json:"exports,omitzero"`
	Hold         bool           `json:"hold,omitempty"`  // serve nothing before lease.serve (keys.go)
	Share        *Share         `json:"share,omitempty"` // the tenant's half of the key; nil: the engine makes all of it
}

// Exports are the ways to reach a volume. The zero Exports is NBD alone.
type Exports struct {
	NoNBD     bool `json:"noNbd,omitempty"`
	VhostUser bool `json:"vhostUser,omitempty"`
	ReadOnly  bool `json:"readOnly,omitempty"` // of vhost-user
	Queues    int  `json:"queues,omitempty"`   // of vhost-user: 1 to 64; 0 without it
}

// LeaseLimitRequest sets how fast the volume of an open lease may be used, in
// place of what was set before. When it is answered, requests that come are held
// to it, by this engine and by those that take over from it.
type LeaseLimitRequest struct {
	Lease  string       `json:"lease"`
	Limits limit.Limits `json:"limits,omitzero"`
}

// LeaseOpened says when the key came to be, and commits to it. Commitments and salts
// are hex, as in the records; the engine forgets them with this answer.
type LeaseOpened struct {
	KeyGeneratedNs int64  `json:"keyGeneratedNs"` // CLOCK_BOOTTIME
	KeyMode        string `json:"keyMode,omitempty"`
	KeyCommit      string `json:"keyCommit,omitempty"`   // to the key; salt of 35 bytes
	KeySalt        string `json:"keySalt,omitempty"`     //
	NodeCommit     string `json:"nodeCommit,omitempty"`  // with KeyModeSplit: to the engine's half; salt of 32 bytes
	NodeSalt       string `json:"nodeSalt,omitempty"`    //
	ShareCommit    string `json:"shareCommit,omitempty"` // likewise to the tenant's half
	ShareSalt      string `json:"shareSalt,omitempty"`
}

// LeaseRef names a lease.
type LeaseRef struct {
	Lease string `json:"lease"`
}

// Erasure is what was observed when a lease's key was destroyed. Times are
// CLOCK_BOOTTIME in nanoseconds.
type Erasure struct {
	GateClosedNs   int64 `json:"gateClosedNs"`  // read right before the gate was shut
	CiphersDoneNs  int64 `json:"ciphersDoneNs"` // no cipher call was in progress any more
	KeyDestroyedNs int64 `json:"keyDestroyedNs"`
	ReadBack       bool  `json:"readBack"` // the keeper overwrote the key and read zeros back
	Drained        bool  `json:"drained"`  // nothing was in flight when this was written
}

// LeaseList is the leases that the engine holds, for control's recovery.
type LeaseList struct {
	Leases []LeaseStatus `json:"leases"`
}

// LeaseStatus is one lease that the engine holds.
type LeaseStatus struct {
	Lease     string       `json:"lease"`
	Slot      int          `json:"slot"`
	Erased    bool         `json:"erased"`         // closed, but not drained yet
	Held      bool         `json:"held,omitempty"` // not served yet: lease.serve is due
	SizeBytes int64        `json:"sizeBytes"`      // of its volume
	Limits    limit.Limits `json:"limits,omitzero"`
}

// Stats are counters since the engine started, a lease and a drive.
type Stats struct {
	Connections int          `json:"connections"`
	Refused     uint64       `json:"refused"` // connections over the maximum
	Leases      []LeaseStats `json:"leases"`
	Drives      []DriveStats `json:"drives"`
}

// LeaseStats counts one lease's requests.
type LeaseStats struct {
	Lease       string `json:"lease"`
	Connections int    `json:"connections"`
	Reads       uint64 `json:"reads"`
	Writes      uint64 `json:"writes"`
	Discards    uint64 `json:"discards"` // write-zeroes included
	Flushes     uint64 `json:"flushes"`
	ReadBytes   uint64 `json:"readBytes"`
	WriteBytes  uint64 `json:"writeBytes"`
	Errors      uint64 `json:"errors"`
	Written     int64  `json:"writtenBytes"` // bytes whose block map bit is set

	Queues       int    `json:"queues,omitempty"`       // virtqueues that are processed now
	BrokenQueues uint64 `json:"brokenQueues,omitempty"` // given up because of what the guest had put into them
	Expelled     uint64 `json:"expelled,omitempty"`     // vhost-user sessions ended because of what the frontend sent
}

// DriveStats counts one drive's requests and says whether it still answers.
type DriveStats struct {
	UUID       string `json:"uuid"`
	Reads      uint64 `json:"reads"`
	Writes     uint64 `json:"writes"`
	ReadBytes  uint64 `json:"readBytes"`
	WriteBytes uint64 `json:"writeBytes"`
	Flushes    uint64 `json:"flushes"`
	Errors     uint64 `json:"errors"`
	LastError  string `json:"lastError,omitempty"`
}

// Error codes of a response, for callers that branch.
const (
	CodeInternal    = "internal"
	CodeInvalid     = "invalid"     // the request makes no sense
	CodeNotFound    = "not-found"   // no such lease or drive
	CodeRefused     = "refused"     // unsafe or not allowed; the text says what to do
	CodeBusy        = "busy"        // held by someone else, or a limit was reached
	CodeMismatch    = "mismatch"    // superblock and journal disagree
	CodeUnsupported = "unsupported" // this host cannot do it; the text says what is missing
	CodeLost        = "lost"        // the drive is open, but may have lost completed writes: close its leases, then it
)

// A RemoteError is what the other side answered.
type RemoteError struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func (e *RemoteError) Error() string { return e.Text }
