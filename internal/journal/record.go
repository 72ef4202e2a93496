package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"vacate/internal/extent"
	"vacate/internal/lease"
)

// A RecordType says what a record is about.
type RecordType string

// The types of records.
const (
	OPEN   RecordType = "OPEN"   // a lease got its space; written before key or export exist
	RESIZE RecordType = "RESIZE" // a lease got more space; written before it is used
	CLOSE  RecordType = "CLOSE"  // a lease ended
	ENROL  RecordType = "ENROL"  // a drive was taken into use
)

// A Record is what one node observed. Its bytes in the journal are the record:
// whoever checks hashes them, and never encodes again. It is not signed and
// carries no claims yet; both come with the log.
type Record struct {
	V        int        `json:"v"`
	Type     RecordType `json:"type"`
	NodeID   string     `json:"nodeId"`
	NodeSeq  uint64     `json:"nodeSeq"`           // 1, 2, 3, … on each node
	PrevHash string     `json:"prevHash"`          // SHA-256 of the record before; zeros in the first
	LeaseID  string     `json:"leaseId,omitempty"` // OPEN, RESIZE, CLOSE
	OpenSeq  uint64     `json:"openSeq,omitempty"` // RESIZE, CLOSE: number of its OPEN
	Bytes    int64      `json:"bytes"`             // of the volume, or of the drive's data area
	Space    []Space    `json:"space"`             // of the volume, in its order, or all of the drive
	Cipher   string     `json:"cipher,omitempty"`
	KeyBits  int        `json:"keyBits,omitempty"`
	Events   []Event    `json:"events"`
	Drained  bool       `json:"drained"` // CLOSE: nothing was in flight to the drives
	Claims   []string   `json:"claims"`  // none in this version
	Result   string     `json:"result,omitempty"`
}

// Space is extents of one drive.
type Space struct {
	Drive   string         `json:"drive"` // the drive's UUID: a pseudonym
	Extents []extent.Range `json:"extents"`
}

// An Event is something that was observed at a time. What nobody observed has no
// event.
type Event struct {
	Type        string `json:"type"`        // "key_generated", "gate_closed", "key_destroyed"
	MonotonicNs int64  `json:"monotonicNs"` // CLOCK_BOOTTIME
	BootID      string `json:"bootId"`      // on this boot
}

// Stored is a record and its number.
type Stored struct {
	Seq  uint64
	JSON []byte
}

const (
	cipherName = "AES-256-XTS"
	keyBits    = 512 // both halves
)

// zeroHash stands before the first record.
var zeroHash = strings.Repeat("0", 2*sha256.Size)

// Hash is what the next record's PrevHash must be.
func Hash(record []byte) string {
	sum := sha256.Sum256(record)
	return hex.EncodeToString(sum[:])
}

// ParseRecord decodes a record, strictly.
func ParseRecord(b []byte) (Record, error) { return decode[Record](b) }

func openRecord(l lease.Lease) Record {
	return Record{Type: OPEN, LeaseID: l.ID, Bytes: l.SizeBytes, Space: space(l.Pieces),
		Cipher: cipherName, KeyBits: keyBits}
}

func closeRecord(l lease.Lease) Record {
	r := Record{Type: CLOSE, LeaseID: l.ID, OpenSeq: l.OpenSeq, Bytes: l.SizeBytes, Space: space(l.Pieces),
		Cipher: cipherName, KeyBits: keyBits, Result: string(l.Result)}
	if e := l.Erasure; e != nil {
		r.Drained = e.Drained
		for _, ev := range []Event{
			{"key_generated", e.KeyGeneratedNs, e.BootID},
			{"gate_closed", e.GateClosedNs, e.BootID},
			{"key_destroyed", e.KeyDestroyedNs, e.BootID},
		} {
			if ev.MonotonicNs != 0 && (ev.Type != "key_destroyed" || e.ReadBack) {
				r.Events = append(r.Events, ev)
			}
		}
	}
	return r
}

func enrolRecord(d Drive) Record {
	return Record{Type: ENROL, Bytes: int64(d.Extents) * d.ExtentBytes,
		Space: []Space{{Drive: d.UUID, Extents: []extent.Range{{First: 0, Count: d.Extents}}}}}
}

// An Auditor reads a node's records in order and finds what must not be: a gap
// or a fork of the numbers, a lease opened twice or closed twice or never opened,
// a RESIZE that takes space away, a CLOSE of other space than its OPEN's and
// RESIZEs', space of open leases that overlaps, and so space that was leased again
// before its CLOSE.
type Auditor struct {
	node string
	next uint64 // 0 before the first record
	hash string
	open map[string]Record // OPEN records without CLOSE, with the space of the last RESIZE
	seen map[string]bool   // all leases
}

// Add takes the next record's bytes.
func (a *Auditor) Add(b []byte) error {
	r, err := ParseRecord(b)
	if err != nil {
		return err
	}
	if a.next == 0 {
		*a = Auditor{node: r.NodeID, next: 1, hash: zeroHash, open: map[string]Record{}, seen: map[string]bool{}}
	}
	switch {
	case r.NodeID != a.node:
		return fmt.Errorf("record %d is of node %s, those before of %s", r.NodeSeq, r.NodeID, a.node)
	case r.NodeSeq != a.next:
		return fmt.Errorf("record %d stands where %d should", r.NodeSeq, a.next)
	case r.PrevHash != a.hash:
		return fmt.Errorf("record %d follows a record with hash %s, the one before it has %s", r.NodeSeq, r.PrevHash, a.hash)
	}
	switch r.Type {
	case OPEN:
		err = a.opened(r)
	case CLOSE:
		err = a.closed(r)
	case RESIZE:
		err = a.resized(r)
	case ENROL:
	default:
		err = fmt.Errorf("record %d has unknown type %q", r.NodeSeq, r.Type)
	}
	a.next++
	a.hash = Hash(b)
	return err
}

// Open returns how many leases have an OPEN and no CLOSE.
func (a *Auditor) Open() int { return len(a.open) }

func (a *Auditor) opened(r Record) error {
	if a.seen[r.LeaseID] {
		return fmt.Errorf("record %d opens lease %s again", r.NodeSeq, r.LeaseID)
	}
	for id, o := range a.open {
		if overlap(r.Space, o.Space) {
			return fmt.Errorf("record %d gives lease %s space that lease %s has not given back", r.NodeSeq, r.LeaseID, id)
		}
	}
	a.seen[r.LeaseID] = true
	a.open[r.LeaseID] = r
	return nil
}

func (a *Auditor) closed(r Record) error {
	o, ok := a.open[r.LeaseID]
	if !ok {
		return fmt.Errorf("record %d closes lease %s, which is not open", r.NodeSeq, r.LeaseID)
	}
	if r.OpenSeq != o.NodeSeq || r.Bytes != o.Bytes || string(encode(r.Space)) != string(encode(o.Space)) {
		return fmt.Errorf("record %d closes lease %s, but not what record %d opened", r.NodeSeq, r.LeaseID, o.NodeSeq)
	}
	delete(a.open, r.LeaseID)
	return nil
}

func overlap(a, b []Space) bool {
	for _, x := range a {
		for _, y := range b {
			if x.Drive != y.Drive {
				continue
			}
			for _, r := range x.Extents {
				for _, s := range y.Extents {
					if r.Overlaps(s) {
						return true
					}
				}
			}
		}
	}
	return false
}
