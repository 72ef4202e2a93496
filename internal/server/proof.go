package server

import (
	"context"
	"fmt"
	"time"

	"vacate/internal/node"
)

// A Proof is what the API needs of records, log, certificates and keys. Its
// methods may be called from any goroutine; an error that is no [*node.Error] is
// an internal one. Whether the caller may see a lease is asked before.
type Proof interface {
	// Prepare reserves an id, and makes a key for a tenant's share.
	Prepare(ctx context.Context) (Prepared, error)
	// ReleaseKey seals an open lease's key to recipient, after its KEY_RELEASED
	// record is durable.
	ReleaseKey(ctx context.Context, leaseID string, recipient []byte) (sealed []byte, err error)
	// RawBlocks reads ciphertext: 4096 bytes for each block, none for one that was
	// not written.
	RawBlocks(ctx context.Context, leaseID string, blocks []uint64) ([][]byte, error)

	// Receipt is what a tenant is given when its lease opens (proof.Receipt).
	Receipt(ctx context.Context, leaseID string) ([]byte, error)
	// Certificate is the bundle of a lease that ended. With wait it waits until ctx
	// ends for one that has the witnesses' quorum.
	Certificate(ctx context.Context, leaseID string, wait bool) ([]byte, error)
	// CertificateState says how far the certificate of a lease that ended is.
	CertificateState(leaseID string) CertificateState

	// Policy is the file that a tenant pins.
	Policy(ctx context.Context) ([]byte, error)
	// Keys are the daemon's keys, those in use first.
	Keys(ctx context.Context) ([]Key, error)
	// Rotate replaces the key of a role, or says which one it would.
	Rotate(ctx context.Context, role string, plan bool) (Rotation, error)
	// Statement says, signed, how this host erases.
	Statement(ctx context.Context) ([]byte, error)

	// LogStatus describes log, spool and deadlines.
	LogStatus(ctx context.Context) (LogStatus, error)
	// Records are at most limit leaves of the log from an index on, and the newest
	// checkpoint.
	Records(ctx context.Context, from uint64, limit int) (leaves [][]byte, checkpoint []byte, err error)
}

// Prepared is what a tenant seals its share to.
type Prepared struct {
	LeaseID   string
	Document  []byte // signed by the node's key
	ExpiresAt time.Time
}

// A CertificateState is how far a certificate is.
type CertificateState struct {
	State string // "ready", "no-quorum", "pending"
	Why   string // why it is not ready, or empty
	Bytes int64  // its size, 0 while there is none
}

// A Key is the public half of one of the daemon's keys.
type Key struct {
	Role      string // "node", "operator", "log"
	Name      string // the node's id, the operator's name, the log's origin
	PublicKey string // as it stands in a policy
	KeyID     string // hex SHA-256 of PublicKey
	Where     string // "file", "tpm", or empty: not here
	Since     time.Time
	Until     time.Time // zero for the one in use
}

// A Rotation is a key that was, or would be, replaced.
type Rotation struct {
	Old, New Key    // New is zero for a plan
	NodeSeq  uint64 // of the KEYS record, 0 for a plan
}

// LogStatus describes log, spool and deadlines.
type LogStatus struct {
	Origin     string
	Where      string // a folder, or a URL
	Checkpoint []byte // signed note, empty before the first
	Size       uint64
	Witnesses  []string // that cosigned it
	Quorum     bool

	Spool, SpoolMax uint64
	SpoolOldest     time.Time // zero where none waits
	LastError       string    // of the last attempt, or empty

	DeadlinesMet, DeadlinesMissed, DeadlinesPending uint64
	Certificates                                    uint64
	Keep                                            time.Duration
}

// noProof is the answer where the daemon was started without what a call needs.
func noProof(what string) error {
	return &node.Error{Kind: node.Unavailable, Object: what, Text: fmt.Sprintf("%s: this is not set up on this daemon", what),
		Next: "see proof.* in docs/config.md"}
}

// proof is the daemon's, or why there is none.
func (s *Server) proof(what string) (Proof, error) {
	if s.cfg.Proof == nil {
		return nil, noProof(what)
	}
	return s.cfg.Proof, nil
}

// untilEnd is ctx, which also ends when the server stops: for calls that wait.
func untilEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if end, ok := ctx.Value(endKey{}).(context.Context); ok {
		stop := context.AfterFunc(end, cancel)
		return ctx, func() { stop(); cancel() }
	}
	return ctx, cancel
}
