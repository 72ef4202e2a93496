package proof

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// BundleVersion stands in every bundle.
const BundleVersion = 1

// Bounds of a bundle.
const (
	MaxBundle      = 256 << 10 // bytes
	MaxEntries     = 256       // records: a lease may be resized often
	maxQuotes      = 64
	maxCompletions = 64
)

// A Bundle is a certificate: the records of one lease (or one record about a
// drive) with what shows that they are in the log, and the annex. It is checked
// by [Verify] and by nothing else: a Bundle that was parsed may say anything.
type Bundle struct {
	V       int     `json:"v"` // BundleVersion
	Records []Entry `json:"records"`

	// Beacons are the checkpoints that the records' beacons name, the oldest
	// first, each once.
	Beacons []BeaconProof `json:"beacons"`

	Annex       json.RawMessage   `json:"annex,omitempty"` // exactly what the record's annexDigest is of
	Quotes      []Quote           `json:"quotes"`
	Completions []json.RawMessage `json:"completions"` // envelopes, what persons added
}

// An Entry is a record as the log has it.
type Entry struct {
	Envelope json.RawMessage `json:"envelope"` // the exact leaf
	Proof    string          `json:"proof"`    // C2SP tlog-proof, without an extra line
}

// A BeaconProof shows that a record's beacon was a checkpoint that witnesses
// saw, and that the tree of the record's own proof goes on from it.
type BeaconProof struct {
	Checkpoint  string   `json:"checkpoint"`  // signed note, exactly what [Beacon].Digest is of
	Consistency []string `json:"consistency"` // base64 hashes, to the checkpoint of the first record that names it
}

// ParseBundle takes exactly what [Bundle.Marshal] makes.
func ParseBundle(b []byte) (*Bundle, error) {
	if len(b) > MaxBundle {
		return nil, fmt.Errorf("bundle has %d bytes, at most %d are allowed", len(b), MaxBundle)
	}
	body, ok := bytes.CutSuffix(b, []byte{'\n'})
	if !ok {
		return nil, fmt.Errorf("bundle: %w: it does not end with a newline", ErrForm)
	}
	v, err := Decode[Bundle](body)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	return &v, nil
}

// Marshal returns the bundle's one form, which ends with a newline. V may be 0
// and slices may be nil.
func (b *Bundle) Marshal() ([]byte, error) {
	c := *b
	if c.V == 0 {
		c.V = BundleVersion
	}
	c.Records, c.Quotes = append([]Entry{}, c.Records...), append([]Quote{}, c.Quotes...)
	c.Completions = append([]json.RawMessage{}, c.Completions...)
	c.Beacons = append([]BeaconProof{}, c.Beacons...)
	for i := range c.Beacons {
		c.Beacons[i].Consistency = append([]string{}, c.Beacons[i].Consistency...)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	out, err := Encode(c)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if len(out) >= MaxBundle {
		return nil, fmt.Errorf("bundle has %d bytes, at most %d are allowed", len(out)+1, MaxBundle)
	}
	return append(out, '\n'), nil
}

func (b *Bundle) check() error {
	switch {
	case b.V != BundleVersion:
		return fmt.Errorf("version %d is unknown, this program reads %d", b.V, BundleVersion)
	case len(b.Records) == 0 || len(b.Records) > MaxEntries:
		return fmt.Errorf("%d records, 1 to %d are allowed", len(b.Records), MaxEntries)
	case len(b.Beacons) > MaxEntries || len(b.Quotes) > maxQuotes || len(b.Completions) > maxCompletions:
		return errors.New("too many beacons, quotes or completions")
	case b.Beacons == nil || b.Quotes == nil || b.Completions == nil:
		return fmt.Errorf("%w: an empty list is []", ErrForm)
	}
	for _, e := range b.Records {
		if len(e.Envelope) > MaxEnvelope {
			return fmt.Errorf("envelope has %d bytes, at most %d are allowed", len(e.Envelope), MaxEnvelope)
		}
	}
	for _, p := range b.Beacons {
		if p.Consistency == nil {
			return fmt.Errorf("%w: an empty list is []", ErrForm)
		}
	}
	return nil
}

// Parsed returns the bundle's records, decoded and not verified: for indexes and
// lists, never for a judgement.
func (b *Bundle) Parsed() ([]Record, error) {
	out := make([]Record, 0, len(b.Records))
	for i, e := range b.Records {
		env, err := ParseEnvelope(e.Envelope)
		if err != nil {
			return nil, fmt.Errorf("record %d of the bundle: %w", i+1, err)
		}
		r, err := ParsePayload(env.Payload)
		if err != nil {
			return nil, fmt.Errorf("record %d of the bundle: %w", i+1, err)
		}
		out = append(out, r)
	}
	return out, nil
}
