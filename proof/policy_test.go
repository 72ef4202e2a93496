package proof_test

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"vacate/proof"
	"vacate/proof/prooftest"
)

func parsePolicy(t testing.TB, text string) *proof.Policy {
	t.Helper()
	p, err := proof.ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func witnessKey(name string) string { return prooftest.VKey(name, 4, prooftest.Key(name)) }

// TestPolicyForm: what is read is written again, without comments, and reads the same.
func TestPolicyForm(t *testing.T) {
	text := string(prooftest.Policy())
	p := parsePolicy(t, text)
	_, want, _ := strings.Cut(text, "\n") // the comment
	if got := string(p.Marshal()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	loose := parsePolicy(t, strings.ReplaceAll("\n \t\n  # "+text, " ", "\t \t"))
	if got := string(loose.Marshal()); got != want {
		t.Errorf("with blanks and tabs it reads as\n%s", got)
	}
	dated := parsePolicy(t, strings.ReplaceAll(want, " - -\n", " 2026-01-01T00:00:00Z 2027-01-01T00:00:00Z\n"))
	k := dated.Node(prooftest.Node1)[0]
	if !k.NotBefore.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) || !k.NotAfter.Equal(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("times %v", k)
	}
	if string(parsePolicy(t, string(dated.Marshal())).Marshal()) != string(dated.Marshal()) {
		t.Error("times are not written as they are read")
	}
	if logs := p.Logs(); len(logs) != 1 || logs[0].Origin != prooftest.Origin || logs[0].URL != "https://log.example/vacate" {
		t.Errorf("logs %+v", logs)
	}
	if tpm, ok := p.TPM(prooftest.Node1); !ok || tpm.AK.String() != prooftest.Text(prooftest.AK()) || tpm.PCRDigest != "" {
		t.Errorf("TPM %+v", tpm)
	}
	if len(p.Person("ann")) != 1 || len(p.Operators()) != 1 || len(p.Nodes()) != 2 || len(p.Node("nobody")) != 0 {
		t.Error("pinned keys are missing, or too many")
	}
}

// TestPolicyRejects: lines that a policy may not have, each with what is said.
func TestPolicyRejects(t *testing.T) {
	node := prooftest.Text(prooftest.Key("more"))
	for line, want := range map[string]string{
		"":                                 "no quorum",
		"quorum":                           "want: quorum",
		"quorum nobody":                    "named",
		"log":                              "want: log",
		"log x":                            "has not the form",
		"log " + witnessKey("w"):           "has type 0x04",
		"witness w":                        "want: witness",
		"witness none " + witnessKey("w"):  "is taken",
		"witness all " + witnessKey("w"):   "is taken",
		"witness w " + witnessKey("w")[1:]: "has not the form",
		"witness w " + witnessKey("w") + "\nwitness w " + witnessKey("x"): "is taken",
		"group g any none":        "named",
		"group g any h":           "named",
		"group g 0 w":             "cannot be had",
		"group g any":             "want: group",
		"node n " + node:          "want: node",
		"node n " + node + " - x": "neither a time",
		"node n " + node + " - 2026-01-01T00:00:00+00:00":                                     "neither a time",
		"node n " + node + " - 2026-01-01":                                                    "neither a time",
		"node n " + node + " - 0001-01-01T00:00:00Z":                                          "neither a time",
		"node n " + node + " 2027-01-01T00:00:00Z 2026-01-01T00:00:00Z":                       "before it begins",
		"node n ed25519:AAAA - -":                                                             "3 bytes",
		"node n rsa:AAAA - -":                                                                 "starts neither",
		"node n " + node + " - -\nnode n " + node + " - -":                                    "stands here again",
		"node n " + node + " - -\noperator o " + node + " - -":                                "stands here again",
		"node n " + prooftest.Text(prooftest.Key("w")) + " - -\nwitness w " + witnessKey("w"): "stands here again",
		"tpm n " + node:                                 "want: tpm",
		"tpm n " + node + " xyz":                        "SHA-256",
		"tpm n " + node + " " + strings.Repeat("A", 64): "SHA-256",
		"tpm n " + node + " -\ntpm n " + node + " -":    "already",
		"quorum none\x00":                               "0x00",
		"quorum none\r":                                 "0x0d",
		"Quorum none":                                   "no word",
		"quorum none extra":                             "want: quorum",
	} {
		_, err := proof.ParsePolicy([]byte(line + "\n"))
		if line == "" {
			_, err = proof.ParsePolicy(nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", line, err, want)
		}
	}
	if _, err := proof.ParsePolicy([]byte("quorum none")); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("a policy without its last line feed: %v", err)
	}
	if _, err := proof.ParsePolicy([]byte(strings.Repeat("#\n", 200_000))); err == nil {
		t.Error("a policy of 400 kB passes")
	}
}

// TestQuorum: each set of witnesses against a definition that counts by hand.
func TestQuorum(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	keys := ""
	for _, n := range names {
		keys += "witness " + n + " " + witnessKey("witness."+n) + "\n"
	}
	log := "log " + prooftest.VKey(prooftest.Origin, 1, prooftest.Key("log")) + "\n"
	var w prooftest.World
	w.Fill(3)
	for text, enough := range map[string]func(a, b, c, d bool) bool{
		"quorum none\n":                                func(a, b, c, d bool) bool { return true },
		"quorum c\n":                                   func(a, b, c, d bool) bool { return c },
		"group g all a b c d\nquorum g\n":              func(a, b, c, d bool) bool { return a && b && c && d },
		"group g any a b\nquorum g\n":                  func(a, b, c, d bool) bool { return a || b },
		"group g 2 a b c\nquorum g\n":                  func(a, b, c, d bool) bool { return a && b || a && c || b && c },
		"group g any a b\ngroup h all g c\nquorum h\n": func(a, b, c, d bool) bool { return (a || b) && c },
		"group g all a b\ngroup h all c d\ngroup i any g h\nquorum i\n":          func(a, b, c, d bool) bool { return a && b || c && d },
		"group g any a\ngroup h any g\ngroup i 1 h\ngroup j 2 i b c\nquorum j\n": func(a, b, c, d bool) bool { return a && b || a && c || b && c },
	} {
		p := parsePolicy(t, log+keys+text)
		for set := range 16 {
			var in []string
			has := [4]bool{}
			for i, n := range names {
				if has[i] = set>>i&1 == 1; has[i] {
					in = append(in, "witness."+n)
				}
			}
			c, quorum, err := p.OpenCheckpoint([]byte(w.Checkpoint(3, in...)))
			if err != nil || quorum != enough(has[0], has[1], has[2], has[3]) || len(c.Cosigned) != len(in) {
				t.Errorf("%q with %v: quorum %v, %v", text, in, quorum, err)
			}
			if _, ok := p.QuorumTime(c); ok != (quorum && p.NeedsWitnesses()) {
				t.Errorf("%q with %v: there is a time %v, a quorum %v", text, in, ok, quorum)
			}
		}
	}
}

// cosign is a checkpoint with cosignatures at times of their own.
func cosign(w *prooftest.World, n int, at map[string]time.Time) string {
	text := w.Text(n)
	out := text + "\n" + prooftest.NoteLine(prooftest.Origin, 1, prooftest.Key("log"), text, time.Time{})
	for _, name := range prooftest.Witnesses {
		if at, ok := at[name]; ok {
			out += prooftest.NoteLine(name, 4, prooftest.Key(name), text, at)
		}
	}
	return out
}

// TestQuorumTime: not the earliest time of a witness counts, but the earliest by
// which they were enough.
func TestQuorumTime(t *testing.T) {
	p := parsePolicy(t, string(prooftest.Policy()))
	var w prooftest.World
	w.Fill(2)
	at := func(m int) time.Time { return prooftest.Start.Add(time.Duration(m) * time.Minute) }
	note := cosign(&w, 2, map[string]time.Time{prooftest.Witnesses[0]: at(1), prooftest.Witnesses[1]: at(3), prooftest.Witnesses[2]: at(2)})
	c, _, err := p.OpenCheckpoint([]byte(note))
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := p.QuorumTime(c); !ok || !got.Equal(at(3)) {
		t.Errorf("got %v: the provider's witness, that the quorum needs, cosigned at %v", got, at(3))
	}
}

// TestOpenCheckpoint: lines of keys that the policy does not know are left out where
// a log is read, and the canonical form is one whatever their order was.
func TestOpenCheckpoint(t *testing.T) {
	p := parsePolicy(t, string(prooftest.Policy()))
	var w prooftest.World
	w.Fill(4)
	text := w.Text(4)
	good := w.Checkpoint(4, prooftest.Witnesses...)
	lines := strings.SplitAfter(strings.SplitN(good, "\n\n", 2)[1], "\n")
	stranger := prooftest.NoteLine("witness.zoo.example", 4, prooftest.Key("zoo"), text, prooftest.Start)
	mixed := text + "\n" + lines[3] + stranger + lines[0] + lines[2] + lines[1]
	c, quorum, err := p.OpenCheckpoint([]byte(mixed))
	if err != nil || !quorum || len(c.Cosigned) != 3 || c.Size != 4 || c.Root != w.Root(4) {
		t.Errorf("%+v, %v, %v", c, quorum, err)
	}
	if canon, err := p.CanonicalCheckpoint([]byte(mixed)); err != nil || string(canon) != good {
		t.Errorf("canonical form\n%s, %v; want\n%s", canon, err, good)
	}
	for name, bad := range map[string]string{
		"no log signature":             text + "\n" + lines[1] + lines[2],
		"wrong signature of the log":   text + "\n" + prooftest.NoteLine(prooftest.Origin, 1, prooftest.Key("log"), w.Text(3), prooftest.Start),
		"wrong cosignature, known key": text + "\n" + lines[0] + prooftest.NoteLine(prooftest.Witnesses[0], 4, prooftest.Key(prooftest.Witnesses[0]), w.Text(3), prooftest.Start),
		"no signature":                 text + "\n",
		"text alone":                   text,
		"CRLF":                         strings.ReplaceAll(good, "\n", "\r\n"),
		"101 signatures":               text + "\n" + strings.Repeat(stranger, 101),
	} {
		if _, _, err := p.OpenCheckpoint([]byte(bad)); err == nil {
			t.Errorf("%s: it is opened", name)
		}
	}
}

// TestCheckpointLikeXMod: golang.org/x/mod opens what is opened here.
func TestCheckpointLikeXMod(t *testing.T) {
	var w prooftest.World
	w.Fill(4)
	good := w.Checkpoint(4, prooftest.Witnesses...)
	v, err := note.NewVerifier(prooftest.VKey(prooftest.Origin, 1, prooftest.Key("log")))
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open([]byte(good), note.VerifierList(v))
	if err != nil || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 3 {
		t.Fatalf("%+v, %v", n, err)
	}
	c, err := proof.ParseCheckpoint([]byte(good))
	if err != nil || string(c.Marshal()) != good {
		t.Errorf("%v", err)
	}
}

// TestLogs: any of the policy's logs will do, and one is not another.
func TestLogs(t *testing.T) {
	other := prooftest.VKey("log.example/other", 1, prooftest.Key("other log"))
	policy := strings.Replace(string(prooftest.Policy()), "log ", "log "+other+"\nlog ", 1)
	c := prooftest.Tell(prooftest.Story{})
	if _, err := proof.Verify(c.Bytes(), []byte(policy), proof.Options{}); err != nil {
		t.Errorf("with another log in the policy: %v", err)
	}
	for i := range c.Bundle.Records {
		c.Bundle.Records[i].Proof = strings.Replace(c.Bundle.Records[i].Proof, prooftest.Origin, "log.example/other", 1)
	}
	var ve *proof.VerifyError
	if _, err := proof.Verify(c.Bytes(), []byte(policy), proof.Options{}); !errors.As(err, &ve) || ve.Step != proof.StepLog {
		t.Errorf("a checkpoint in another log's name: %v", err)
	}
	if _, err := proof.ParsePolicy([]byte("log " + prooftest.VKey(prooftest.Origin, 1, prooftest.Key("other log")) + "\n" + string(prooftest.Policy()))); err == nil {
		t.Error("two logs have one origin")
	}
}

// TestCollision: the two keys of the attack have one id, and are two.
func TestCollision(t *testing.T) {
	c := prooftest.Collision
	if prooftest.KeyID(c.Name, 4, c.A) != prooftest.KeyID(c.Name, 4, c.B) || slices.Equal(c.A.Public().(ed25519.PublicKey), c.B.Public().(ed25519.PublicKey)) {
		t.Error("the keys do not collide")
	}
}

// TestErrQuorum can be told from wrong signatures.
func TestErrQuorum(t *testing.T) {
	for _, a := range prooftest.Attacks() {
		_, err := proof.Verify(a.Bundle, a.Policy, proof.Options{})
		want := a.Name == "missing quorum" || a.Name == "operator's own witness only" || a.Name == "others only"
		if a.Step == proof.StepWitnessed && errors.Is(err, proof.ErrQuorum) != want {
			t.Errorf("%s: %v", a.Name, err)
		}
	}
}
