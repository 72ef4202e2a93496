package proof

import (
	"crypto/sha256"
	"encoding/hex"
)

// Lengths of what is committed to, in bytes.
const (
	// KeySaltLen makes the key the second block that SHA-256 takes, 64 bytes
	// that are hashed where they lie: "vacate/key/v1", the lease's id and the
	// salt fill the first.
	KeySaltLen = 35
	SaltLen    = 32 // of all other commitments
	KeyLen     = 64
)

// KeyCommit is the commitment to a lease's key. Whoever has the salt and finds
// the key can show that it was this lease's.
func KeyCommit(leaseID string, salt, key []byte) string {
	return commit([]byte("vacate/key/v1"), []byte(leaseID), salt, key)
}

// TenantCommit is the commitment to who a lease was for.
func TenantCommit(leaseID string, salt []byte, tenant string) string {
	return commit([]byte("vacate/tenant/v1"), []byte(leaseID), salt, []byte(tenant))
}

// DriveCommit is the commitment to what a drive said that it is.
func DriveCommit(uuid string, salt []byte, kind, model, serial string) string {
	return commit([]byte("vacate/drive/v1"), []byte(uuid), salt, []byte(kind+"\x00"+model+"\x00"+serial))
}

// The halves that [ShareCommit] commits to.
const (
	HalfNode   = "node"
	HalfTenant = "tenant"
)

// ShareCommit is the commitment to one half of a split key: [HalfNode] or
// [HalfTenant].
func ShareCommit(half, leaseID string, salt, share []byte) string {
	return commit([]byte("vacate/share/v1"), []byte(half), []byte(leaseID), salt, share)
}

func commit(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}
