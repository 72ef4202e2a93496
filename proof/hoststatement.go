package proof

import (
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// StatementPredicate is the predicate type of a [HostStatement].
const StatementPredicate = "urn:vacate:statement:v1"

// MaxStatement bounds a host's statement in its envelope, in bytes.
const MaxStatement = MaxEnvelope

// A HostStatement is how a host erases, from its live configuration, signed by its
// node's key. It is no certificate: it speaks of no lease, and of no more than its
// fields' sources say.
type HostStatement struct {
	V      int     `json:"v"` // 1
	NodeID string  `json:"nodeId"`
	At     string  `json:"at"`               // the node's wall clock, as [FormatTime] has it: it proves nothing
	Beacon *Beacon `json:"beacon,omitempty"` // the newest cosigned checkpoint that it knew: not older than this

	Sanitize    Sanitize    `json:"sanitization"` // of every lease; Verification and Validation are empty
	CryptoErase CryptoErase `json:"cryptographicErase"`
	Module      Module      `json:"module"`
	Host        Host        `json:"host"`
	Media       []Medium    `json:"media"`  // the enrolled drives, without salts
	Config      []NamedFact `json:"config"` // what is set, in the order in which it is shown
	Limits      []string    `json:"limits"`
}

// A NamedFact is a [Fact] that has no field of its own.
type NamedFact struct {
	Name string `json:"name"`
	Fact Fact   `json:"fact"`
}

type hostStatement struct {
	Type          string        `json:"_type"`
	Subject       []subject     `json:"subject"`
	PredicateType string        `json:"predicateType"`
	Predicate     HostStatement `json:"predicate"`
}

func (s HostStatement) wrapped() hostStatement {
	return hostStatement{
		Type: StatementType, PredicateType: StatementPredicate, Predicate: s,
		Subject: about("node/" + s.NodeID),
	}
}

// about is the subject of what speaks of a name: a node or a lease is no file, and
// its digest is that of its name.
func about(name string) []subject {
	sum := sha256.Sum256([]byte(name))
	return []subject{{Name: name, Digest: subjectDigest{hex.EncodeToString(sum[:])}}}
}

func (s HostStatement) check() error {
	switch {
	case s.V != 1:
		return fmt.Errorf("version %d is unknown", s.V)
	case len(s.Media) > 128 || len(s.Config) > 128 || len(s.Limits) > 64:
		return errors.New("too many parts")
	}
	if err := s.Sanitize.checkPersons(); err != nil {
		return err
	}
	if err := checkHex("nodeId", s.NodeID, nodeIDLen); err != nil {
		return err
	}
	if _, err := ParseTime(s.At); err != nil {
		return err
	}
	if s.Beacon != nil {
		if err := s.Beacon.check(); err != nil {
			return err
		}
	}
	for _, f := range fieldsOf(&s) {
		if err := f.Fact.check(); err != nil {
			return fmt.Errorf("field %s: %w", f.Path, err)
		}
	}
	return nil
}

// Fields are all facts of a statement, in its order.
func (s *HostStatement) Fields() []Field { return fieldsOf(s) }

// SignStatement returns the signed statement of a host, an envelope and a
// newline.
func SignStatement(s HostStatement, node crypto.Signer) ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("statement of node %s: %w", s.NodeID, err)
	}
	payload, err := Encode(s.wrapped())
	if err != nil {
		return nil, err
	}
	envelope, err := Sign(payload, node)
	if err != nil {
		return nil, fmt.Errorf("statement of node %s: %w", s.NodeID, err)
	}
	return append(envelope, '\n'), nil
}

// OpenStatement verifies a host's statement with one of the keys that a policy pins
// for the node that it names. A key's validity is not looked at: nothing proves when
// the statement was signed.
func OpenStatement(signed []byte, p *Policy) (HostStatement, PinnedKey, error) {
	env, s, err := readStatement(signed)
	if err != nil {
		return HostStatement{}, PinnedKey{}, fmt.Errorf("statement: %w", err)
	}
	err = fmt.Errorf("the policy pins no key of node %s", s.NodeID)
	for _, k := range p.Node(s.NodeID) {
		if err = env.VerifyKey(k.Key); err == nil {
			return s, k, nil
		}
	}
	return HostStatement{}, PinnedKey{}, fmt.Errorf("statement: %w", err)
}

// ReadStatement reads a host's statement, and verifies nothing.
func ReadStatement(signed []byte) (HostStatement, error) {
	_, s, err := readStatement(signed)
	if err != nil {
		return s, fmt.Errorf("statement: %w", err)
	}
	return s, nil
}

func readStatement(signed []byte) (env Envelope, s HostStatement, err error) {
	if len(signed) == 0 || signed[len(signed)-1] != '\n' {
		return env, s, fmt.Errorf("%w: it does not end with a newline", ErrForm)
	}
	if env, err = ParseEnvelope(signed[:len(signed)-1]); err != nil {
		return env, s, err
	}
	w, err := Decode[hostStatement](env.Payload)
	if err != nil {
		return env, s, err
	}
	if again, err := Encode(w.Predicate.wrapped()); err != nil || string(again) != string(env.Payload) {
		return env, s, fmt.Errorf("%w: it is not a host's statement", ErrForm)
	}
	return env, w.Predicate, w.Predicate.check()
}
