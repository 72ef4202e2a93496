package proof

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
)

// PayloadType is the payload type of every envelope: an in-toto statement.
const PayloadType = "application/vnd.in-toto+json"

// Bounds of envelopes, in bytes. A leaf of the log has at most 65,535.
const (
	MaxEnvelope   = 60 << 10
	MaxPayload    = 40 << 10
	MaxSignatures = 8
)

// A Signature is one of an envelope's: KeyID is [PublicKey.KeyID] of the key
// that made it. It says which pinned key to try, and nothing else.
type Signature struct {
	KeyID string
	Sig   []byte
}

// An Envelope is a payload and who signed it (DSSE v1).
type Envelope struct {
	Payload    []byte
	Signatures []Signature
}

type envelopeJSON struct {
	PayloadType string          `json:"payloadType"`
	Payload     string          `json:"payload"`
	Signatures  []signatureJSON `json:"signatures"`
}

type signatureJSON struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

// signedBytes is DSSE's pre-authentication encoding: what is signed.
func signedBytes(payload []byte) []byte {
	b := append(make([]byte, 0, len(payload)+64), "DSSEv1 "...)
	b = append(strconv.AppendInt(b, int64(len(PayloadType)), 10), ' ')
	b = append(append(b, PayloadType...), ' ')
	b = append(strconv.AppendInt(b, int64(len(payload)), 10), ' ')
	return append(b, payload...)
}

// Sign signs a payload with each signer, in their order, and returns the
// envelope: its exact bytes are a leaf of the log, so it is made once and kept.
// Signers have Ed25519 keys, or P-256 keys; both may live elsewhere (a TPM, a
// key service). Signatures are made with crypto/rand's randomness.
func Sign(payload []byte, signers ...crypto.Signer) ([]byte, error) {
	if len(payload) > MaxPayload {
		return nil, fmt.Errorf("payload has %d bytes, at most %d are allowed", len(payload), MaxPayload)
	}
	if len(signers) == 0 || len(signers) > MaxSignatures {
		return nil, fmt.Errorf("envelope with %d signers, 1 to %d are allowed", len(signers), MaxSignatures)
	}
	out := envelopeJSON{PayloadType: PayloadType, Payload: base64.StdEncoding.EncodeToString(payload)}
	msg := signedBytes(payload)
	for _, s := range signers {
		pub, err := NewPublicKey(s.Public())
		if err != nil {
			return nil, err
		}
		sig, err := signWith(s, msg)
		if err != nil {
			return nil, fmt.Errorf("signing with key %.16s: %w", pub.KeyID(), err)
		}
		if err := pub.Verify(msg, sig); err != nil { // a broken signer must not make a leaf
			return nil, fmt.Errorf("signing with key %.16s: %w", pub.KeyID(), err)
		}
		out.Signatures = append(out.Signatures, signatureJSON{pub.KeyID(), base64.StdEncoding.EncodeToString(sig)})
	}
	b, err := Encode(out)
	if err != nil {
		return nil, err
	}
	if _, err := ParseEnvelope(b); err != nil {
		return nil, fmt.Errorf("envelope to be signed: %w", err)
	}
	return b, nil
}

func signWith(s crypto.Signer, msg []byte) ([]byte, error) {
	switch s.Public().(type) {
	case ed25519.PublicKey:
		return s.Sign(rand.Reader, msg, crypto.Hash(0))
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(msg)
		sig, err := s.Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			return nil, err
		}
		return normalS(sig)
	}
	return nil, fmt.Errorf("keys are Ed25519 or P-256, not %T", s.Public())
}

// ParseEnvelope takes exactly what [Sign] makes. It verifies nothing.
func ParseEnvelope(b []byte) (Envelope, error) {
	var e Envelope
	if len(b) > MaxEnvelope {
		return e, fmt.Errorf("envelope has %d bytes, at most %d are allowed", len(b), MaxEnvelope)
	}
	j, err := Decode[envelopeJSON](b)
	if err != nil {
		return e, fmt.Errorf("envelope: %w", err)
	}
	if j.PayloadType != PayloadType {
		return e, fmt.Errorf("envelope has payload type %.80q, must be %q", j.PayloadType, PayloadType)
	}
	if len(j.Signatures) == 0 || len(j.Signatures) > MaxSignatures {
		return e, fmt.Errorf("envelope has %d signatures, 1 to %d are allowed", len(j.Signatures), MaxSignatures)
	}
	if e.Payload, err = decodeBase64("envelope: payload", j.Payload); err != nil {
		return Envelope{}, err
	}
	if len(e.Payload) > MaxPayload {
		return Envelope{}, fmt.Errorf("payload has %d bytes, at most %d are allowed", len(e.Payload), MaxPayload)
	}
	seen := map[string]bool{}
	for _, s := range j.Signatures {
		if err := checkHex("envelope: keyid", s.KeyID, sha256.Size); err != nil {
			return Envelope{}, err
		}
		if seen[s.KeyID] {
			return Envelope{}, fmt.Errorf("envelope has two signatures of key %.16s", s.KeyID)
		}
		seen[s.KeyID] = true
		sig, err := decodeBase64("envelope: sig", s.Sig)
		if err != nil {
			return Envelope{}, err
		}
		e.Signatures = append(e.Signatures, Signature{s.KeyID, sig})
	}
	return e, nil
}

// ErrNotSigned is wrapped by [Envelope.VerifyKey] where the key has no
// signature in the envelope.
var ErrNotSigned = errors.New("key did not sign")

// VerifyKey checks that k signed the payload.
func (e Envelope) VerifyKey(k PublicKey) error {
	id := k.KeyID()
	for _, s := range e.Signatures {
		if s.KeyID == id {
			if err := k.Verify(signedBytes(e.Payload), s.Sig); err != nil {
				return fmt.Errorf("key %.16s: %w", id, err)
			}
			return nil
		}
	}
	return fmt.Errorf("key %.16s: %w", id, ErrNotSigned)
}

// LeafHash is the hash of an envelope as a leaf of the log (RFC 6962, 2.1).
func LeafHash(envelope []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte{0})
	h.Write(envelope)
	return [sha256.Size]byte(h.Sum(nil))
}
