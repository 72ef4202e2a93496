package keyshare

import (
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
)

// A Released is the key of a lease that the node gave its tenant, who may now decrypt
// what it sees on the drive. It is as secret as the data.
type Released struct {
	Key  [KeySize]byte
	Node [ShareSize]byte // the node's half, where the key is Split
	// Split: the key was mixed of two halves.
	Split bool
}

// SealRelease seals a key to a tenant's public key. node is the node's half of a split
// key, and nil of another.
func SealRelease(recipient []byte, lease string, key *[KeySize]byte, node *[ShareSize]byte) (sealed []byte, err error) {
	n := KeySize
	if node != nil {
		n += ShareSize
	}
	sealed, err = seal(recipient, releaseInfo, lease, encapSize+n+tagSize, func(into []byte) {
		copy(into, key[:])
		if node != nil {
			copy(into[KeySize:], node[:])
		}
	}, n)
	if err != nil {
		return nil, fmt.Errorf("sealing the key of lease %s: %w", lease, err)
	}
	return sealed, nil
}

// OpenRelease opens a sealed key. It is not known to be the lease's before
// [Released.Check].
func (s *Seed) OpenRelease(lease string, sealed []byte) (*Released, error) {
	if len(sealed) != SealedMost && len(sealed) != SealedMost-ShareSize {
		return nil, fmt.Errorf("opening a release of %d bytes, want %d or %d: %w", len(sealed), SealedMost-ShareSize, SealedMost, ErrSealed)
	}
	var plain [KeySize + ShareSize]byte
	defer clear(plain[:])
	n, err := s.open(plain[:], releaseInfo, lease, sealed)
	if err != nil {
		return nil, fmt.Errorf("opening a release: %w", err)
	}
	r := &Released{Split: n == len(plain)}
	copy(r.Key[:], plain[:])
	copy(r.Node[:], plain[KeySize:])
	return r, nil
}

// Commitments are those of a lease's OPEN record, with their salts, all in hex. Of a
// key that the node made alone, only the first two are there.
type Commitments struct {
	Key, KeySalt     string
	Node, NodeSalt   string
	Share, ShareSalt string
}

// Errors of [Released.Check].
var (
	// ErrCommitment: what was released is not what was committed to when the lease was
	// opened.
	ErrCommitment = errors.New("it is not what the node committed to when the lease was opened")
	// ErrMix: it is, but the key was not made of these halves.
	ErrMix = errors.New("the node did not mix the key of its half and of this share")
)

// Check tells a tenant whether what was released is the key that the node committed
// to, and of a split key, with the tenant's own half, that it was mixed of both.
func (r *Released) Check(lease string, c Commitments, share *[ShareSize]byte) error {
	if len(lease) != LeaseIDSize {
		return fmt.Errorf("lease id %q: want %d characters", lease, LeaseIDSize)
	}
	var keySalt [KeySaltSize]byte
	if err := fromHex(keySalt[:], c.KeySalt); err != nil {
		return fmt.Errorf("the salt of the key: %w", err)
	}
	if CommitKey(lease, &keySalt, &r.Key) != c.Key {
		return fmt.Errorf("the key of lease %s: %w", lease, ErrCommitment)
	}
	if split := c.Node != "" || c.Share != ""; split != r.Split {
		return fmt.Errorf("the node's half of the key of lease %s is there: %v, and was committed to: %v: %w", lease, r.Split, split, ErrCommitment)
	}
	if !r.Split {
		return nil
	}
	if share == nil {
		return fmt.Errorf("lease %s has a split key: the tenant's own share is needed to check it", lease)
	}
	for _, h := range []struct {
		half         Half
		commit, salt string
		share        *[ShareSize]byte
	}{{Node, c.Node, c.NodeSalt, &r.Node}, {Tenant, c.Share, c.ShareSalt, share}} {
		var salt [ShareSaltSize]byte
		if err := fromHex(salt[:], h.salt); err != nil {
			return fmt.Errorf("the salt of the %s's half: %w", h.half, err)
		}
		if CommitShare(h.half, lease, &salt, h.share) != h.commit {
			return fmt.Errorf("the %s's half of the key of lease %s: %w", h.half, lease, ErrCommitment)
		}
	}
	var mixed [KeySize]byte
	defer clear(mixed[:])
	if err := Mix(&mixed, &r.Node, share, lease); err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(mixed[:], r.Key[:]) != 1 {
		return fmt.Errorf("lease %s: %w", lease, ErrMix)
	}
	return nil
}

// fromHex decodes lower-case hex that fills dst.
func fromHex(dst []byte, s string) error {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(dst) || hex.EncodeToString(b) != s {
		return fmt.Errorf("not %d bytes in lower-case hex", len(dst))
	}
	copy(dst, b)
	return nil
}
