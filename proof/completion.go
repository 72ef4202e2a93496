package proof

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// CompletionPredicate is the predicate type of a [Completion].
const CompletionPredicate = "urn:vacate:completion:v1"

// What a person did (SP 800-88 Rev. 2, sections 4.5 and 4.6).
const (
	RoleEntered   = "entered"   // gave what the node could not know
	RolePerformed = "performed" // is responsible for the sanitization
	RoleVerified  = "verified"  // looked whether it completed without errors (4.5.1)
	RoleValidated = "validated" // accepts or rejects the result (4.5.2)
)

// Outcomes of a validation.
const (
	Accepted = "accepted"
	Rejected = "rejected"
)

// Bounds of a completion.
const (
	maxEntered = 256  // fields
	maxText    = 1024 // bytes of a text
	maxPerson  = 96   // bytes of each of a person's fields
)

// A Completion is what one person adds to a certificate, under its own signature:
// nothing of the node's is changed. It names the record that ended the lease, and
// with it everything before that and the annex.
type Completion struct {
	V       int       `json:"v"` // 1
	LeaseID string    `json:"leaseId,omitempty"`
	Closing string    `json:"closing"` // [PayloadHash] of the record that the certificate ends with
	Role    string    `json:"role"`    // what the person did
	Person  Person    `json:"person"`
	Date    string    `json:"date"`                 // when the person did it, as [FormatTime] has it; its own word
	Fields  []Entered `json:"fields"`               // by path, each once
	Outcome *Outcome  `json:"validation,omitempty"` // iff Role is [RoleValidated]
	Remarks string    `json:"remarks"`
}

// A Person is who signs, in the words of SP 800-88 Rev. 2, Appendix C. Name may not
// be empty.
type Person struct {
	Name         string `json:"name"`
	Title        string `json:"title"`
	Organization string `json:"organization"`
	Location     string `json:"location"`
	Contact      string `json:"contact"`
}

// An Entered is a value for a field of the annex that is [SourceHuman].
type Entered struct {
	Path  string `json:"path"` // as in [Field]
	Value string `json:"value"`
}

// An Outcome is a validation.
type Outcome struct {
	Result string `json:"result"` // [Accepted] or [Rejected]
	Method string `json:"method"` // how the person came to it
}

// A Completed is a completion whose signature was verified with a pinned key.
type Completed struct {
	Completion
	By PinnedKey
}

// Fields of the annex that say who did what. Roles fill them, and nothing else.
var rolePaths = map[string]string{
	RolePerformed: "sanitization.performedBy",
	RoleVerified:  "sanitization.verifiedBy",
	RoleValidated: "sanitization.validation",
}

type completionStatement struct {
	Type          string     `json:"_type"`
	Subject       []subject  `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     Completion `json:"predicate"`
}

func (c Completion) wrapped() completionStatement {
	return completionStatement{
		Type: StatementType, PredicateType: CompletionPredicate, Predicate: c,
		Subject: []subject{{Name: "record", Digest: subjectDigest{c.Closing}}},
	}
}

func (c Completion) check() error {
	if c.V != 1 {
		return fmt.Errorf("version %d is unknown", c.V)
	}
	if !slices.Contains([]string{RoleEntered, RolePerformed, RoleVerified, RoleValidated}, c.Role) {
		return fmt.Errorf("role %q is unknown", c.Role)
	}
	if err := checkHex("closing", c.Closing, 32); err != nil {
		return err
	}
	if _, err := ParseTime(c.Date); err != nil {
		return err
	}
	for name, v := range map[string]string{"name": c.Person.Name, "title": c.Person.Title, "organization": c.Person.Organization,
		"location": c.Person.Location, "contact": c.Person.Contact} {
		if len(v) > maxPerson || !utf8.ValidString(v) {
			return fmt.Errorf("the person's %s is not UTF-8 of at most %d bytes", name, maxPerson)
		}
	}
	switch {
	case strings.TrimSpace(c.Person.Name) == "":
		return errors.New("the person has no name")
	case c.LeaseID != "" && !ValidLeaseID(c.LeaseID):
		return fmt.Errorf("%q is no lease", c.LeaseID)
	case len(c.Remarks) > maxText:
		return fmt.Errorf("remarks of more than %d bytes", maxText)
	case c.Fields == nil || len(c.Fields) > maxEntered:
		return fmt.Errorf("more than %d fields, or null for none", maxEntered)
	case (c.Outcome != nil) != (c.Role == RoleValidated):
		return errors.New("a validation stands in the completion of who validated, and in no other")
	case c.Outcome != nil && c.Outcome.Result != Accepted && c.Outcome.Result != Rejected:
		return fmt.Errorf("a validation is %q or %q", Accepted, Rejected)
	case c.Outcome != nil && (strings.TrimSpace(c.Outcome.Method) == "" || len(c.Outcome.Method) > maxPerson*4):
		return fmt.Errorf("a validation says how it was done, in at most %d bytes", maxPerson*4)
	}
	for i, f := range c.Fields {
		switch {
		case i > 0 && c.Fields[i-1].Path >= f.Path:
			return fmt.Errorf("field %.64q is there twice, or out of order", f.Path)
		case strings.TrimSpace(f.Value) == "" || len(f.Value) > maxText:
			return fmt.Errorf("field %.64q is empty, or has more than %d bytes", f.Path, maxText)
		case isRolePath(f.Path):
			return fmt.Errorf("field %s is filled by the role, not by a value", f.Path)
		}
	}
	return nil
}

func isRolePath(path string) bool {
	for _, p := range rolePaths {
		if p == path {
			return true
		}
	}
	return false
}

// SignCompletion returns a completion's envelope, signed by the person's key. Fields
// may be in any order. V may be 0.
func SignCompletion(c Completion, person crypto.Signer) ([]byte, error) {
	if c.V == 0 {
		c.V = 1
	}
	c.Fields = append([]Entered{}, c.Fields...)
	slices.SortFunc(c.Fields, func(a, b Entered) int { return strings.Compare(a.Path, b.Path) })
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("completion: %w", err)
	}
	payload, err := Encode(c.wrapped())
	if err != nil {
		return nil, err
	}
	// What this returns must be taken by [ReadCompletion], whatever the texts hold.
	if _, err := readCompletionPayload(payload); err != nil {
		return nil, fmt.Errorf("completion: %w", err)
	}
	return Sign(payload, person)
}

// ReadCompletion reads a completion and verifies nothing.
func ReadCompletion(envelope []byte) (Completion, error) {
	env, err := ParseEnvelope(envelope)
	if err != nil {
		return Completion{}, fmt.Errorf("completion: %w", err)
	}
	c, err := readCompletionPayload(env.Payload)
	if err != nil {
		return c, fmt.Errorf("completion: %w", err)
	}
	return c, nil
}

func readCompletionPayload(payload []byte) (Completion, error) {
	w, err := Decode[completionStatement](payload)
	if err != nil {
		return Completion{}, err
	}
	if again, err := Encode(w.Predicate.wrapped()); err != nil || string(again) != string(payload) {
		return Completion{}, fmt.Errorf("%w: it is not a completion", ErrForm)
	}
	return w.Predicate, w.Predicate.check()
}

// OpenCompletion verifies one with the key of a person that the policy pins, valid
// at the date that it bears. The date is the person's own word. An envelope has that
// one signature.
func (p *Policy) OpenCompletion(envelope []byte) (Completed, error) {
	c, err := ReadCompletion(envelope)
	if err != nil {
		return Completed{}, err
	}
	env, err := ParseEnvelope(envelope)
	if err != nil {
		return Completed{}, err
	}
	date, err := ParseTime(c.Date)
	if err != nil {
		return Completed{}, err
	}
	if len(env.Signatures) != 1 {
		return Completed{}, fmt.Errorf("completion of %q: %d signatures, not 1", c.Person.Name, len(env.Signatures))
	}
	for _, k := range p.Persons() {
		if k.Key.KeyID() != env.Signatures[0].KeyID {
			continue
		}
		if err := env.VerifyKey(k.Key); err != nil {
			return Completed{}, fmt.Errorf("completion of %q: %w", c.Person.Name, err)
		}
		if !k.ValidDuring(date, date) {
			return Completed{}, fmt.Errorf("completion of %q: the key of %s was not valid on %s", c.Person.Name, k.Name, c.Date)
		}
		return Completed{Completion: c, By: k}, nil
	}
	return Completed{}, fmt.Errorf("completion of %q: the policy pins no person's key with the id %s", c.Person.Name, env.Signatures[0].KeyID)
}

// VerifyCompletions verifies all of a bundle's: signatures, that they are of this
// closing record, and that they fill nothing but what the annex leaves to a person,
// each once. annex is nil where the certificate has none.
func VerifyCompletions(completions []json.RawMessage, p *Policy, closing []byte, annex *Annex) ([]Completed, error) {
	var out []Completed
	for _, envelope := range completions {
		c, err := p.OpenCompletion(envelope)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, fits(out, PayloadHash(closing), annex)
}

func fits(all []Completed, closing string, annex *Annex) error {
	open := map[string]bool{rolePaths[RolePerformed]: true, rolePaths[RoleVerified]: true, rolePaths[RoleValidated]: true}
	if annex != nil {
		for _, path := range annex.Missing() {
			open[path] = true
		}
	}
	for _, c := range all {
		if c.Closing != closing {
			return fmt.Errorf("completion of %q is of another certificate", c.Person.Name)
		}
		if annex != nil && c.LeaseID != annex.LeaseID {
			return fmt.Errorf("completion of %q names another lease", c.Person.Name)
		}
		paths := []string{}
		if role := rolePaths[c.Role]; role != "" {
			paths = append(paths, role)
		}
		for _, f := range c.Fields {
			paths = append(paths, f.Path)
		}
		for _, path := range paths {
			if !open[path] {
				return fmt.Errorf("completion of %q: field %.64q is not there, or filled already", c.Person.Name, path)
			}
			delete(open, path)
		}
	}
	return nil
}

// Missing are the paths of the fields that require human entry.
func (a *Annex) Missing() []string {
	var out []string
	for _, f := range a.Fields() {
		if f.Fact.Source == SourceHuman {
			out = append(out, f.Path)
		}
	}
	return out
}

// Filled is the annex with what persons added, each under its name, for people to
// read. It is not the annex that the record names.
func (a Annex) Filled(completions []Completed) Annex {
	values := map[string]Fact{}
	for _, c := range completions {
		by := EnteredBy(c.signer())
		for _, f := range c.Fields {
			values[f.Path] = Fact{Value: f.Value, Source: by}
		}
		if path := rolePaths[c.Role]; path != "" {
			values[path] = Fact{Value: c.role(), Source: by}
		}
	}
	a.Media = slices.Clone(a.Media)
	a.Device = slices.Clone(a.Device)
	setFields(&a, values)
	return a
}

// signer is the name that the person gives itself and, where the policy pins the key
// under another, that name: nobody signs as somebody else.
func (c Completed) signer() string {
	if c.By.Name == "" || c.By.Name == c.Person.Name {
		return c.Person.Name
	}
	return c.Person.Name + ", with the key of " + c.By.Name
}

// role is what a role's field says.
func (c Completion) role() string {
	var parts []string
	if c.Outcome != nil {
		parts = append(parts, c.Outcome.Result+" ("+c.Outcome.Method+")")
	}
	for _, s := range []string{c.Person.Name, c.Person.Title, c.Person.Organization, c.Date, c.Person.Location, c.Person.Contact} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ", ")
}

// AddCompletion puts one more completion into a certificate, and returns its new
// bytes. It verifies no signature of the certificate; it refuses what does not fit
// to its annex and to its other completions.
func AddCompletion(bundle, envelope []byte) ([]byte, error) {
	b, err := ParseBundle(bundle)
	if err != nil {
		return nil, err
	}
	closing, annex, err := b.ending()
	if err != nil {
		return nil, err
	}
	b.Completions = append(slices.Clone(b.Completions), envelope)
	var all []Completed
	for _, e := range b.Completions {
		c, err := ReadCompletion(e)
		if err != nil {
			return nil, err
		}
		all = append(all, Completed{Completion: c})
	}
	if err := fits(all, PayloadHash(closing), annex); err != nil {
		return nil, err
	}
	return b.Marshal()
}

// Incomplete says what of a certificate still requires human entry, and which
// record a completion has to name. It verifies nothing.
func (b *Bundle) Incomplete() (closing, leaseID string, paths []string, err error) {
	payload, annex, err := b.ending()
	if err != nil || annex == nil {
		return PayloadHash(payload), "", nil, err
	}
	all := []Completed{}
	for _, e := range b.Completions {
		c, err := ReadCompletion(e)
		if err != nil {
			return "", "", nil, err
		}
		all = append(all, Completed{Completion: c})
	}
	filled := annex.Filled(all)
	return PayloadHash(payload), annex.LeaseID, filled.Missing(), nil
}

// ending is the payload of the bundle's last record, and its annex, if it has one.
func (b *Bundle) ending() (closing []byte, annex *Annex, err error) {
	env, err := ParseEnvelope(b.Records[len(b.Records)-1].Envelope)
	if err != nil {
		return nil, nil, err
	}
	if len(b.Annex) == 0 {
		return env.Payload, nil, nil
	}
	a, err := ParseAnnex(b.Annex)
	if err != nil {
		return nil, nil, err
	}
	return env.Payload, &a, nil
}
