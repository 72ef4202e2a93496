package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"vacate/internal/lease"
)

// Version is the layout that this package writes and reads. It stands in every
// value.
const Version = 1

// maxValue bounds one value, in bytes: a lease with all its pieces takes 16 KiB.
const maxValue = 1 << 20

// The values, as docs/spec/journal.md has them.
type (
	metaValue struct {
		V         int       `json:"v"`
		NodeID    string    `json:"nodeId"`
		CreatedAt time.Time `json:"createdAt"`
		NextSeq   uint64    `json:"nextSeq"`  // of the next record, from 1
		LastHash  string    `json:"lastHash"` // SHA-256 of the newest record
		Ended     int       `json:"ended"`    // leases in the bucket of that name
	}
	driveValue struct {
		V int `json:"v"`
		Drive
	}
	leaseValue struct {
		V int `json:"v"`
		lease.Lease
	}
	extentValue struct {
		V     int         `json:"v"`
		Count uint32      `json:"count"`
		Lease string      `json:"lease"`
		State lease.Space `json:"state"`
	}
	refValue struct {
		V     int    `json:"v"`
		Lease string `json:"lease"`
	}
)

// encode returns the one form in which a value may be stored: JSON without
// blanks, fields in the order of their type, nothing escaped that need not be.
func encode(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("journal: encoding %T: %v", v, err)) // our own types always encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

// decode is strict: it takes exactly what encode makes. Decoding and encoding
// again must give the same bytes, which rules out duplicate and case-folded keys,
// unknown fields, blanks and trailing bytes at once.
func decode[T any](b []byte) (T, error) {
	var v, none T
	var version struct {
		V int `json:"v"`
	}
	if len(b) > maxValue {
		return none, fmt.Errorf("value has %d bytes, at most %d are allowed", len(b), maxValue)
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return none, err
	}
	if version.V != Version {
		return none, fmt.Errorf("value has version %d, this program reads %d: %w", version.V, Version, ErrVersion)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return none, err
	}
	if !bytes.Equal(encode(v), b) {
		return none, fmt.Errorf("value is not in its one form: %.200q", b)
	}
	return v, nil
}

// parseHex decodes an identifier of n bytes in lower-case hexadecimal digits.
func parseHex(s string, n int) ([]byte, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != n || hex.EncodeToString(b) != s {
		return nil, fmt.Errorf("%q is not %d lower-case hexadecimal digits", s, 2*n)
	}
	return b, nil
}

// seqKey is the key of record or place number seq: order of keys is order of
// numbers.
func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// extentKey is the key of a run of extents: those of a drive stand together, in
// their order.
func extentKey(uuid []byte, first uint32) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 20), uuid...), first)
}

func parseExtentKey(k []byte) (uuid string, first uint32, err error) {
	if len(k) != 20 {
		return "", 0, fmt.Errorf("extent key has %d bytes", len(k))
	}
	return hex.EncodeToString(k[:16]), binary.BigEndian.Uint32(k[16:]), nil
}

// keyKey is where an idempotency key is found. A tenant's name has no NUL.
func keyKey(tenant, key string) []byte { return []byte(tenant + "\x00" + key) }
