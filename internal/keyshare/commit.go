package keyshare

import (
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"

	"vacate/internal/secret"
)

// Sizes, in bytes.
const (
	KeySize       = 64 // of the key of a lease
	ShareSize     = 64 // of each half of a split key
	KeySaltSize   = 35 // of the salt of a commitment to a key
	ShareSaltSize = 32 // of the salt of a commitment to a half
	LeaseIDSize   = 16 // characters
)

// A Half says whose half of a split key is committed to.
type Half string

// The halves.
const (
	Node   Half = "node"
	Tenant Half = "tenant"
)

const (
	keyDomain   = "vacate/key/v1"
	shareDomain = "vacate/share/v1"
)

// CommitKey returns the commitment to a key, in hex:
//
//	SHA-256("vacate/key/v1" ‖ lease id ‖ salt ‖ key)
//
// All before the key is one block of SHA-256, and the key the next: the hash reads
// it where it lies, and copies none of it to the heap.
//
// REQUIRES: lease has 16 characters.
func CommitKey(lease string, salt *[KeySaltSize]byte, key *[KeySize]byte) string {
	mustBeID(lease)
	var head [sha256.BlockSize]byte
	copy(head[copy(head[:], keyDomain):], lease)
	copy(head[len(keyDomain)+LeaseIDSize:], salt[:])
	sum := new([sha256.Size]byte)
	secret.Do(func() {
		h := sha256.New()
		h.Write(head[:])
		h.Write(key[:])
		h.Sum(sum[:0])
	})
	return hex.EncodeToString(sum[:])
}

// CommitShare returns the commitment to a half of a split key, in hex:
//
//	SHA-256("vacate/share/v1" ‖ half ‖ lease id ‖ salt ‖ share)
//
// It copies of the share to the heap: REQUIRES [secret.Enabled] in the engine; and
// that lease has 16 characters.
func CommitShare(half Half, lease string, salt *[ShareSaltSize]byte, share *[ShareSize]byte) string {
	mustBeID(lease)
	sum := new([sha256.Size]byte)
	secret.Do(func() {
		h := sha256.New()
		h.Write([]byte(shareDomain))
		h.Write([]byte(half))
		h.Write([]byte(lease))
		h.Write(salt[:])
		h.Write(share[:])
		h.Sum(sum[:0])
		h.Reset()
	})
	return hex.EncodeToString(sum[:])
}

// Mix makes the key of a lease of its halves, in dst. It copies both to the heap:
// REQUIRES [secret.Enabled] in the engine; and that lease has 16 characters.
func Mix(dst *[KeySize]byte, node, tenant *[ShareSize]byte, lease string) error {
	mustBeID(lease)
	var err error
	secret.Do(func() {
		both := make([]byte, 2*ShareSize)
		copy(both, node[:])
		copy(both[ShareSize:], tenant[:])
		var key []byte
		key, err = hkdf.Key(sha512.New, both, nil, lease, KeySize)
		copy(dst[:], key)
		clear(both)
		clear(key)
	})
	if err != nil {
		return fmt.Errorf("mixing the halves of a key: %w", err)
	}
	return nil
}

func mustBeID(lease string) {
	if len(lease) != LeaseIDSize {
		panic("keyshare: a lease id of another length")
	}
}
