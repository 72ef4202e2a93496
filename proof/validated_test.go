package proof

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// TestRejectedValidation: a person who rejects the result has accepted nothing.
func TestRejectedValidation(t *testing.T) {
	for _, tt := range []struct {
		result   string
		accepted bool
	}{{Accepted, true}, {Rejected, false}} {
		anne := newPerson(t, "anne")
		w, b := goodBundle(t)
		closing, leaseID, _, err := b.Incomplete()
		if err != nil {
			t.Fatal(err)
		}
		c := completion(RoleValidated)
		c.Closing, c.LeaseID, c.Outcome.Result = closing, leaseID, tt.result
		b.Completions = []json.RawMessage{signed(t, c, anne)}
		policy := string(w.policy()) + "person anne " + anne.pin.Key.String() + " - -\n"
		res, err := Verify(marshalled(t, b), []byte(policy), Options{})
		if err != nil {
			t.Fatal(err)
		}
		open := slices.ContainsFunc(res.NotProven, func(s string) bool { return strings.Contains(s, "a person accepted the result") })
		if open == tt.accepted {
			t.Errorf("%s: not proven %q", tt.result, res.NotProven)
		}
		if !slices.ContainsFunc(res.Facts, func(n Named) bool { return strings.HasPrefix(n.Value, tt.result+" by ") }) {
			t.Errorf("%s: facts %+v", tt.result, res.Facts)
		}
	}
}

// TestRolesWithoutAnnex: each role is filled once in certificates without an annex
// too, and there is no field to fill.
func TestRolesWithoutAnnex(t *testing.T) {
	anne := newPerson(t, "anne")
	policy := &Policy{persons: []PinnedKey{anne.pin}}
	validated, again := completion(RoleValidated), completion(RoleValidated)
	again.Outcome = &Outcome{Rejected, "read it again"}
	field := completion(RoleEntered)
	field.Fields = []Entered{{"media.0.propertyNumber", "P-17"}}
	for _, tt := range []struct {
		all  []Completion
		good bool
	}{{[]Completion{validated}, true}, {[]Completion{validated, completion(RolePerformed)}, true}, {[]Completion{validated, again}, false}, {[]Completion{field}, false}} {
		var envelopes []json.RawMessage
		for _, c := range tt.all {
			envelopes = append(envelopes, signed(t, c, anne))
		}
		if _, err := VerifyCompletions(envelopes, policy, []byte("close"), nil); (err == nil) != tt.good {
			t.Errorf("%+v: %v", tt.all, err)
		}
	}
}

// TestSigner: who signs under another name than the policy's is shown with both.
func TestSigner(t *testing.T) {
	c := completion(RoleEntered)
	c.Fields = []Entered{{"media.0.propertyNumber", "P-17"}}
	annex := filledAnnex()
	for name, want := range map[string]string{"": c.Person.Name, c.Person.Name: c.Person.Name, "bob": c.Person.Name + ", with the key of bob"} {
		filled := annex.Filled([]Completed{{Completion: c, By: PinnedKey{Name: name}}})
		if got := filled.Media[0].PropertyNumber.Source; got != EnteredBy(want) {
			t.Errorf("key of %q: %q", name, got)
		}
	}
}

// TestStatementPersons: a host's statement names no persons either.
func TestStatementPersons(t *testing.T) {
	annex := filledAnnex()
	s := HostStatement{V: 1, NodeID: annex.NodeID, At: "2026-11-23T12:00:00Z", Sanitize: annex.Sanitize, CryptoErase: annex.CryptoErase,
		Host: annex.Host, Media: annex.Media, Config: []NamedFact{}, Limits: []string{}}
	if _, err := SignStatement(s, newPerson(t, "node").key); err != nil {
		t.Fatal(err)
	}
	for _, f := range []*Fact{&s.Sanitize.Performed, &s.Sanitize.Verified, &s.Sanitize.Validation} {
		*f = Fact{"Anne", SourceConfigured}
		if _, err := SignStatement(s, newPerson(t, "node").key); err == nil {
			t.Error("signed a statement that names a person")
		}
		*f = Human()
	}
}

// TestTextDirection: what a node writes cannot reorder what people read.
func TestTextDirection(t *testing.T) {
	r := Result{Kind: "lease", Facts: []Named{{"medium", "a\u202eb\u2066c\x1b[2J\nd"}}}
	if text := r.Text(); strings.ContainsAny(text, "\u202e\u2066\x1b") || !strings.Contains(text, `a'\u202e'b'\u2066'c'\x1b'[2J'\n'd`) {
		t.Errorf("%q", text)
	}
}
