package second_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vacate/proof"
	"vacate/proof/prooftest"
	"vacate/test/second"
)

// TestGood: both verifiers take every good certificate.
func TestGood(t *testing.T) {
	for name, story := range prooftest.Kinds() {
		c := prooftest.Tell(story)
		if _, err := proof.Verify(c.Bytes(), c.Policy, proof.Options{Opened: c.Receipt}); err != nil {
			t.Errorf("%s: package proof: %v", name, err)
		}
		var opened []byte
		if c.Receipt != nil {
			opened = c.Receipt.Envelope
		}
		if err := second.Verify(c.Bytes(), c.Policy, opened); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// parts are those of the second verifier that may refuse what fails at a step of the
// documents, as its errors begin.
var parts = map[proof.Step][]string{
	proof.StepParse:     {"policy: ", "bundle: ", "the bundle ", "record ", "part 0: "},
	proof.StepSigned:    {"record "},
	proof.StepLeaf:      {"record "},
	proof.StepLog:       {"record ", "part 0: "},
	proof.StepWitnessed: {"record ", "part 0: "},
	proof.StepIncluded:  {"record "},
	proof.StepBound:     {"part 1: ", "the certificate is of another OPEN"},
	proof.StepTime:      {"part 0: ", "part 2: "},
	proof.StepAnnex:     {"part 3: ", "part 4: "},
	proof.StepMeasured:  {"part 5: "},
	proof.StepClaims:    {"part 6: "},
}

// TestBad: both refuse every bad one, and the second for what is wrong with it.
func TestBad(t *testing.T) {
	for _, a := range prooftest.Attacks() {
		var opened []byte
		if a.Receipt != nil {
			opened = a.Receipt.Envelope
		}
		if _, err := proof.Verify(a.Bundle, a.Policy, proof.Options{Opened: a.Receipt}); err == nil {
			t.Errorf("%s: package proof takes it", a.Name)
		}
		err := second.Verify(a.Bundle, a.Policy, opened)
		if err == nil {
			t.Errorf("%s: it is taken", a.Name)
		} else if !slices.ContainsFunc(parts[a.Step], func(p string) bool { return strings.HasPrefix(err.Error(), p) }) {
			t.Errorf("%s: it is refused with %q, which is not of step %d", a.Name, err, a.Step)
		}
	}
}

// TestFlips: both refuse a certificate of which any of some bits is turned.
func TestFlips(t *testing.T) {
	for name, story := range prooftest.Kinds() {
		c := prooftest.Tell(story)
		good := c.Bytes()
		bad := bytes.Clone(good)
		for bit := 0; bit < 8*len(bad); bit += 997 {
			bad[bit/8] ^= 1 << (bit % 8)
			_, first := proof.Verify(bad, c.Policy, proof.Options{})
			if other := second.Verify(bad, c.Policy, nil); first == nil || other == nil {
				t.Errorf("%s: bit %d was turned: package proof %v, second %v", name, bit, first, other)
			}
			bad[bit/8] = good[bit/8]
		}
	}
}

// TestExamples: the files of the repository.
func TestExamples(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("..", "..", "examples", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if err := second.Verify(read("good.json"), read("policy"), nil); err != nil {
		t.Error(err)
	}
	if err := second.Verify(read("tampered.json"), read("policy"), nil); err == nil {
		t.Error("the tampered example is taken")
	}
}
