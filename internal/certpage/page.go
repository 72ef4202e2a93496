// Package certpage shows a verified certificate to an auditor: one HTML page for a
// folder, without scripts and without anything that it would have to load.
//
// Everything on it comes from outside: from drives, tenants, persons, other nodes.
// It is escaped where it stands (html/template), and characters that do not print
// are shown as their numbers, so that no text can hide or turn round another.
package certpage

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"strconv"
	"strings"
	"unicode"

	"vacate/proof"
)

//go:embed page.html
var source string

var page = template.Must(template.New("page").Parse(source))

// HTML is the page of a bundle that [proof.Verify] has accepted with this policy,
// as res says. It fails where res is of another bundle. The bundle is in the page, to
// be saved; the policy is not: whoever checks must have its own.
func HTML(bundle, policy []byte, res *proof.Result) ([]byte, error) {
	v, err := newView(bundle, policy, res)
	if err != nil {
		return nil, fmt.Errorf("showing a certificate: %w", err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, v); err != nil {
		return nil, fmt.Errorf("showing a certificate: %w", err)
	}
	return out.Bytes(), nil
}

// A view is what the page shows. All strings are clean.
type view struct {
	Title    string
	Subject  string
	Outcome  string
	Violated string
	Summary  []row
	Times    []moment
	Deadline []row
	Claims   []claim
	Not      []string
	Sections []section
	Persons  []section
	Limits   []string
	Steps    []step
	Facts    []row
	Digests  []row
	Command  string
	File     string
	Data     template.URL
	Missing  int
}

type row struct{ Name, Value string }

type moment struct{ What, Where, NotBefore, NotAfter string }

type claim struct{ Name, Proves, Not string }

type step struct {
	Number     int
	Name, Text string
}

// A section is a table of fields.
type section struct {
	Title string
	Note  string
	Rows  []field
}

type field struct {
	Label, Value, Source string
	Empty                bool // there is no value; the source says why
}

var errOther = errors.New("the result of the verification is of another bundle")

func newView(bundle, policy []byte, res *proof.Result) (*view, error) {
	b, err := proof.ParseBundle(bundle)
	if err != nil {
		return nil, err
	}
	p, err := proof.ParsePolicy(policy)
	if err != nil {
		return nil, err
	}
	records, err := b.Parsed()
	if err != nil {
		return nil, err
	}
	first, last := records[0], records[len(records)-1]
	if first.LeaseID != res.LeaseID || first.NodeID != res.NodeID && last.NodeID != res.NodeID {
		return nil, errOther
	}
	closing, err := proof.ParseEnvelope(b.Records[len(b.Records)-1].Envelope)
	if err != nil {
		return nil, err
	}
	var annex *proof.Annex
	if len(b.Annex) > 0 {
		a, err := proof.ParseAnnex(b.Annex)
		if err != nil {
			return nil, err
		}
		annex = &a
	}
	done, err := proof.VerifyCompletions(b.Completions, p, closing.Payload, annex)
	if err != nil {
		return nil, err
	}
	v := &view{}
	v.head(res)
	v.proven(res)
	v.digests(bundle, policy)
	if annex != nil {
		filled := annex.Filled(done)
		v.Missing = len(filled.Missing())
		v.Sections = sections(&filled)
		v.Limits = cleanAll(annex.Limits)
	}
	v.Persons = persons(done)
	return v, nil
}

func (v *view) head(res *proof.Result) {
	v.Subject = "lease " + clean(res.LeaseID)
	v.File = "certificate-" + clean(res.LeaseID)
	if res.LeaseID == "" && len(res.Space) > 0 {
		v.Subject = "drive " + clean(res.Space[0].Drive)
		v.File = "certificate-" + clean(res.Space[0].Drive)
	}
	v.Title = "Erasure certificate of " + v.Subject
	v.Outcome = outcomes[res.Result]
	if res.Kind == "drive" && len(res.Times) > 0 {
		v.Title = "Certificate of " + v.Subject
		v.Outcome = ofDrive(res.Times[0].Record, res.Result)
	}
	if v.Outcome == "" {
		v.Outcome = clean(res.Result)
	}
	v.Violated = clean(res.Violated)
	add := func(name, value string) {
		if value != "" {
			v.Summary = append(v.Summary, row{name, clean(value)})
		}
	}
	add("Node", res.NodeID)
	add("Result", res.Result)
	add("Size", size(res.Bytes))
	add("Key", keyModes[res.KeyMode])
	add("Space", spaceText(res.Space))
	add("Log", res.Log)
	add("Witnesses", orNone(strings.Join(res.Witnesses, ", ")))
	if res.LeaseID != "" {
		add("Tenant's receipt", map[bool]string{true: "shown, and of this lease", false: "not shown"}[res.Opened])
	}
	for _, t := range res.Times {
		who := "node"
		if t.Record == proof.NodeLost {
			who = "operator"
		}
		v.Times = append(v.Times, moment{
			What: clean(string(t.Record)), Where: fmt.Sprintf("record %d of the %s, leaf %d of the log", t.NodeSeq, who, t.LeafIndex),
			NotBefore: orNot(clean(t.NotBefore)), NotAfter: orNot(clean(t.NotAfter)),
		})
	}
	if res.EraseBy != "" {
		v.Deadline = []row{{"To be erased by", clean(res.EraseBy)}, {"Deadline", clean(res.Deadline)}}
	}
}

func (v *view) proven(res *proof.Result) {
	for _, c := range res.Claims {
		v.Claims = append(v.Claims, claim{clean(c.Name), clean(c.Proves), clean(c.DoesNotProve)})
	}
	v.Not = cleanAll(res.NotProven)
	if len(res.NotClaimed) > 0 {
		v.Not = append(v.Not, "by the record's own words: "+clean(strings.Join(res.NotClaimed, ", ")))
	}
	for _, s := range res.Steps {
		v.Steps = append(v.Steps, step{s.Step, clean(s.Name), clean(s.Text)})
	}
	for _, f := range res.Facts {
		v.Facts = append(v.Facts, row{clean(f.Name), clean(f.Value)})
	}
}

func (v *view) digests(bundle, policy []byte) {
	sum := func(b []byte) string {
		h := sha256.Sum256(b)
		return hex.EncodeToString(h[:])
	}
	v.Digests = []row{{"Certificate, SHA-256", sum(bundle)}, {"Policy, SHA-256", sum(policy)}}
	v.Command = "vacate certificate verify " + v.File + ".json --policy POLICY"
	// Base64 has no character that could end the attribute.
	v.Data = template.URL("data:application/json;base64," + base64.StdEncoding.EncodeToString(bundle)) //nolint:gosec // see above
}

// outcomes are the results of a CLOSE in words. Whose they are stands with them: a
// page in a folder is read by its head.
var outcomes = map[string]string{
	proof.ResultOK:         "The node states that it destroyed the key",
	proof.ResultFailed:     "The node states that the lease never came to be open",
	proof.ResultLostKeeper: "The node states that the memory which held the key ended with its process",
	proof.ResultLostBoot:   "The node states that the memory which held the key ended with the machine's boot",
	proof.ResultLostEngine: "The node states that it destroyed the key, as no engine could take the lease over",
	proof.ResultLostDrive:  "The node states that it destroyed the key, as its drive lost writes",
	proof.ResultLostNode:   "The operator states that the node never came back",
}

// ofDrive is what the record of a drive says, in words.
func ofDrive(typ proof.Type, result string) string {
	switch {
	case typ == proof.ENROL:
		return "The node states that it took the drive into use"
	case typ == proof.RETIRE:
		return "The node states that it took the drive out of use"
	case result == proof.ResultOK:
		return "The node states that the drive was sanitized"
	}
	return "The node states that the drive was not sanitized"
}

var keyModes = map[proof.KeyMode]string{
	proof.ModeNode:   "made by the node",
	proof.ModeSplit:  "mixed from the node's half and the tenant's",
	proof.ModeTenant: "the tenant's own, above the volume",
}

func spaceText(space []proof.Space) string {
	var out []string
	for _, s := range space {
		n := uint64(0)
		for _, r := range s.Extents {
			n += uint64(r.Count)
		}
		out = append(out, fmt.Sprintf("%d extents of drive %s", n, s.Drive))
	}
	return strings.Join(out, ", ")
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func orNot(s string) string {
	if s == "" {
		return "not proven"
	}
	return s
}

// size is a number of bytes, exact and for people.
func size(n int64) string {
	if n == 0 {
		return ""
	}
	exact := strconv.FormatInt(n, 10) + " bytes"
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if one := int64(1) << (40 - 10*i); n >= one {
			return strconv.FormatFloat(float64(n)/float64(one), 'f', -1, 64) + " " + unit + " (" + exact + ")"
		}
	}
	return exact
}

// clean shows what does not print as its number: line ends, escapes, and
// characters that turn the direction of a text or have no width.
func clean(s string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\ufffd") {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "[U+%04X]", r)
		}
	}
	return b.String()
}

func cleanAll(in []string) []string {
	var out []string
	for _, s := range in {
		out = append(out, clean(s))
	}
	return out
}
