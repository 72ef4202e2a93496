package proof

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// PreparedType is the predicate type of a [Prepared].
const PreparedType = "urn:vacate:prepared:v1"

// maxRecipient bounds the key to seal to: one of ML-KEM-768 with X25519 has
// 1216 bytes.
const maxRecipient = 4096

// A Prepared says that a node has made a key to which the tenant may seal its
// share of the key of one lease (docs/spec/certificate.md). The node signs it with its pinned key, so that
// the tenant can tell whom it seals to; the tenant checks that with
// [Policy.OpenPrepared] before it does.
type Prepared struct {
	V         int    `json:"v"` // 1
	NodeID    string `json:"nodeId"`
	LeaseID   string `json:"leaseId"`   // the lease will have it
	Recipient string `json:"recipient"` // public key to seal to, base64
	ExpiresAt string `json:"expiresAt"` // RFC 3339, UTC, whole seconds, by the node's clock
}

type preparedStatement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     Prepared  `json:"predicate"`
}

// EncodePrepared returns the payload that the node signs ([Sign]).
func EncodePrepared(nodeID, leaseID string, recipient []byte, expires time.Time) ([]byte, error) {
	p := Prepared{V: 1, NodeID: nodeID, LeaseID: leaseID, Recipient: base64.StdEncoding.EncodeToString(recipient),
		ExpiresAt: FormatTime(expires)}
	if _, err := p.check(); err != nil {
		return nil, err
	}
	return Encode(p.statement())
}

func (p Prepared) statement() preparedStatement {
	key, _ := base64.StdEncoding.DecodeString(p.Recipient) // checked, or it will not compare
	sum := sha256.Sum256(key)
	return preparedStatement{Type: StatementType, PredicateType: PreparedType, Predicate: p,
		Subject: []subject{{Name: "lease/" + p.LeaseID, Digest: subjectDigest{hex.EncodeToString(sum[:])}}}}
}

func (p Prepared) check() (recipient []byte, err error) {
	recipient, err = decodeBase64("recipient", p.Recipient)
	switch {
	case err != nil:
		return nil, err
	case p.V != 1:
		return nil, fmt.Errorf("version %d of a prepared lease is unknown", p.V)
	case len(recipient) == 0 || len(recipient) > maxRecipient:
		return nil, fmt.Errorf("a key to seal to has %d bytes, not 1 to %d", len(recipient), maxRecipient)
	case !ValidLeaseID(p.LeaseID):
		return nil, fmt.Errorf("%.80q is no lease's id", p.LeaseID)
	}
	if err := checkHex("nodeId", p.NodeID, nodeIDLen); err != nil {
		return nil, err
	}
	if _, err := ParseTime(p.ExpiresAt); err != nil {
		return nil, fmt.Errorf("expiresAt: %w", err)
	}
	return recipient, nil
}

// OpenPrepared checks that a node that the policy names signed the envelope, with
// a key that is valid now, and returns what it says and the key to seal to. One
// that has expired is refused: its key is gone.
func (p *Policy) OpenPrepared(envelope []byte, now time.Time) (Prepared, []byte, error) {
	e, err := ParseEnvelope(envelope)
	if err != nil {
		return Prepared{}, nil, err
	}
	s, err := Decode[preparedStatement](e.Payload)
	if err != nil {
		return Prepared{}, nil, fmt.Errorf("prepared lease: %w", err)
	}
	d := s.Predicate
	recipient, err := d.check()
	if err != nil {
		return Prepared{}, nil, fmt.Errorf("prepared lease: %w", err)
	}
	want, err := Encode(d.statement())
	if err != nil || string(want) != string(e.Payload) {
		return Prepared{}, nil, errors.New("prepared lease: the statement around it is not its own")
	}
	if err := p.signedBy(e, d.NodeID, now); err != nil {
		return Prepared{}, nil, fmt.Errorf("prepared lease: %w", err)
	}
	if expires, err := ParseTime(d.ExpiresAt); err != nil || now.After(expires) {
		return Prepared{}, nil, fmt.Errorf("the prepared lease expired at %s: ask for another", d.ExpiresAt)
	}
	return d, recipient, nil
}

// signedBy checks that one of a node's keys that are valid at a time signed.
func (p *Policy) signedBy(e Envelope, nodeID string, at time.Time) error {
	keys := p.Node(nodeID)
	if len(keys) == 0 {
		return fmt.Errorf("the policy names no key of node %s", nodeID)
	}
	var last error
	for _, k := range keys {
		if !k.ValidDuring(at, at) {
			last = fmt.Errorf("the key %.16s of node %s is not valid now", k.Key.KeyID(), nodeID)
			continue
		}
		if last = e.VerifyKey(k.Key); last == nil {
			return nil
		}
	}
	return last
}
