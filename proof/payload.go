package proof

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// What the statement around a record says (in-toto Attestation Framework,
// Statement v1).
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "urn:vacate:record:v2"
)

type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     Record    `json:"predicate"`
}

type subject struct {
	Name   string        `json:"name"`
	Digest subjectDigest `json:"digest"`
}

type subjectDigest struct {
	SHA256 string `json:"sha256"`
}

// Bounds of a record, besides [MaxPayload].
const (
	MaxPieces   = 128 // ranges of all its space
	MaxEvents   = 16
	MaxWords    = 32 // claims, and words that are not claimed
	MaxKeys     = 16
	maxBytes    = 1 << 62
	maxSeq      = 1<<53 - 1 // every JSON reader has these exactly
	nodeIDLen   = 16        // bytes
	leaseIDLen  = 16        // characters
	operatorLen = 8         // bytes of the key's id
)

// OperatorPrefix starts the NodeID of the operator's own chain of records.
const OperatorPrefix = "operator/"

// OperatorID is the NodeID of what an operator signs with a key.
func OperatorID(k PublicKey) string { return OperatorPrefix + k.KeyID()[:2*operatorLen] }

// EncodePayload checks a record and returns its statement in its one form: what
// is chained, signed and logged. V may be 0 and slices may be nil; claims need
// not be sorted. Errors name the field.
func EncodePayload(r Record) ([]byte, error) {
	if r.V == 0 {
		r.V = RecordVersion
	}
	r = normal(r)
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%s record %d of %s: %w", r.Type, r.NodeSeq, r.NodeID, err)
	}
	b, err := Encode(statementOf(r))
	if err == nil && len(b) > MaxPayload {
		err = fmt.Errorf("payload has %d bytes, at most %d are allowed", len(b), MaxPayload)
	}
	return b, err
}

// ParsePayload takes exactly what [EncodePayload] makes.
func ParsePayload(b []byte) (Record, error) {
	if len(b) > MaxPayload {
		return Record{}, fmt.Errorf("payload has %d bytes, at most %d are allowed", len(b), MaxPayload)
	}
	s, err := Decode[statement](b)
	if err != nil {
		return Record{}, fmt.Errorf("payload: %w", err)
	}
	again, err := EncodePayload(s.Predicate)
	if err != nil {
		return Record{}, err
	}
	if string(again) != string(b) {
		return Record{}, fmt.Errorf("payload: %w (a subject, a type or an order that no record has)", ErrForm)
	}
	return s.Predicate, nil
}

// statementOf names what a record is about. A lease is no file: its digest is
// that of its name.
func statementOf(r Record) statement {
	name := "node/" + r.NodeID
	switch {
	case r.LeaseID != "":
		name = "lease/" + r.LeaseID
	case r.LostNode != nil:
		name = "node/" + r.LostNode.NodeID
	case len(r.Space) > 0:
		name = "drive/" + r.Space[0].Drive
	}
	sum := sha256.Sum256([]byte(name))
	return statement{Type: StatementType, PredicateType: PredicateType, Predicate: r,
		Subject: []subject{{Name: name, Digest: subjectDigest{hex.EncodeToString(sum[:])}}}}
}

// normal gives empty lists the form [] and sorts words.
func normal(r Record) Record {
	r.Claims, r.NotClaimed = sortedWords(r.Claims), sortedWords(r.NotClaimed)
	r.Events = append([]Event{}, r.Events...)
	space := make([]Space, len(r.Space))
	for i, s := range r.Space {
		s.Extents = append([]Range{}, s.Extents...)
		space[i] = s
	}
	r.Space = space
	if len(r.Keys) == 0 {
		r.Keys = nil
	}
	return r
}

func sortedWords(w []string) []string {
	w = append([]string{}, w...)
	slices.Sort(w)
	return w
}

// fieldRules says which fields a record of a type must have, and which it may.
// All others are empty.
var fieldRules = map[Type]struct{ must, may string }{
	OPEN: {"leaseId bytes space cipher keyBits keyMode",
		"tenantCommit keyCommit nodeCommit shareCommit beacon eraseBy events claims notClaimed"},
	RESIZE: {"leaseId openSeq bytes space",
		"openLeafIndex tenantCommit cipher keyBits keyMode keyCommit nodeCommit shareCommit beacon eraseBy events claims notClaimed"},
	CLOSE: {"leaseId openSeq bytes space result",
		"openLeafIndex tenantCommit cipher keyBits keyMode keyCommit nodeCommit shareCommit beacon eraseBy " +
			"events drained claims notClaimed annexDigest"},
	KeyReleased: {"leaseId openSeq",
		"openLeafIndex bytes space tenantCommit cipher keyBits keyMode keyCommit nodeCommit shareCommit beacon eraseBy events claims notClaimed"},
	ENROL:    {"bytes space", "beacon events claims notClaimed annexDigest"},
	SANITIZE: {"bytes space level result", "beacon events claims notClaimed annexDigest"},
	RETIRE:   {"bytes space", "beacon events claims notClaimed annexDigest result"},
	KEYS:     {"keys", "beacon claims notClaimed"},
	NodeLost: {"lostNode", "beacon claims notClaimed result"},
}

// fields are those of the record that are not empty.
func (r *Record) fields() map[string]bool {
	return map[string]bool{
		"leaseId": r.LeaseID != "", "openSeq": r.OpenSeq != 0, "openLeafIndex": r.OpenLeafIndex != nil,
		"tenantCommit": r.TenantCommit != "", "bytes": r.Bytes != 0, "space": len(r.Space) > 0,
		"cipher": r.Cipher != "", "keyBits": r.KeyBits != 0, "keyMode": r.KeyMode != "", "keyCommit": r.KeyCommit != "",
		"nodeCommit": r.NodeCommit != "", "shareCommit": r.ShareCommit != "", "beacon": r.Beacon != nil,
		"eraseBy": r.EraseBy != "", "events": len(r.Events) > 0, "drained": r.Drained, "claims": len(r.Claims) > 0,
		"notClaimed": len(r.NotClaimed) > 0, "annexDigest": r.AnnexDigest != "", "result": r.Result != "",
		"level": r.Level != "", "keys": len(r.Keys) > 0, "lostNode": r.LostNode != nil,
	}
}

// ParseTime takes a time as documents of this package have it: RFC 3339, UTC,
// whole seconds.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || FormatTime(t) != s {
		return time.Time{}, fmt.Errorf("%.40q is not a time in UTC and whole seconds, as 2026-01-31T12:00:00Z", s)
	}
	return t.UTC(), nil
}

// FormatTime writes a time as [ParseTime] takes it; parts of a second are cut off.
func FormatTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
