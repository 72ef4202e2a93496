package proof

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// A PublicKey verifies signatures of envelopes: Ed25519 (RFC 8032), or ECDSA on
// P-256 with SHA-256, which is what TPMs can do. The zero value verifies
// nothing. Its text form is "ed25519:" and base64 of the 32 bytes, or "p256:"
// and base64 of the uncompressed point's 65 bytes. Two keys are the same where
// they are equal by ==.
type PublicKey struct {
	text string // the whole key: comparable, and its id is derived from it
}

const (
	prefixEd25519 = "ed25519:"
	prefixP256    = "p256:"
)

// ErrSignature is returned, wrapped, where a signature does not verify.
var ErrSignature = errors.New("signature does not verify")

// NewPublicKey takes an [ed25519.PublicKey] or an [*ecdsa.PublicKey] on P-256.
func NewPublicKey(k crypto.PublicKey) (PublicKey, error) {
	switch k := k.(type) {
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return PublicKey{}, fmt.Errorf("Ed25519 key has %d bytes", len(k))
		}
		return PublicKey{prefixEd25519 + base64.StdEncoding.EncodeToString(k)}, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return PublicKey{}, errors.New("ECDSA key is not on P-256")
		}
		p, err := k.ECDH() // refuses points off the curve
		if err != nil {
			return PublicKey{}, fmt.Errorf("ECDSA key: %w", err)
		}
		return PublicKey{prefixP256 + base64.StdEncoding.EncodeToString(p.Bytes())}, nil
	}
	return PublicKey{}, fmt.Errorf("keys are Ed25519 or P-256, not %T", k)
}

// ParsePublicKey takes the text form.
func ParsePublicKey(s string) (PublicKey, error) {
	if rest, ok := strings.CutPrefix(s, prefixEd25519); ok {
		b, err := decodeBase64("key", rest)
		if err != nil {
			return PublicKey{}, err
		}
		return NewPublicKey(ed25519.PublicKey(b))
	}
	if rest, ok := strings.CutPrefix(s, prefixP256); ok {
		b, err := decodeBase64("key", rest)
		if err != nil {
			return PublicKey{}, err
		}
		if _, err := ecdh.P256().NewPublicKey(b); err != nil {
			return PublicKey{}, fmt.Errorf("key: %w", err)
		}
		return PublicKey{s}, nil
	}
	return PublicKey{}, fmt.Errorf("key %.80q starts neither with %q nor with %q", s, prefixEd25519, prefixP256)
}

// String is the text form.
func (k PublicKey) String() string { return k.text }

// IsZero reports whether there is no key.
func (k PublicKey) IsZero() bool { return k.text == "" }

// MarshalText returns the text form.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.text), nil }

// UnmarshalText takes the text form.
func (k *PublicKey) UnmarshalText(b []byte) (err error) {
	*k, err = ParsePublicKey(string(b))
	return err
}

// KeyID is the SHA-256 of the text form in hexadecimal digits: what envelopes
// call the key.
func (k PublicKey) KeyID() string {
	sum := sha256.Sum256([]byte(k.text))
	return hex.EncodeToString(sum[:])
}

// Key returns the key as the standard library has it, nil of the zero value.
func (k PublicKey) Key() crypto.PublicKey {
	if rest, ok := strings.CutPrefix(k.text, prefixEd25519); ok {
		b, _ := base64.StdEncoding.DecodeString(rest) // every constructor checked it
		return ed25519.PublicKey(b)
	}
	if rest, ok := strings.CutPrefix(k.text, prefixP256); ok {
		b, _ := base64.StdEncoding.DecodeString(rest)
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b)
		if err != nil {
			panic("proof: public key was not checked: " + err.Error())
		}
		return pub
	}
	return nil
}

// Verify checks sig over msg. A signature has one form only: of ECDSA that is
// ASN.1 DER with the smaller of the two possible s. Errors wrap [ErrSignature].
func (k PublicKey) Verify(msg, sig []byte) error {
	switch pub := k.Key().(type) {
	case ed25519.PublicKey:
		if ed25519.Verify(pub, msg, sig) {
			return nil
		}
	case *ecdsa.PublicKey:
		if _, err := lowS(sig); err != nil {
			return fmt.Errorf("%w: %w", ErrSignature, err)
		}
		digest := sha256.Sum256(msg)
		if ecdsa.VerifyASN1(pub, digest[:], sig) {
			return nil
		}
	}
	return ErrSignature
}

type ecdsaSignature struct{ R, S *big.Int }

// halfOrder is half the order of P-256's group, rounded down.
var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// parseECDSA takes DER in its one form.
func parseECDSA(sig []byte) (ecdsaSignature, error) {
	var s ecdsaSignature
	rest, err := asn1.Unmarshal(sig, &s)
	if err != nil {
		return s, fmt.Errorf("decoding an ECDSA signature: %w", err)
	}
	again, err := asn1.Marshal(s)
	if err != nil || len(rest) != 0 || string(again) != string(sig) {
		return s, fmt.Errorf("ECDSA signature: %w of DER", ErrForm)
	}
	return s, nil
}

// lowS refuses a signature whose s could be replaced by N−s.
func lowS(sig []byte) (ecdsaSignature, error) {
	s, err := parseECDSA(sig)
	if err == nil && s.S.Cmp(halfOrder) > 0 {
		err = fmt.Errorf("ECDSA signature: %w, s is above half the order", ErrForm)
	}
	return s, err
}

// normalS returns the form of an ECDSA signature that [PublicKey.Verify] takes.
func normalS(sig []byte) ([]byte, error) {
	s, err := parseECDSA(sig)
	if err != nil {
		return nil, err
	}
	if s.S.Cmp(halfOrder) > 0 {
		s.S.Sub(elliptic.P256().Params().N, s.S)
	}
	return asn1.Marshal(s)
}
