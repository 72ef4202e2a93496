package keyshare

import (
	"crypto/hpke"
	"crypto/rand"
	"errors"
	"fmt"

	"vacate/internal/secret"
)

// Sizes of what is public, in bytes.
const (
	SeedSize      = 32                              // of the private key
	RecipientSize = 1216                            // of the public key: ML-KEM-768's and X25519's
	encapSize     = 1120                            // ML-KEM-768's ciphertext and X25519's share
	tagSize       = 16                              // of AES-256-GCM
	SealedShare   = encapSize + ShareSize + tagSize // of a sealed half
	// SealedMost is the size of the longest release, that of a split key: the key
	// and the node's half of it. That of another is ShareSize shorter.
	SealedMost = encapSize + KeySize + ShareSize + tagSize
)

// What a sealed message is for goes before the lease id in HPKE's info: a share never
// opens as a release.
const (
	shareInfo   = "vacate/share/v1"
	releaseInfo = "vacate/release/v1"
)

// ErrSealed says that what was sealed does not open. It was sealed to another key, for another
// lease or purpose, or changed on the way: these look alike.
var ErrSealed = errors.New("it was not sealed to this key for this lease, or it was changed")

// The suite of RFC 9180: hybrid, so that who records a share today opens it with no
// quantum computer.
func suite() (hpke.KEM, hpke.KDF, hpke.AEAD) {
	return hpke.MLKEM768X25519(), hpke.HKDFSHA512(), hpke.AES256GCM()
}

// A Seed is a private key of the KEM, which is expanded when it is used.
type Seed [SeedSize]byte

// Fill makes s a new private key.
func (s *Seed) Fill() {
	rand.Read(s[:]) //nolint:errcheck // it never fails, since Go 1.24
}

// Public returns the public key of s, RecipientSize bytes.
func (s *Seed) Public() (public []byte, err error) {
	public = make([]byte, RecipientSize)
	secret.Do(func() {
		kem, _, _ := suite()
		var k hpke.PrivateKey
		if k, err = kem.NewPrivateKey(s[:]); err == nil {
			copy(public, k.PublicKey().Bytes())
		}
	})
	if err != nil {
		return nil, fmt.Errorf("making a public key: %w", err)
	}
	return public, nil
}

// OpenShare opens a sealed half into dst.
func (s *Seed) OpenShare(dst *[ShareSize]byte, lease string, sealed []byte) error {
	if len(sealed) != SealedShare {
		return fmt.Errorf("opening a share of %d bytes, want %d: %w", len(sealed), SealedShare, ErrSealed)
	}
	if _, err := s.open(dst[:], shareInfo, lease, sealed); err != nil {
		return fmt.Errorf("opening a share: %w", err)
	}
	return nil
}

// open opens into dst, and returns how much of it.
func (s *Seed) open(dst []byte, purpose, lease string, sealed []byte) (n int, err error) {
	secret.Do(func() {
		kem, kdf, aead := suite()
		k, kerr := kem.NewPrivateKey(s[:])
		if kerr != nil {
			err = kerr
			return
		}
		// Its error may name what it worked on: it stays in here.
		plain, oerr := hpke.Open(k, kdf, aead, []byte(purpose+lease), sealed)
		if oerr != nil {
			err = ErrSealed
			return
		}
		if n = copy(dst, plain); n != len(plain) {
			err = ErrSealed
		}
		clear(plain)
	})
	return n, err
}

// NewShare fills a tenant's half.
func NewShare(share *[ShareSize]byte) {
	rand.Read(share[:]) //nolint:errcheck // it never fails, since Go 1.24
}

// SealShare seals a tenant's half to a recipient key of the node's, for that lease.
func SealShare(recipient []byte, lease string, share *[ShareSize]byte) (sealed []byte, err error) {
	sealed, err = seal(recipient, shareInfo, lease, SealedShare, func(into []byte) { copy(into, share[:]) }, ShareSize)
	if err != nil {
		return nil, fmt.Errorf("sealing a share: %w", err)
	}
	return sealed, nil
}

// seal seals the n bytes that fill writes. The sealed bytes are the caller's.
func seal(recipient []byte, purpose, lease string, size int, fill func([]byte), n int) (sealed []byte, err error) {
	if len(lease) != LeaseIDSize {
		return nil, fmt.Errorf("lease id %q: want %d characters", lease, LeaseIDSize)
	}
	if len(recipient) != RecipientSize {
		return nil, fmt.Errorf("a recipient key of %d bytes, want %d", len(recipient), RecipientSize)
	}
	sealed = make([]byte, size)
	secret.Do(func() {
		kem, kdf, aead := suite()
		k, kerr := kem.NewPublicKey(recipient)
		if kerr != nil {
			err = errors.New("the recipient key is none")
			return
		}
		plain := make([]byte, n)
		fill(plain)
		out, serr := hpke.Seal(k, kdf, aead, []byte(purpose+lease), plain)
		clear(plain)
		if err = serr; err == nil && copy(sealed, out) != len(out) {
			err = errors.New("a sealed message of another length")
		}
	})
	if err != nil {
		return nil, err
	}
	return sealed, nil
}
