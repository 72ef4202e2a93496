package proof

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// filledAnnex has every field filled by the program, apart from those that a
// person fills.
func filledAnnex() Annex {
	seen := func(s string) Fact { return Fact{Value: s, Source: SourceObserved} }
	a := Annex{
		V: 1, NodeID: strings.Repeat("07", 16), LeaseID: "aaaaaaaaaaaaaaaa",
		Media:  []Medium{{Drive: strings.Repeat("a1", 16)}},
		Device: []DeviceRun{}, Scan: []Scan{}, Limits: []string{},
	}
	values := map[string]Fact{}
	for _, f := range a.Fields() {
		values[f.Path] = seen("of " + f.Path)
	}
	for _, path := range []string{"media.0.propertyNumber", "media.0.manufacturer", "sanitization.validation",
		"sanitization.performedBy", "sanitization.verifiedBy", "sanitization.destination"} {
		values[path] = Human()
	}
	setFields(&a, values)
	return a
}

type person struct {
	key crypto.Signer
	pin PinnedKey
}

func newPerson(t testing.TB, name string) person {
	t.Helper()
	seed := [ed25519.SeedSize]byte{}
	copy(seed[:], name)
	key := ed25519.NewKeyFromSeed(seed[:])
	public, err := NewPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return person{key: key, pin: PinnedKey{Name: name, Key: public}}
}

func completion(role string) Completion {
	c := Completion{
		LeaseID: "aaaaaaaaaaaaaaaa", Closing: PayloadHash([]byte("close")), Role: role,
		Person: Person{Name: "Änne <b>Muster</b>", Title: "Auditor", Location: "Wien", Contact: "a@example.org"},
		Date:   "2026-11-23T12:00:00Z",
	}
	if role == RoleValidated {
		c.Outcome = &Outcome{Result: Accepted, Method: "read the certificate"}
	}
	return c
}

func signed(t testing.TB, c Completion, p person) json.RawMessage {
	t.Helper()
	b, err := SignCompletion(c, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCompletion(t *testing.T) {
	anne, bob := newPerson(t, "anne"), newPerson(t, "bob")
	policy := &Policy{persons: []PinnedKey{anne.pin, bob.pin}}
	annex := filledAnnex()
	if err := annex.Check(); err != nil {
		t.Fatal(err)
	}
	entered := completion(RolePerformed)
	entered.Fields = []Entered{{"sanitization.destination", "back to work"}, {"media.0.propertyNumber", "P-17"}} // any order
	all := []json.RawMessage{signed(t, entered, anne), signed(t, completion(RoleValidated), bob)}
	got, err := VerifyCompletions(all, policy, []byte("close"), &annex)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].By.Name != "anne" || got[1].By.Name != "bob" || got[1].Outcome.Result != Accepted {
		t.Fatalf("%+v", got)
	}
	before := fmt.Sprint(annex)
	filled := annex.Filled(got)
	if fmt.Sprint(annex) != before {
		t.Error("filling an annex changed the original")
	}
	if m := filled.Media[0]; m.PropertyNumber != (Fact{"P-17", "entered by Änne <b>Muster</b>, with the key of anne"}) {
		t.Errorf("property number %+v", m.PropertyNumber)
	}
	if v := filled.Sanitize.Validation.Value; !strings.HasPrefix(v, "accepted (read the certificate), Änne") {
		t.Errorf("validation %q", v)
	}
	want := "media.0.manufacturer sanitization.verifiedBy"
	if left := strings.Join(filled.Missing(), " "); left != want {
		t.Errorf("still missing %q, want %q", left, want)
	}
}

func TestCompletionRejects(t *testing.T) {
	anne, bob := newPerson(t, "anne"), newPerson(t, "bob")
	late := anne.pin
	late.NotAfter = time.Date(2026, 11, 23, 11, 59, 59, 0, time.UTC)
	annex := filledAnnex()
	with := func(change func(*Completion)) Completion {
		c := completion(RoleEntered)
		c.Fields = []Entered{{"media.0.propertyNumber", "P-17"}}
		change(&c)
		return c
	}
	nothing := func(*Completion) {}
	for name, tt := range map[string]struct {
		pins []PinnedKey
		all  []Completion
		want string
	}{
		"nobody pinned":      {nil, []Completion{with(nothing)}, "pins no person's key"},
		"another's key":      {[]PinnedKey{bob.pin}, []Completion{with(nothing)}, "pins no person's key"},
		"key out of date":    {[]PinnedKey{late}, []Completion{with(nothing)}, "was not valid"},
		"other certificate":  {nil, []Completion{with(func(c *Completion) { c.Closing = ZeroHash })}, "another certificate"},
		"other lease":        {nil, []Completion{with(func(c *Completion) { c.LeaseID = "bbbbbbbbbbbbbbbb" })}, "another lease"},
		"field twice":        {nil, []Completion{with(nothing), with(nothing)}, "filled already"},
		"two validations":    {nil, []Completion{completion(RoleValidated), completion(RoleValidated)}, "filled already"},
		"over the node's":    {nil, []Completion{with(func(c *Completion) { c.Fields[0].Path = "media.0.serial" })}, "filled already"},
		"field of no annex":  {nil, []Completion{with(func(c *Completion) { c.Fields[0].Path = "media.1.serial" })}, "not there"},
		"unknown field":      {nil, []Completion{with(func(c *Completion) { c.Fields[0].Path = "v" })}, "not there"},
		"more of one person": {nil, []Completion{completion(RolePerformed), completion(RolePerformed)}, "filled already"},
	} {
		t.Run(name, func(t *testing.T) {
			policy := &Policy{persons: tt.pins}
			if !strings.Contains(name, "pinned") && tt.pins == nil {
				policy.persons = []PinnedKey{anne.pin}
			}
			var all []json.RawMessage
			for _, c := range tt.all {
				all = append(all, signed(t, c, anne))
			}
			if _, err := VerifyCompletions(all, policy, []byte("close"), &annex); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want …%s…", err, tt.want)
			}
		})
	}
	two, err := Sign(mustPayload(t, completion(RoleEntered)), anne.key, bob.key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&Policy{persons: []PinnedKey{anne.pin, bob.pin}}).OpenCompletion(two); err == nil {
		t.Error("accepted with two signatures")
	}
}

func mustPayload(t *testing.T, c Completion) []byte {
	t.Helper()
	c.V, c.Fields = 1, []Entered{}
	b, err := Encode(c.wrapped())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSignCompletionRefuses: what a person cannot sign.
func TestSignCompletionRefuses(t *testing.T) {
	anne := newPerson(t, "anne")
	for name, change := range map[string]func(*Completion){
		"version":             func(c *Completion) { c.V = 2 },
		"role":                func(c *Completion) { c.Role = "observed" },
		"no name":             func(c *Completion) { c.Person.Name = " " },
		"long name":           func(c *Completion) { c.Person.Name = strings.Repeat("x", maxPerson+1) },
		"not UTF-8":           func(c *Completion) { c.Person.Title = "\xff" },
		"value not UTF-8":     func(c *Completion) { c.Fields = []Entered{{"media.0.propertyNumber", "\xff"}} },
		"local time":          func(c *Completion) { c.Date = "2026-11-23T12:00:00+01:00" },
		"no closing":          func(c *Completion) { c.Closing = "" },
		"lease":               func(c *Completion) { c.LeaseID = "../../etc/passwd" },
		"outcome without one": func(c *Completion) { c.Outcome = &Outcome{Accepted, "x"} },
		"validation without":  func(c *Completion) { c.Role = RoleValidated },
		"validation maybe":    func(c *Completion) { c.Role, c.Outcome = RoleValidated, &Outcome{"maybe", "x"} },
		"without a method":    func(c *Completion) { c.Role, c.Outcome = RoleValidated, &Outcome{Accepted, ""} },
		"empty value":         func(c *Completion) { c.Fields = []Entered{{"media.0.propertyNumber", " "}} },
		"long value":          func(c *Completion) { c.Fields = []Entered{{"a", strings.Repeat("x", maxText+1)}} },
		"same field twice":    func(c *Completion) { c.Fields = []Entered{{"a", "1"}, {"a", "2"}} },
		"validation by value": func(c *Completion) { c.Fields = []Entered{{"sanitization.validation", "accepted"}} },
		"too much to say":     func(c *Completion) { c.Remarks = strings.Repeat("x", maxText+1) },
	} {
		c := completion(RoleEntered)
		change(&c)
		if _, err := SignCompletion(c, anne.key); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// TestAnnexCheck: what no node may say.
func TestAnnexCheck(t *testing.T) {
	for name, change := range map[string]func(*Annex){
		"version":               func(a *Annex) { a.V = 2 },
		"no media":              func(a *Annex) { a.Media = nil },
		"validation accepted":   func(a *Annex) { a.Sanitize.Validation = Fact{"accepted", SourceObserved} },
		"validation by a name":  func(a *Annex) { a.Sanitize.Validation = Fact{"accepted", EnteredBy("root")} },
		"FIPS without a number": func(a *Annex) { a.Module.Validated = true },
		"number without FIPS":   func(a *Annex) { a.Module.CertNo = "4242" },
		"number that is none":   func(a *Annex) { a.Module.Validated, a.Module.CertNo = true, "pending" },
		"value of nobody":       func(a *Annex) { a.Host.Kernel = Fact{"Linux", ""} },
		"unknown source":        func(a *Annex) { a.Host.Kernel = Fact{"Linux", "rumour"} },
		"nameless person":       func(a *Annex) { a.Host.Kernel = Fact{"Linux", "entered by "} },
		"empty observation":     func(a *Annex) { a.Host.Kernel = Fact{"", SourceObserved} },
		"value not observed":    func(a *Annex) { a.Host.Kernel = Fact{"Linux", SourceNone} },
		"long value":            func(a *Annex) { a.Media[0].Model.Value = strings.Repeat("x", 1025) },
		"too many limits":       func(a *Annex) { a.Limits = make([]string, 65) },
	} {
		a := filledAnnex()
		change(&a)
		if err := a.Check(); err == nil {
			t.Errorf("%s: passed", name)
		}
		b, err := Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseAnnex(b); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
	good := filledAnnex()
	b, err := Encode(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseAnnex(b); err != nil {
		t.Error(err)
	}
	if _, err := ParseAnnex(append([]byte(" "), b...)); err == nil {
		t.Error("parsed with a blank before it")
	}
}

func TestHostStatement(t *testing.T) {
	node := newPerson(t, "node")
	annex := filledAnnex()
	s := HostStatement{V: 1, NodeID: annex.NodeID, At: "2026-11-23T12:00:00Z", Beacon: &Beacon{Origin: "o", Size: 1, Root: strings.Repeat("A", 43) + "=", Digest: ZeroHash},
		Sanitize: annex.Sanitize, CryptoErase: annex.CryptoErase, Host: annex.Host, Media: annex.Media,
		Config: []NamedFact{{"log", Human()}}, Limits: []string{}}
	b, err := SignStatement(s, node.key)
	if err != nil {
		t.Fatal(err)
	}
	pin := node.pin
	pin.Name = s.NodeID
	got, by, err := OpenStatement(b, &Policy{nodes: []PinnedKey{newPerson(t, "older").pin, pin}})
	if err != nil || by.Name != s.NodeID || got.At != s.At || got.Host != s.Host || *got.Beacon != *s.Beacon {
		t.Fatalf("%+v, %v", got, err)
	}
	other := newPerson(t, "other").pin
	other.Name = s.NodeID
	for name, p := range map[string]*Policy{"nobody": {}, "another key": {nodes: []PinnedKey{other}}} {
		if _, _, err := OpenStatement(b, p); err == nil {
			t.Errorf("%s pinned: accepted", name)
		}
	}
	for i := range len(b) { // a byte each, another bit each time
		bad := append([]byte{}, b...)
		bad[i] ^= 1 << (i % 8)
		if i > 200 && i < len(b)-300 && i%97 != 0 {
			continue // within the payload's base64, which one signature is over
		}
		if _, _, err := OpenStatement(bad, &Policy{nodes: []PinnedKey{pin}}); err == nil {
			t.Fatalf("bit %d of byte %d flipped: accepted", i%8, i)
		}
	}
	if _, err := ReadCompletion(b[:len(b)-1]); err == nil {
		t.Error("a statement was read as a completion")
	}
	s.Sanitize.Validation = Fact{"accepted", SourceConfigured}
	if _, err := SignStatement(s, node.key); err == nil {
		t.Error("signed a statement with a validation")
	}
}

func FuzzCompletion(f *testing.F) {
	anne := newPerson(f, "anne")
	b, err := SignCompletion(completion(RoleValidated), anne.key)
	if err != nil {
		f.Fatal(err)
	}
	env, err := ParseEnvelope(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(env.Payload)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := readCompletionPayload(payload)
		if err != nil {
			return
		}
		if again, err := Encode(c.wrapped()); err != nil || string(again) != string(payload) {
			t.Errorf("%s became %s, %v", payload, again, err)
		}
	})
}

func FuzzHostStatement(f *testing.F) {
	annex := filledAnnex()
	s := HostStatement{V: 1, NodeID: annex.NodeID, At: "2026-11-23T12:00:00Z", Sanitize: annex.Sanitize, CryptoErase: annex.CryptoErase,
		Host: annex.Host, Media: annex.Media, Config: []NamedFact{{"log", Human()}}, Limits: []string{}}
	b, err := SignStatement(s, newPerson(f, "node").key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		env, s, err := readStatement(b)
		if err != nil {
			return
		}
		if again, err := Encode(s.wrapped()); err != nil || string(again) != string(env.Payload) {
			t.Errorf("%s became %s, %v", env.Payload, again, err)
		}
	})
}
