package ipc

// What is said of a lease's key. Control never sees one: it learns commitments
// and salts, passes on what is sealed, and decides when a key may be released.
//
// A lease whose request says Hold is opened in two calls:
//
//  1. lease.open makes everything of it, the key included, and serves nothing.
//     The engine lists it as Held. One that takes over from this engine takes it
//     back: its key is destroyed, and nobody holds it any more.
//  2. lease.serve lets clients in. Control calls it once the OPEN record, with the
//     commitment to the key, is durable. Asked again it changes nothing.
//
// In between lease.close closes it as any other.

// Methods about keys.
const (
	MethodLeaseServe   = "lease.serve"   // LeaseRef → Empty
	MethodLeasePrepare = "lease.prepare" // LeaseRef → LeasePrepared
	MethodLeaseRelease = "lease.release" // LeaseReleaseRequest → LeaseReleased
	MethodLeaseRaw     = "lease.raw"     // LeaseRawRequest → LeaseRaw; waits for the drives
)

// Who has made the key of a lease, as the records have it (keyMode).
const (
	KeyModeNode  = "node"  // the engine alone
	KeyModeSplit = "split" // mixed of the engine's half and the tenant's
)

// A Share is a tenant's half of a key, sealed to the recipient key that
// lease.prepare made for this very lease (docs/spec/keyshare.md). The recipient key
// is destroyed with the attempt to open the share, whatever comes of it.
type Share struct {
	Prepared string `json:"prepared"` // the lease that was prepared: the one that is opened
	Sealed   []byte `json:"sealed"`
}

// LeasePrepared is a recipient key made for a lease that is not open yet. The
// engine keeps it for ten minutes, and one that takes over does not have it.
type LeasePrepared struct {
	Recipient []byte `json:"recipient"` // public, 1216 bytes
	ExpiresNs int64  `json:"expiresNs"` // CLOCK_BOOTTIME
}

// LeaseReleaseRequest asks for the key of an open lease, sealed to Recipient.
//
// REQUIRES: the record of the release, KEY_RELEASED, is durable. From here on the
// tenant has the key, and its destruction proves nothing any more.
type LeaseReleaseRequest struct {
	Lease     string `json:"lease"`
	Recipient []byte `json:"recipient"` // the tenant's public key, 1216 bytes
}

// LeaseReleased is what only the holder of the recipient's private key can open.
type LeaseReleased struct {
	Sealed []byte `json:"sealed"`
}

// MaxRawBlocks bounds the blocks of one LeaseRawRequest.
const MaxRawBlocks = 256

// LeaseRawRequest asks for what blocks of an open lease are on the drive.
type LeaseRawRequest struct {
	Lease  string   `json:"lease"`
	Blocks []uint64 `json:"blocks"` // numbers of blocks of the volume; at most MaxRawBlocks
}

// LeaseRaw is their ciphertext, in the order that was asked for: 4096 bytes each,
// or none for a block that the lease has not written. What the drive holds there
// is not the lease's.
type LeaseRaw struct {
	Blocks [][]byte `json:"blocks"`
}
