package certpage

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/net/html"

	"vacate/proof"
	"vacate/proof/prooftest"
)

var update = flag.Bool("update", false, "write the golden page anew")

const (
	nodeID  = "07070707070707070707070707070707"
	leaseID = "aaaaaaaaaaaaaaaa"
	drive   = "a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
)

func key(name string) crypto.Signer {
	seed := [ed25519.SeedSize]byte{}
	copy(seed[:], name)
	return ed25519.NewKeyFromSeed(seed[:])
}

func text(t *testing.T, k crypto.Signer) string {
	t.Helper()
	p, err := proof.NewPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return p.String()
}

// A certificate is what a page is made of. The page is about what was verified, so
// the log's part of the bundle stays empty here.
type certificate struct {
	bundle, policy []byte
	res            *proof.Result
}

// makeCertificate is the certificate of a lease whose annex and completions hold what say
// makes of each word.
func makeCertificate(t *testing.T, say func(string) string) certificate {
	t.Helper()
	a := annexOf(say)
	annex, err := proof.Encode(a)
	if err != nil {
		t.Fatal(err)
	}
	end := proof.Record{
		Type: proof.CLOSE, NodeID: nodeID, NodeSeq: 2, PrevHash: strings.Repeat("01", 32), LeaseID: leaseID, OpenSeq: 1, Bytes: 10 << 30,
		Space:       []proof.Space{{Drive: drive, Extents: []proof.Range{{First: 10, Count: 5}}}},
		AnnexDigest: proof.PayloadHash(annex), Result: proof.ResultOK, Drained: true,
		Events: []proof.Event{{Type: proof.EventKeyDestroyed, MonotonicNs: 5, BootID: "b"}},
	}
	payload, err := proof.EncodePayload(end)
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := proof.Sign(payload, key("node"))
	if err != nil {
		t.Fatal(err)
	}
	done, err := proof.SignCompletion(proof.Completion{
		LeaseID: leaseID, Closing: proof.PayloadHash(payload), Role: proof.RoleValidated, Date: "2026-11-24T10:00:00Z",
		Person:  proof.Person{Name: say("Änne Muster"), Title: say("Auditor"), Organization: say("Muster & Co."), Location: say("Wien"), Contact: say("a@example.org")},
		Fields:  []proof.Entered{{Path: "media.0.propertyNumber", Value: say("P-17")}},
		Outcome: &proof.Outcome{Result: proof.Accepted, Method: say("verified the certificate offline")}, Remarks: say("filed"),
	}, key("anne"))
	if err != nil {
		t.Fatal(err)
	}
	b := proof.Bundle{Records: []proof.Entry{{Envelope: envelope}}, Annex: annex, Completions: []json.RawMessage{done}}
	c := certificate{res: result(say)}
	if c.bundle, err = b.Marshal(); err != nil {
		t.Fatal(err)
	}
	log, err := note.NewEd25519VerifierKey("log.example.org/vacate", key("log").Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	c.policy = []byte("log " + log + "\nquorum none\nnode " + nodeID + " " + text(t, key("node")) + " - -\nperson anne " + text(t, key("anne")) + " - -\n")
	return c
}

func annexOf(say func(string) string) proof.Annex {
	seen := func(s string) proof.Fact { return proof.Fact{Value: say(s), Source: proof.SourceObserved} }
	program := func(s string) proof.Fact { return proof.Fact{Value: say(s), Source: proof.SourceProgram} }
	none := proof.Fact{Source: proof.SourceNone}
	return proof.Annex{
		V: 1, NodeID: nodeID, LeaseID: leaseID, OpenedAt: "2026-11-22T12:00:00Z", ClosedAt: say("2026-11-22T13:00:00Z"),
		Media: []proof.Medium{{
			Drive: drive, Manufacturer: proof.Human(), Model: proof.Fact{Value: say("Fast 9000"), Source: proof.SourceDrive},
			Serial: proof.Fact{Value: say("S1"), Source: proof.SourceDrive}, PropertyNumber: proof.Human(), MediaType: seen("block device"),
			Source: proof.Fact{Value: say("/dev/nvme0n1"), Source: proof.SourceConfigured}, Categorization: proof.Human(), PriorPurge: seen("not by this program"), EncryptedBelow: none,
		}},
		Sanitize: proof.Sanitize{Method: program("cryptographic erase"), Technique: program("the only key was overwritten"), Tool: program("Vacate"),
			Version: seen("v1.2.3"), VerificationMethod: program("read back"), Verification: seen("read back as zeros"), Validation: proof.Human(),
			Performed: proof.Human(), Verified: proof.Human(), Destination: proof.Human()},
		CryptoErase: proof.CryptoErase{Product: program("Vacate"), KeyGeneration: program("64 bytes"), MediaEncryption: program("AES-256-XTS"), KeyLevel: program("one"),
			DataAreas: program("all"), KeyLifecycle: program("made, destroyed"), KeySanitization: program("zeros"), EscrowOrInjection: program("none"), ErrorHandling: program("fails"), Interface: program("the API")},
		Module: proof.Module{Name: say("Vacate"), Version: say("v1.2.3")},
		Key:    proof.KeyEvidence{ReadBack: true, CipherWait: 10_000, Erase: 200_000, Text: say("nothing went wrong")},
		Host: proof.Host{Kernel: seen("Linux 6.12"), BootID: seen("b"), Machine: seen("amd64"), InitOnFree: none, InitOnAlloc: none, Hugepages: seen("none reserved"), Transparent: seen("madvise"),
			Swap: seen("none"), CorePattern: seen("core"), Hibernation: none, Kexec: none, SecretMemory: seen("on"), KeyMemory: seen("memfd_secret"), RuntimeSecret: seen("on"), TPM: seen("not used")},
		Device: []proof.DeviceRun{{Drive: drive, Serial: say("S1"), Command: say("discard"), Action: say("none"), Level: "none", BootID: say("b"), VendorStatement: none}},
		Scan:   []proof.Scan{{Drive: drive, Tool: say("vacate probe"), Blocks: 4603, Of: 10000, Report: say("digest")}},
		Limits: []string{say("nobody can prove that no copy exists")},
	}
}

func result(say func(string) string) *proof.Result {
	r := &proof.Result{
		V: 1, Kind: "lease", LeaseID: leaseID, NodeID: nodeID, Result: proof.ResultOK, Bytes: 10 << 30, KeyMode: proof.ModeNode,
		Space: []proof.Space{{Drive: drive, Extents: []proof.Range{{First: 10, Count: 5}}}}, Log: say("log.example.org/vacate"), Witnesses: []string{say("w1"), say("w2")},
		Times: []proof.Moment{{Record: proof.OPEN, NodeSeq: 1, LeafIndex: 41, NotBefore: "2026-11-22T11:59:58Z", NotAfter: "2026-11-22T12:00:01Z"},
			{Record: proof.CLOSE, NodeSeq: 2, LeafIndex: 97, NotAfter: "2026-11-22T13:00:02Z"}},
		EraseBy: "2026-11-22T14:00:00Z", Deadline: "met", Opened: true,
		Claims:    []proof.Claim{{Name: proof.ClaimAsserted, Proves: say("this key signed it"), DoesNotProve: say("truth")}, {Name: proof.ClaimKeyCommitted, Proves: say("the key's hash was logged"), DoesNotProve: say("that it will not turn up")}},
		NotProven: []string{say("that no copy of the data exists"), say("not scanned: nobody looked for remains")}, NotClaimed: []string{say("guest_memory")},
		Facts: []proof.Named{{Name: say("tenant"), Value: say("Müller & <Söhne>")}},
	}
	for i := proof.StepParse; i <= proof.StepClaims; i++ {
		r.Steps = append(r.Steps, proof.Passed{Step: int(i), Name: i.String(), Text: say("passed")})
	}
	return r
}

func plainly(s string) string { return s }

func TestGolden(t *testing.T) {
	c := makeCertificate(t, plainly)
	got, err := HTML(c.bundle, c.policy, c.res)
	if err != nil {
		t.Fatal(err)
	}
	const file = "testdata/page.html"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the page differs from %s: look at it, then run the test with -update", file)
	}
	for _, must := range []string{"All 11 steps", "10 GiB (10737418240 bytes)", "earliest: not proven · latest: 2026-11-22T13:00:02Z", "The node states that it destroyed the key", "accepted (verified the certificate offline), Änne Muster",
		"entered by Änne Muster", "requires human entry", "not observed", "Does not prove", "To be erased by", "4603 of 10000", "4. Key level and wrapping"} {
		if !strings.Contains(string(got), must) {
			t.Errorf("the page does not say %q", must)
		}
	}
}

// TestSelfContained: the page loads nothing, runs nothing, and is well formed.
func TestSelfContained(t *testing.T) {
	c := makeCertificate(t, plainly)
	got, err := HTML(c.bundle, c.policy, c.res)
	if err != nil {
		t.Fatal(err)
	}
	inspect(t, got, c.bundle)
	if bad := faults(parse(t, []byte(`<p onclick="x"><img src="http://a/"><script>1</script><a href="javascript:1">`))); len(bad) != 4 {
		t.Errorf("the search finds %q in a page with four faults", bad)
	}
}

// TestHostile: whatever is in a certificate, it stays text.
func TestHostile(t *testing.T) {
	const evil = "\u202e\u200b\x1b[31m\n\"'><script>alert(1)</script><img src=x onerror=a>--></p>{{.}}"
	c := makeCertificate(t, func(string) string {
		return evil // a person's name has at most 96 bytes
	})
	got, err := HTML(c.bundle, c.policy, c.res)
	if err != nil {
		t.Fatal(err)
	}
	inspect(t, got, c.bundle)
	for _, bad := range []string{"<script", "<img", "\u202e", "\u200b", "\x1b"} {
		if bytes.Contains(got, []byte(bad)) {
			t.Errorf("the page has %q", bad)
		}
	}
	if !bytes.Contains(got, []byte("&lt;script&gt;")) {
		t.Error("the page shows nothing of what was planted: this test looks at the wrong page")
	}
}

func parse(t *testing.T, page []byte) *html.Node {
	t.Helper()
	root, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func inspect(t *testing.T, page, bundle []byte) {
	t.Helper()
	root := parse(t, page)
	for _, bad := range faults(root) {
		t.Error(bad)
	}
	if n := len(find(root, "h1")); n != 1 {
		t.Errorf("%d headings of the first level", n)
	}
	saved := find(root, "a")
	if len(saved) != 1 {
		t.Fatalf("%d links", len(saved))
	}
	data, ok := strings.CutPrefix(attribute(saved[0], "href"), "data:application/json;base64,")
	if b, err := base64.StdEncoding.DecodeString(data); !ok || err != nil || !bytes.Equal(b, bundle) {
		t.Error("the certificate in the page is not the one that it was made of")
	}
}

// faults are elements and attributes that load or run something.
func faults(root *html.Node) (bad []string) {
	allowed := strings.Fields("html head meta title style body main header h1 h2 h3 p div section table thead tbody tr th td ol ul li b br span code footer a")
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if !slices.Contains(allowed, n.Data) {
			bad = append(bad, "element "+n.Data)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "src" && n.Data != "img" ||
				a.Key == "href" && !strings.HasPrefix(a.Val, "data:application/json;base64,") {
				bad = append(bad, "attribute "+a.Key+" of "+n.Data)
			}
		}
	}
	return bad
}

func find(root *html.Node, name string) (out []*html.Node) {
	for n := range root.Descendants() {
		if n.Type == html.ElementNode && n.Data == name {
			out = append(out, n)
		}
	}
	return out
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

// TestLabels: no field of an annex is left without a word.
func TestLabels(t *testing.T) {
	a := annexOf(plainly)
	for _, f := range a.Fields() {
		name := f.Path[strings.LastIndex(f.Path, ".")+1:]
		if labels[name] == "" {
			t.Errorf("field %s has no label", f.Path)
		}
	}
	shown := 0
	for _, s := range sections(&a) {
		for _, r := range s.Rows {
			if r.Label == "" {
				t.Errorf("section %q has a row without a label: %+v", s.Title, r)
			}
			shown++
		}
	}
	if shown < len(a.Fields()) {
		t.Errorf("%d rows for %d fields", shown, len(a.Fields()))
	}
}

func TestRefuses(t *testing.T) {
	c := makeCertificate(t, plainly)
	other := *c.res
	other.LeaseID = "bbbbbbbbbbbbbbbb"
	if _, err := HTML(c.bundle, c.policy, &other); err == nil {
		t.Error("a result of another lease was shown")
	}
	other = *c.res
	other.NodeID = strings.Repeat("08", 16)
	if _, err := HTML(c.bundle, c.policy, &other); err == nil {
		t.Error("a result of another node was shown")
	}
	if _, err := HTML(c.bundle[:len(c.bundle)-1], c.policy, c.res); err == nil {
		t.Error("half a bundle was shown")
	}
	nobody := bytes.ReplaceAll(c.policy, []byte("person anne "+text(t, key("anne"))), []byte("person anne "+text(t, key("else"))))
	if _, err := HTML(c.bundle, nobody, c.res); err == nil {
		t.Error("a completion of nobody that the policy names was shown")
	}
}

func TestViolated(t *testing.T) {
	c := makeCertificate(t, plainly)
	c.res.Violated = "provider provably violated <b>"
	got, err := HTML(c.bundle, c.policy, c.res)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(got, []byte("provider provably violated &lt;b&gt;")) || bytes.Contains(got, []byte("steps of the verification passed")) {
		t.Error("a violation is not what the page says first")
	}
}

// TestVerified: a certificate that was verified can be shown, as it is in the
// specification.
func TestVerified(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile("../../docs/spec/proof/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	bundle, policy := read("bundle.json"), read("policy")
	res, err := proof.Verify(bundle, policy, proof.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := HTML(bundle, policy, res)
	if err != nil {
		t.Fatal(err)
	}
	inspect(t, got, bundle)
	for _, c := range res.Claims {
		if !bytes.Contains(got, []byte(`class="claim">`+c.Name+"</td>")) {
			t.Errorf("the page does not claim %s", c.Name)
		}
	}
	if n := bytes.Count(got, []byte(`class="tick"`)); n != len(res.Steps) {
		t.Errorf("%d steps on the page, %d in the result", n, len(res.Steps))
	}
}

// TestKinds: every kind of certificate that is accepted can be shown.
func TestKinds(t *testing.T) {
	for name, story := range prooftest.Kinds() {
		t.Run(name, func(t *testing.T) {
			c := prooftest.Tell(story)
			bundle := c.Bytes()
			res, err := proof.Verify(bundle, c.Policy, proof.Options{Opened: c.Receipt})
			if err != nil {
				t.Fatal(err)
			}
			got, err := HTML(bundle, c.Policy, res)
			if err != nil {
				t.Fatal(err)
			}
			lost := res.Times[len(res.Times)-1].Record == proof.NodeLost
			if bytes.Contains(got, []byte("of the operator, leaf")) != lost {
				t.Error("whose record ends the lease is not what the page says")
			}
			inspect(t, got, bundle)
			if !bytes.Contains(got, []byte("states that")) {
				t.Errorf("result %s has no words", res.Result)
			}
			if story.Drive != "" && bytes.Contains(got, []byte("destroyed the key")) {
				t.Error("the page of a drive speaks of a key")
			}
		})
	}
}
