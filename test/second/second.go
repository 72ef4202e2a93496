// Package second verifies certificates a second time, in the tests only: written from
// docs/spec/certificate.md on torchwood and the standard library, with nothing of
// package proof, so that the same mistake would have to be made twice. It says
// yes or no, and does not care at which step.
//
// Torchwood's ParsePolicy wants all logs to sign and takes one key under two names,
// and its VerifyProof leaves unknown signature lines alone. What the documents
// demand beyond that is here.
package second

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"filippo.io/torchwood"
)

type bundleJSON struct {
	V       int `json:"v"`
	Records []struct {
		Envelope json.RawMessage `json:"envelope"`
		Proof    string          `json:"proof"`
	} `json:"records"`
	Beacons []struct {
		Checkpoint  string   `json:"checkpoint"`
		Consistency []string `json:"consistency"`
	} `json:"beacons"`
	Annex       json.RawMessage   `json:"annex,omitempty"`
	Quotes      []quoteJSON       `json:"quotes"`
	Completions []json.RawMessage `json:"completions"`
}

type quoteJSON struct {
	Payload   string `json:"payload"`
	Attest    string `json:"attest"`
	Signature string `json:"signature"`
}

type envelopeJSON struct {
	PayloadType string `json:"payloadType"`
	Payload     string `json:"payload"`
	Signatures  []struct {
		KeyID string `json:"keyid"`
		Sig   string `json:"sig"`
	} `json:"signatures"`
}

type statementJSON struct {
	Type    string `json:"_type"`
	Subject []struct {
		Name   string `json:"name"`
		Digest struct {
			SHA256 string `json:"sha256"`
		} `json:"digest"`
	} `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     recordJSON `json:"predicate"`
}

type recordJSON struct {
	V             int         `json:"v"`
	Type          string      `json:"type"`
	NodeID        string      `json:"nodeId"`
	NodeSeq       uint64      `json:"nodeSeq"`
	PrevHash      string      `json:"prevHash"`
	LeaseID       string      `json:"leaseId,omitempty"`
	OpenSeq       uint64      `json:"openSeq,omitempty"`
	OpenLeafIndex *int64      `json:"openLeafIndex,omitempty"`
	TenantCommit  string      `json:"tenantCommit,omitempty"`
	Bytes         int64       `json:"bytes"`
	Space         []spaceJSON `json:"space"`
	Cipher        string      `json:"cipher,omitempty"`
	KeyBits       int         `json:"keyBits,omitempty"`
	KeyMode       string      `json:"keyMode,omitempty"`
	KeyCommit     string      `json:"keyCommit,omitempty"`
	NodeCommit    string      `json:"nodeCommit,omitempty"`
	ShareCommit   string      `json:"shareCommit,omitempty"`
	Beacon        *beaconJSON `json:"beacon,omitempty"`
	EraseBy       string      `json:"eraseBy,omitempty"`
	Events        []eventJSON `json:"events"`
	Drained       bool        `json:"drained"`
	Claims        []string    `json:"claims"`
	NotClaimed    []string    `json:"notClaimed"`
	AnnexDigest   string      `json:"annexDigest,omitempty"`
	Result        string      `json:"result,omitempty"`
	Level         string      `json:"level,omitempty"`
	Keys          []struct {
		Role string `json:"role"`
		Old  string `json:"old,omitempty"`
		New  string `json:"new"`
	} `json:"keys,omitempty"`
	LostNode *struct {
		NodeID   string `json:"nodeId"`
		LastSeq  uint64 `json:"lastSeq"`
		LastHash string `json:"lastHash"`
	} `json:"lostNode,omitempty"`
}

type spaceJSON struct {
	Drive   string      `json:"drive"`
	Commit  string      `json:"driveCommit,omitempty"`
	Extents [][2]uint64 `json:"extents"`
}

type beaconJSON struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
	Digest string `json:"digest"`
}

type eventJSON struct {
	Type        string `json:"type"`
	MonotonicNs int64  `json:"monotonicNs"`
	BootID      string `json:"bootId"`
}

// strict decodes JSON that is in the one form that encoding it again gives.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("bytes after the end")
	}
	var again bytes.Buffer
	e := json.NewEncoder(&again)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	if !bytes.Equal(bytes.TrimSuffix(again.Bytes(), []byte("\n")), b) {
		return errors.New("not in the one form")
	}
	return nil
}

func fromBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil && base64.StdEncoding.EncodeToString(b) != s {
		err = errors.New("base64 is not canonical")
	}
	return b, err
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// A record as far as it was read.
type record struct {
	recordJSON
	envelope []byte
	payload  []byte
	signers  []key
	head     head
	index    int64
	from, to time.Time // zero: not proven
}

type verifier struct {
	policy  *policy
	bundle  bundleJSON
	records []record
	heads   []head // of beacons
	lost    bool   // the end is a NODE_LOST
	result  string
}

// Verify says whether a certificate is good, under a policy, and, if there is an
// envelope of an OPEN, whether it is of that one.
func Verify(bundle, policyText, opened []byte) error {
	p, err := parsePolicy(policyText)
	if err != nil {
		return fmt.Errorf("policy: %w", err)
	}
	v := &verifier{policy: p}
	body, ok := bytes.CutSuffix(bundle, []byte("\n"))
	if !ok || len(bundle) > 256<<10 {
		return errors.New("the bundle is too long, or does not end with a line feed")
	}
	if err := strict(body, &v.bundle); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if v.bundle.V != 1 || len(v.bundle.Records) == 0 {
		return errors.New("bundle: another version, or no records")
	}
	for i := range v.bundle.Records {
		if err := v.read(i); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	for i, step := range []func() error{v.readBeacons, v.bound, v.times, v.annex, v.completions, v.quotes, v.claims} {
		if err := step(); err != nil {
			return fmt.Errorf("part %d: %w", i, err)
		}
	}
	if opened != nil && !bytes.Equal(opened, v.records[0].envelope) {
		return errors.New("the certificate is of another OPEN")
	}
	return nil
}

// read takes record i: its form, who signed it, and that it is in the log.
func (v *verifier) read(i int) error {
	e := v.bundle.Records[i]
	r := record{envelope: e.Envelope}
	for _, old := range v.records {
		if bytes.Equal(old.envelope, r.envelope) {
			return errors.New("it stands twice")
		}
	}
	var s statementJSON
	var err error
	if r.payload, r.signers, err = v.policy.open(e.Envelope); err != nil {
		return err
	}
	if err := strict(r.payload, &s); err != nil {
		return err
	}
	r.recordJSON = s.Predicate
	if err := checkStatement(s); err != nil {
		return err
	}
	if err := v.policy.maySign(&r); err != nil {
		return err
	}
	if r.index, r.head, err = v.policy.proof(e.Proof, e.Envelope); err != nil {
		return err
	}
	v.records = append(v.records, r)
	return nil
}

func checkStatement(s statementJSON) error {
	r := s.Predicate
	name := "node/" + r.NodeID
	switch {
	case r.LeaseID != "":
		name = "lease/" + r.LeaseID
	case r.LostNode != nil:
		name = "node/" + r.LostNode.NodeID
	case len(r.Space) > 0:
		name = "drive/" + r.Space[0].Drive
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "urn:vacate:record:v2" || len(s.Subject) != 1 ||
		s.Subject[0].Name != name || s.Subject[0].Digest.SHA256 != sum([]byte(name)) || r.V != 2 {
		return errors.New("the statement is of something else")
	}
	seen := map[string]bool{} // an extent stands once
	for _, sp := range r.Space {
		for _, e := range sp.Extents {
			for x := e[0]; x < e[0]+e[1]; x++ {
				at := fmt.Sprint(sp.Drive, x)
				if seen[at] {
					return errors.New("an extent stands twice")
				}
				seen[at] = true
			}
		}
	}
	return nil
}

// A head is a verified checkpoint.
type head struct {
	torchwood.Checkpoint
	note     string
	quorumAt time.Time // by then a quorum had cosigned it
	since    time.Time // and one cosigned it then or later
}

// proof verifies a C2SP tlog-proof of an envelope.
func (p *policy) proof(text string, envelope []byte) (int64, head, error) {
	front, note, ok := strings.Cut(text, "\n\n")
	lines := strings.Split(front, "\n")
	if !ok || len(lines) < 2 {
		return 0, head{}, errors.New("no tlog-proof")
	}
	var index int64
	if _, err := fmt.Sscanf(lines[1], "index %d", &index); err != nil || lines[1] != fmt.Sprintf("index %d", index) {
		return 0, head{}, errors.New("the index is missing, or not in its one form")
	}
	for _, h := range lines[2:] {
		if raw, err := fromBase64(h); err != nil || len(raw) != 32 {
			return 0, head{}, errors.New("a hash is none")
		}
	}
	h, err := p.checkpoint(note, p.log)
	if err != nil {
		return 0, head{}, err
	}
	leaf := sha256.Sum256(append([]byte{0}, envelope...))
	return index, h, torchwood.VerifyProof(p.log, leaf, []byte(text))
}

// checkpoint verifies a signed checkpoint, that has a line of the log first, then
// lines of witnesses in the order of their names, and no others, and that they are
// enough for one of the policies.
func (p *policy) checkpoint(text string, enough torchwood.Policy) (head, error) {
	c, n, err := torchwood.VerifyCheckpoint([]byte(text), enough)
	if err != nil {
		return head{}, err
	}
	h := head{Checkpoint: c, note: text}
	if c.Extension != "" || len(n.UnverifiedSigs) > 0 || n.Sigs[0].Name != c.Origin {
		return head{}, errors.New("checkpoint with lines that nobody needs, or the log's is not the first")
	}
	again := n.Text + "\n"
	last := ""
	for i, s := range n.Sigs {
		raw, err := fromBase64(s.Base64)
		if err != nil {
			return head{}, err
		}
		again += "— " + s.Name + " " + base64.StdEncoding.EncodeToString(raw) + "\n"
		if i == 0 {
			continue
		}
		if s.Name <= last {
			return head{}, errors.New("witnesses are out of order")
		}
		last = s.Name
		if _, err := torchwood.CosignatureTimestamp(s); err != nil {
			return head{}, err
		}
	}
	if again != text || base64.StdEncoding.EncodeToString(c.Hash[:]) != strings.Split(text, "\n")[2] {
		return head{}, errors.New("checkpoint is not in its one form")
	}
	h.quorumAt, h.since = p.quorumTimes(n, c.Origin)
	return h, nil
}
