package proof

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// ReceiptVersion stands in every receipt.
const ReceiptVersion = 1

// maxReceipt bounds a receipt, in bytes.
const maxReceipt = MaxEnvelope + 4<<10

// A Receipt is what opening a lease returns to its tenant: the signed OPEN, and
// what opens its commitments. With it, [Verify] demands that very lease: one
// that was never logged is found out.
type Receipt struct {
	V        int             `json:"v"` // ReceiptVersion
	Envelope json.RawMessage `json:"envelope"`
	Salts    Salts           `json:"salts"`
	Tenant   string          `json:"tenant"`
}

// ParseReceipt takes exactly what [Receipt.Marshal] makes.
func ParseReceipt(b []byte) (*Receipt, error) {
	body, ok := bytes.CutSuffix(b, []byte{'\n'})
	if !ok || len(b) > maxReceipt {
		return nil, fmt.Errorf("receipt: %w: it has %d bytes, at most %d and one newline at its end are allowed", ErrForm, len(b), maxReceipt)
	}
	r, err := Decode[Receipt](body)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	if _, err := r.Open(); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	return &r, nil
}

// Marshal returns the receipt's one form, which ends with a newline. V may be 0.
func (r *Receipt) Marshal() ([]byte, error) {
	c := *r
	if c.V == 0 {
		c.V = ReceiptVersion
	}
	if _, err := c.Open(); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	b, err := Encode(c)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	if len(b) >= maxReceipt {
		return nil, fmt.Errorf("receipt has %d bytes, at most %d are allowed", len(b)+1, maxReceipt)
	}
	return append(b, '\n'), nil
}

// Open decodes the OPEN record and checks that the salts open its commitments
// to tenant. It verifies no signature.
func (r *Receipt) Open() (Record, error) {
	if r.V != ReceiptVersion {
		return Record{}, fmt.Errorf("version %d is unknown, this program reads %d", r.V, ReceiptVersion)
	}
	env, err := ParseEnvelope(r.Envelope)
	if err != nil {
		return Record{}, err
	}
	rec, err := ParsePayload(env.Payload)
	if err != nil {
		return Record{}, err
	}
	if rec.Type != OPEN {
		return Record{}, fmt.Errorf("its record is of type %s, not OPEN", rec.Type)
	}
	return rec, r.Salts.open(rec, r.Tenant)
}
