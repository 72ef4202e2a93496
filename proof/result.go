package proof

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// A Claim is one that the bundle supports, with what it is worth.
type Claim struct {
	Name         string `json:"name"`
	Proves       string `json:"proves"`
	DoesNotProve string `json:"doesNotProve"`
}

// A Passed is a step that the bundle passed, and what was checked.
type Passed struct {
	Step int    `json:"step"`
	Name string `json:"name"`
	Text string `json:"text"`
}

// A Moment is when a record was made, as far as that is proven: not before a
// beacon's cosignatures, not after its own. Empty is "not proven".
type Moment struct {
	Record    Type   `json:"record"`
	NodeSeq   uint64 `json:"nodeSeq"`
	LeafIndex uint64 `json:"leafIndex"`
	NotBefore string `json:"notBefore,omitempty"` // RFC 3339, UTC
	NotAfter  string `json:"notAfter,omitempty"`
}

// A Named is a fact of the result and its value, for people.
type Named struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// A Result is what a bundle that passed all steps says: nothing more is proven
// than stands in it.
type Result struct {
	V          int      `json:"v"`    // 1
	Kind       string   `json:"kind"` // "lease" or "drive"
	LeaseID    string   `json:"leaseId,omitempty"`
	NodeID     string   `json:"nodeId"`
	Result     string   `json:"result"` // of the CLOSE; "lost_node" of a NODE_LOST
	Bytes      int64    `json:"bytes"`
	Space      []Space  `json:"space"`
	KeyMode    KeyMode  `json:"keyMode,omitempty"`
	Log        string   `json:"log"`
	Witnesses  []string `json:"witnesses"` // that cosigned the last record's checkpoint
	Times      []Moment `json:"times"`
	EraseBy    string   `json:"eraseBy,omitempty"`
	Deadline   string   `json:"deadline,omitempty"` // "met", "missed", "not proven"; empty without eraseBy
	Opened     bool     `json:"opened"`             // the tenant's receipt was given, and is of this lease
	Violated   string   `json:"violated,omitempty"` // a revealed key convicts the provider: the sentence
	Claims     []Claim  `json:"claims"`
	NotProven  []string `json:"notProven"`
	Facts      []Named  `json:"facts"`
	NotClaimed []string `json:"notClaimed"` // the record's own words
	Steps      []Passed `json:"steps"`
}

// notProven adds what is beyond every claim, and what this bundle leaves open.
func (v *verifier) notProven() {
	add := func(s string) { v.result.NotProven = append(v.result.NotProven, s) }
	end := v.last()
	lease := v.result.Kind == "lease"
	if end.from.IsZero() {
		add("that the record is not older than any given time: no witnessed beacon is shown")
	}
	if end.to.IsZero() {
		add("when the record was made: no witness says it, and the node's clock is not trusted")
	}
	if lease && v.result.Result != ResultOK {
		add("that anybody saw the key overwritten: the result is " + v.result.Result + ", so what is said is that the memory which held it is gone")
	}
	if lease && end.Type == CLOSE && !end.Drained {
		add("that no request was in flight to the drives when the record was made; such requests cannot be decrypted any more")
	}
	if v.annex == nil {
		add("anything of the media, the host and the method: the record has no annex")
	} else if !v.annex.Module.Validated {
		add("that the cryptographic module is validated (FIPS 140): it is not (NIST SP 800-88 Rev. 2, 3.2.4)")
	}
	if tpm, ok := v.policy.TPM(v.result.NodeID); ok && tpm.PCRDigest == "" && len(v.quotes) > 0 {
		add("that the boot which the TPM measured is one that anybody approved: the policy pins no digest of its registers")
	}
	if !v.validated {
		add("that a person accepted the result: validation (NIST SP 800-88 Rev. 2, 4.5.2) is not the node's")
	}
	if lease && !v.result.Opened {
		add("that this is the lease which the tenant was given: no receipt was shown")
	}
	add("that the log has no other record of this lease or its space: only an audit of the whole log shows that")
	for _, s := range neverProven {
		add(s)
	}
}

// facts picks from the annex what a reader looks for first.
func (v *verifier) facts() {
	if e, ok := v.last().Event(EventKeyDestroyed); ok {
		if g, ok := v.last().Event(EventGateClosed); ok {
			v.fact("key destroyed after the gate was shut", time.Duration(e.MonotonicNs-g.MonotonicNs).String())
		}
	}
	if v.result.Kind == "lease" {
		v.fact("cipher", fmt.Sprintf("%s, %d bits", v.records[0].Cipher, v.records[0].KeyBits))
	}
	if v.annex == nil {
		return
	}
	a := v.annex
	if a.Tenant != "" {
		v.fact("tenant", a.Tenant)
	}
	for _, m := range a.Media {
		v.fact("medium", fmt.Sprintf("%s, model %s, serial %s", show(m.MediaType), show(m.Model), show(m.Serial)))
	}
	v.fact("method", show(a.Sanitize.Method))
	v.fact("technique", show(a.Sanitize.Technique))
	v.fact("verification", show(a.Sanitize.Verification))
	v.fact("module", fmt.Sprintf("%s %s, validated: %v%s", a.Module.Name, a.Module.Version, a.Module.Validated, certificate(a.Module)))
}

func certificate(m Module) string {
	if m.CertNo == "" {
		return ""
	}
	return ", certificate " + m.CertNo
}

// show is a fact's value with its source, or what stands in its place.
func show(f Fact) string {
	if f.Value == "" {
		return f.Source
	}
	return fmt.Sprintf("%s (%s)", f.Value, f.Source)
}

// JSON is the result in the one form of [Encode], for programs.
func (r *Result) JSON() ([]byte, error) { return Encode(*r) }

// Text is the result for people: what passed, what is proven, and what is not.
// Characters of the annex that do not print are quoted.
func (r *Result) Text() string {
	var b strings.Builder
	line := func(format string, args ...any) {
		for _, c := range fmt.Sprintf(format, args...) {
			if !unicode.IsPrint(c) { // nor may it turn the direction of what follows
				b.WriteString(strconv.QuoteRune(c))
			} else {
				b.WriteRune(c)
			}
		}
		b.WriteByte('\n')
	}
	if r.Violated != "" {
		line("%s", strings.ToUpper(r.Violated[:1])+r.Violated[1:])
		line("")
	}
	line("%s", r.headline())
	line("")
	line("Checked")
	for _, s := range r.Steps {
		line("  %2d %-18s %s", s.Step, s.Name, s.Text)
	}
	line("")
	line("When")
	for _, m := range r.Times {
		line("  %-12s %d, leaf %d: not before %s, not after %s", m.Record, m.NodeSeq, m.LeafIndex, orNot(m.NotBefore), orNot(m.NotAfter))
	}
	if r.Deadline != "" {
		line("  to be erased by %s: %s", r.EraseBy, r.Deadline)
	}
	line("")
	line("Claims")
	for _, c := range r.Claims {
		line("  %s", c.Name)
		line("    proves          %s", c.Proves)
		line("    does not prove  %s", c.DoesNotProve)
	}
	line("")
	line("Not proven")
	for _, s := range r.NotProven {
		line("  - %s", s)
	}
	if len(r.NotClaimed) > 0 {
		line("  - by the record's own words: %s", strings.Join(r.NotClaimed, ", "))
	}
	line("")
	line("Facts, from the records and the annex")
	line("  node: %s", r.NodeID)
	line("  log: %s, witnesses: %s", r.Log, orNone(r.Witnesses))
	for _, f := range r.Facts {
		line("  %s: %s", f.Name, f.Value)
	}
	return b.String()
}

func (r *Result) headline() string {
	if r.Kind == "drive" {
		return fmt.Sprintf("Certificate of drive %s: %s, %d bytes", r.Space[0].Drive, orNot(r.Result), r.Bytes)
	}
	return fmt.Sprintf("Certificate of lease %s: %s, %d bytes, key mode %s", r.LeaseID, r.Result, r.Bytes, r.KeyMode)
}

func orNot(s string) string {
	if s == "" {
		return "(not proven)"
	}
	return s
}

func orNone(w []string) string {
	if len(w) == 0 {
		return "none"
	}
	return strings.Join(w, ", ")
}
