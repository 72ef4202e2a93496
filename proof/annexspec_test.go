package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
)

var updateAnnex = flag.Bool("update-annex", false, "write the vectors of docs/spec/annex.md anew")

const annexVectorsFile = "../docs/spec/proof/annex.json"

// annexVectors are what docs/spec/annex.md speaks of, in their exact bytes.
type annexVectors struct {
	How        string           `json:"how"`
	Annex      json.RawMessage  `json:"annex"`
	Digest     string           `json:"annexDigest"`
	Paths      []string         `json:"paths"`
	Refused    []refusedAnnex   `json:"refused"`
	Completion completionVector `json:"completion"`
	Statement  json.RawMessage  `json:"statement"`
	Quote      quoteVector      `json:"quote"`
}

type refusedAnnex struct {
	Why   string `json:"why"`
	Annex string `json:"annex"` // base64
}

type completionVector struct {
	Payload  json.RawMessage `json:"payload"`
	Envelope json.RawMessage `json:"envelope"`
	Filled   []Entered       `json:"filled"` // what the fields say then
}

type quoteVector struct {
	AK       string   `json:"ak"`
	Payload  string   `json:"payload"` // what is quoted, base64
	Quote    Quote    `json:"quote"`
	Measured Measured `json:"measured"`
}

func buildAnnexVectors(t *testing.T) annexVectors {
	t.Helper()
	encode := func(v any) json.RawMessage {
		b, err := Encode(v)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	annex := filledAnnex()
	v := annexVectors{
		How:   "Ed25519 seeds are the names anne and node, filled up with zeros to 32 bytes; the scalar of the attestation key is the SHA-256 of \"vacate test ak\"",
		Annex: encode(annex),
	}
	v.Digest = PayloadHash(v.Annex)
	for _, f := range annex.Fields() {
		v.Paths = append(v.Paths, f.Path)
	}
	for why, change := range map[string]func(*Annex){
		"a node has filled the validation":                   func(a *Annex) { a.Sanitize.Validation = Fact{"accepted", SourceObserved} },
		"a validated module without its certificate":         func(a *Annex) { a.Module.Validated = true },
		"a value whose source says that there is none":       func(a *Annex) { a.Host.Kernel = Fact{"Linux", SourceNone} },
		"a source that is none":                              func(a *Annex) { a.Host.Kernel = Fact{"Linux", "rumour"} },
		"a node names who performed":                         func(a *Annex) { a.Sanitize.Performed = Fact{"Anne", SourceConfigured} },
		"a node gives a person's word":                       func(a *Annex) { a.Host.Kernel = Fact{"Linux", EnteredBy("anne")} },
		"no media":                                           func(a *Annex) { a.Media = []Medium{} },
		"an observation without a value":                     func(a *Annex) { a.Host.Kernel = Fact{"", SourceObserved} },
		"a version that is not known":                        func(a *Annex) { a.V = 2 },
		"the number of a certificate, and nothing validated": func(a *Annex) { a.Module.CertNo = "4242" },
	} {
		a := filledAnnex()
		change(&a)
		v.Refused = append(v.Refused, refusedAnnex{why, base64.StdEncoding.EncodeToString(encode(a))})
	}
	v.Refused = append(v.Refused, refusedAnnex{"a blank", base64.StdEncoding.EncodeToString(append([]byte(" "), v.Annex...))},
		refusedAnnex{"a duplicate key", base64.StdEncoding.EncodeToString(bytes.Replace(v.Annex, []byte(`{"v":1,`), []byte(`{"v":1,"v":1,`), 1))},
		refusedAnnex{"another case", base64.StdEncoding.EncodeToString(bytes.Replace(v.Annex, []byte(`"leaseId"`), []byte(`"leaseID"`), 1))})
	sortRefused(v.Refused)

	c := completion(RoleValidated)
	c.Fields = []Entered{{"media.0.propertyNumber", "P-17"}}
	v.Completion.Envelope = signed(t, c, newPerson(t, "anne"))
	env, err := ParseEnvelope(v.Completion.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	v.Completion.Payload = env.Payload
	c.V = 1
	filled := annex.Filled([]Completed{{Completion: c}})
	v.Completion.Filled = []Entered{{"media.0.propertyNumber", filled.Media[0].PropertyNumber.Value}, {"sanitization.validation", filled.Sanitize.Validation.Value}}

	s := HostStatement{V: 1, NodeID: annex.NodeID, At: "2026-11-23T12:00:00Z", Sanitize: annex.Sanitize, CryptoErase: annex.CryptoErase,
		Host: annex.Host, Media: annex.Media, Config: []NamedFact{{"log", Fact{"log.example.org/vacate", SourceConfigured}}}, Limits: []string{"a limit"}}
	b, err := SignStatement(s, newPerson(t, "node").key)
	if err != nil {
		t.Fatal(err)
	}
	v.Statement = bytes.TrimSuffix(b, []byte("\n"))
	v.Quote = buildQuoteVector(t)
	return v
}

func sortRefused(r []refusedAnnex) {
	for i := range r {
		for j := i; j > 0 && r[j].Why < r[j-1].Why; j-- {
			r[j], r[j-1] = r[j-1], r[j]
		}
	}
}

func buildQuoteVector(t *testing.T) quoteVector {
	t.Helper()
	scalar := sha256.Sum256([]byte("vacate test ak"))
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar[:])
	if err != nil {
		t.Fatal(err)
	}
	ak, err := NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte("payload of a record")
	attest := goodAttestation(payload).bytes()
	digest := sha256.Sum256(attest)
	sig, err := key.Sign(nil, digest[:], crypto.SHA256) // RFC 6979
	if err == nil {
		sig, err = normalS(sig)
	}
	if err != nil {
		t.Fatal(err)
	}
	q := quoteVector{AK: ak.String(), Payload: base64.StdEncoding.EncodeToString(payload), Quote: NewQuote(payload, attest, sig)}
	if q.Measured, err = q.Quote.Verify(PinnedTPM{AK: ak}, payload); err != nil {
		t.Fatal(err)
	}
	return q
}

// TestAnnexSpec holds docs/spec/annex.md's vectors: what is written there is made
// again, and what is read from there is what it says.
func TestAnnexSpec(t *testing.T) {
	built, err := json.MarshalIndent(buildAnnexVectors(t), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	built = append(built, '\n')
	if *updateAnnex {
		if err := os.WriteFile(annexVectorsFile, built, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(annexVectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(file, built) {
		t.Errorf("%s is not what this program makes", annexVectorsFile)
	}
	var v annexVectors
	if err := json.Unmarshal(file, &v); err != nil {
		t.Fatal(err)
	}
	exact := func(b json.RawMessage) []byte {
		var out bytes.Buffer
		if err := json.Compact(&out, b); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	annexBytes := exact(v.Annex)
	annex, err := ParseAnnex(annexBytes)
	if err != nil || hashHex(annexBytes) != v.Digest {
		t.Fatalf("annex: %v, digest %s", err, hashHex(annexBytes))
	}
	for _, r := range v.Refused {
		b, err := base64.StdEncoding.DecodeString(r.Annex)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseAnnex(b); err == nil {
			t.Errorf("%s: taken", r.Why)
		}
	}
	policy := &Policy{persons: []PinnedKey{newPerson(t, "anne").pin}}
	done, err := policy.OpenCompletion(exact(v.Completion.Envelope))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	filled := annex.Filled([]Completed{done})
	for _, f := range filled.Fields() {
		values[f.Path] = f.Fact.Value
	}
	for _, e := range v.Completion.Filled {
		if values[e.Path] != e.Value {
			t.Errorf("%s says %q, want %q", e.Path, values[e.Path], e.Value)
		}
	}
	pin := newPerson(t, "node").pin
	pin.Name = annex.NodeID
	if _, _, err := OpenStatement(append(exact(v.Statement), '\n'), &Policy{nodes: []PinnedKey{pin}}); err != nil {
		t.Error(err)
	}
	ak, err := ParsePublicKey(v.Quote.AK)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := base64.StdEncoding.DecodeString(v.Quote.Payload)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := v.Quote.Quote.Verify(PinnedTPM{AK: ak}, payload); err != nil || m != v.Quote.Measured {
		t.Errorf("quote: %+v, %v", m, err)
	}
}

// TestAnnexPaths: every path of the specification's table is a field, and the
// other way round.
func TestAnnexPaths(t *testing.T) {
	page, err := os.ReadFile("../docs/spec/annex.md")
	if err != nil {
		t.Fatal(err)
	}
	a := filledAnnex()
	for _, f := range a.Fields() {
		name := f.Path[strings.LastIndex(f.Path, ".")+1:]
		if !bytes.Contains(page, []byte("`"+name+"`")) {
			t.Errorf("docs/spec/annex.md does not name field %s", f.Path)
		}
	}
}

func hashHex(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
